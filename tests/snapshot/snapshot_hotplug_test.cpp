// SPDX-License-Identifier: Apache-2.0
//
// Chains of differential snapshots of a VM whose memory comes, goes and changes its size in between.

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/vm_dirty_log.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_hotplug_test {
namespace {

using namespace test;
using namespace std::chrono_literals;

constexpr GuestAddress slot{std::uint64_t{8} << 20};  ///< where DIMMs are plugged

AddressSpaceBase planned() {
  AddressSpaceBase space(AddressSpaceLayout::x86_64({.phys_bits = 40}).value());
  VMSPACE_EXPECT_OK(space.insert_region(
      {.name = "ram", .size = 64 * page, .backing = {.source = MemorySource::shmem}}));
  return space;
}

/// There are no vCPUs to pause.
struct NoVcpus final : VmGate {
  Result<void> pause(const MemoryChange&) override { return {}; }
  void resume() noexcept override {}
};

/// What the first snapshot is made of.
enum class Full { image, records };

/// A VM that is saved again and again, with checksums or without.
class SnapshotHotplug : public ::testing::TestWithParam<std::tuple<Full, bool>> {
 protected:
  const VmMemory vm = VmMemory::create(planned()).value();
  const bool has_checksums = std::get<bool>(GetParam());
  VmDirtyLog log = vm.start_dirty_log().value();
  std::vector<std::unique_ptr<TempFile>> files;
  SnapshotId last;

  void SetUp() override {
    VMSPACE_EXPECT_OK(vm.set_gate(std::make_shared<NoVcpus>()));
    VMSPACE_EXPECT_OK(fill(GuestAddress(0), 64, 1));
    const TempFile& file = add_file();
    if (std::get<Full>(GetParam()) == Full::image) {
      last = save_snapshot(memory(), file.fd(), {.checksums = has_checksums}).value().id;
    } else {
      int pipe[2] = {-1, -1};
      ASSERT_EQ(::pipe(pipe), 0);
      const OwnedFd from(pipe[0]);
      auto saved = std::async(std::launch::async, [&] {
        const OwnedFd to(pipe[1]);
        return save_snapshot(memory(), to.get(), {.checksums = has_checksums}).value().id;
      });
      std::vector<std::byte> bytes(page);
      for (off_t at = 0; !bytes.empty(); at += static_cast<off_t>(bytes.size())) {
        bytes.resize(page);
        bytes.resize(static_cast<std::size_t>(::read(from.get(), bytes.data(), bytes.size())));
        file.write(bytes, at);
      }
      last = saved.get();
    }
    VMSPACE_EXPECT_OK(log.harvest());
  }

  TempFile& add_file() { return *files.emplace_back(std::make_unique<TempFile>()); }
  [[nodiscard]] GuestMemory memory() const { return vm.map()->memory; }
  [[nodiscard]] Result<void> fill(GuestAddress base, std::uint64_t pages, unsigned seed) const {
    return memory().write_slice(base, pattern(pages * page, seed));
  }
  AddressSpaceRegionPtr plug(GuestAddress base, std::uint64_t pages) const {
    const Backing room =
        Backing::open({.source = MemorySource::shmem}, 64 * page, Protection::read_write, "dimm")
            .value();
    return vm
        .plug({.name = "dimm",
               .base = base,
               .size = pages * page,
               .backing = {.source = MemorySource::shmem}},
              {.backing = room})
        .value()
        ->shared_description();
  }
  /// Saves what has changed since the last time.
  void save() {
    const auto written = VMSPACE_ASSERT_OK(log.harvest());
    save(written);
  }
  void save(const std::vector<GuestRange>& changes) {
    const TempFile& file = add_file();
    const auto saved =
        save_snapshot(memory(), file.fd(),
                      {.changes = SnapshotChanges{last, changes}, .checksums = has_checksums});
    ASSERT_THAT(saved, IsOk());
    last = saved->id;
  }
  /// Plugs a DIMM that is in the next snapshot as it is.
  AddressSpaceRegionPtr save_with_dimm() {
    const AddressSpaceRegionPtr dimm = plug(slot, 16);
    VMSPACE_EXPECT_OK(fill(slot, 16, 2));
    save();
    return dimm;
  }
  /// Checks that the chain up to here is the memory as it is.
  void expect_restored() const {
    std::vector<int> parents;
    for (const auto& file : files)
      parents.push_back(file->fd());
    auto reader = VMSPACE_ASSERT_OK(SnapshotReader::open(files.back()->fd(), parents));
    const GuestMemory restored = GuestMemory::map(vm.map()->space).value();
    for (const MemoryRegionPtr& region : restored.regions())
      VMSPACE_EXPECT_OK(restored.fill(region->guest_range(), std::byte{0xee}));
    VMSPACE_ASSERT_OK(restore_snapshot(restored, reader));
    expect_same(memory(), restored);
    const TempFile merged;
    VMSPACE_ASSERT_OK(merge_snapshots(reader, merged.fd()));
    const auto mapped = VMSPACE_ASSERT_OK(map_snapshot(merged.fd()));
    expect_same(memory(), mapped);
  }
};

TEST_P(SnapshotHotplug, MemoryThatWasPluggedIsInTheNext) {
  plug(slot, 16);
  VMSPACE_EXPECT_OK(fill(GuestAddress(slot.value() + 3 * page), 2, 2));
  save();
  expect_restored();
  // And is there when nothing more has changed.
  save();
  expect_restored();
}

TEST_P(SnapshotHotplug, MemoryThatWasUnpluggedIsNot) {
  const auto dimm = save_with_dimm();
  VMSPACE_EXPECT_OK(vm.unplug(dimm, 10s));
  VMSPACE_EXPECT_OK(fill(GuestAddress(5 * page), 1, 3));
  save();
  expect_restored();
}

TEST_P(SnapshotHotplug, WhatWasUnpluggedDoesNotComeBackWithOtherMemory) {
  const auto dimm = save_with_dimm();
  VMSPACE_EXPECT_OK(vm.unplug(dimm, 10s));
  save();
  plug(slot, 24);
  VMSPACE_EXPECT_OK(log.harvest());
  save({});  // even where nobody names it
  expect_restored();
}

TEST_P(SnapshotHotplug, MemoryThatReplacedOtherIsReportedWhole) {
  const auto dimm = save_with_dimm();
  VMSPACE_EXPECT_OK(vm.unplug(dimm, 10s));
  plug(slot, 8);
  plug(GuestAddress(slot.value() + 8 * page), 8);
  VMSPACE_EXPECT_OK(fill(GuestAddress(slot.value() + 7 * page), 2, 3));
  save();
  expect_restored();
}

TEST_P(SnapshotHotplug, MemoryThatGrowsAndShrinksKeepsWhatItHad) {
  auto dimm = save_with_dimm();
  const auto grown = VMSPACE_ASSERT_OK(vm.resize(dimm, 32 * page));
  dimm = grown->shared_description();
  VMSPACE_EXPECT_OK(fill(GuestAddress(slot.value() + 20 * page), 1, 3));
  save();
  expect_restored();
  VMSPACE_EXPECT_OK(vm.resize(dimm, 8 * page));
  VMSPACE_EXPECT_OK(fill(slot, 1, 4));
  save();
  expect_restored();
}

TEST_P(SnapshotHotplug, MemoryThatNobodyTouchedIsThatOfSeveralRegionsBefore) {
  const auto low_half = plug(slot, 8);
  const auto high_half = plug(GuestAddress(slot.value() + 8 * page), 8);
  VMSPACE_EXPECT_OK(fill(slot, 16, 2));
  save();
  VMSPACE_EXPECT_OK(vm.unplug(low_half, 10s));
  VMSPACE_EXPECT_OK(vm.unplug(high_half, 10s));
  plug(slot, 16);
  VMSPACE_EXPECT_OK(fill(slot, 16, 2));
  VMSPACE_EXPECT_OK(fill(GuestAddress(slot.value() + 7 * page), 2, 3));
  VMSPACE_EXPECT_OK(log.harvest());
  // Of the sixteen pages only those two are not what the parent's regions had.
  save({{GuestAddress(slot.value() + 7 * page), 2 * page}});
  expect_restored();
}

TEST_P(SnapshotHotplug, MemoryThatMovedIsAtItsNewPlace) {
  const auto dimm = save_with_dimm();
  VMSPACE_EXPECT_OK(vm.relocate(dimm, GuestAddress(slot.value() + 8 * page)));
  save();
  expect_restored();
}

INSTANTIATE_TEST_SUITE_P(OverAnImage, SnapshotHotplug,
                         ::testing::Combine(::testing::Values(Full::image), ::testing::Bool()));
INSTANTIATE_TEST_SUITE_P(OverRecords, SnapshotHotplug,
                         ::testing::Combine(::testing::Values(Full::records), ::testing::Bool()));

}  // namespace
}  // namespace vmspace::snapshot_hotplug_test
