// SPDX-License-Identifier: Apache-2.0
//
// DmaMappings on a container of VFIO: against the kernel's rules, with every call failing.

#include "vmspace/vmm/dma_mappings.hpp"

#include <linux/vfio.h>

#include <cerrno>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/vfio_container.hpp"

#include "vmm/fake_vfio.hpp"

namespace vmspace::dma_mappings_test {
namespace {

using namespace literals;
using test::fail_each_allocation;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

constexpr std::uint64_t base = 4_GiB;
constexpr std::uint32_t read_only = VFIO_DMA_MAP_FLAG_READ;
constexpr std::uint32_t read_write = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;

MemoryRegionPtr map_region(RegionOptions options) {
  if (options.size == 0) options.size = 1_MiB;
  if (options.backing.source == MemorySource::none) options.backing.source = MemorySource::anon;
  auto region = MemoryRegion::map(std::move(options), {.align = 2_MiB});
  VMSPACE_EXPECT_OK(region);
  return *region;
}

class DmaMappingsTest : public test::FakeVfio {
 protected:
  DmaMappings make() {
    auto dma = DmaMappings::create(open());
    EXPECT_THAT(dma, IsOk());
    return std::move(*dma);
  }

  static Result<void> prepare(DmaMappings& dma, const std::vector<MemorySection>& added,
                              const std::vector<MemorySection>& removed = {}) {
    return dma.prepare({.removed = removed, .added = added});
  }
  static std::uint64_t host_of(const MemorySection& section) {
    return reinterpret_cast<std::uintptr_t>(section.host_base());
  }
  static Mapped as_mapped(const MemorySection& section, std::uint32_t flags = read_write) {
    return {section.size(), host_of(section), flags};
  }

  const MemoryRegionPtr ram_region = map_region({.name = "ram0", .base = GuestAddress(base)});
  const MemorySection ram{ram_region};
  const MemorySection part{ram_region, 64_KiB, 128_KiB};
  const MemorySection rom{map_region({.name = "rom",
                                      .type = RegionType::firmware_memory,
                                      .base = GuestAddress(1_MiB),
                                      .protection = Protection::read})};
  const MemorySection bar{map_region(
      {.name = "gpu BAR1", .type = RegionType::device_memory, .base = GuestAddress(8_GiB)})};
};

TEST_F(DmaMappingsTest, MapsMemoryAtTheGuestsAddressesAndUnmapsIt) {
  {
    DmaMappings dma = make();
    EXPECT_EQ(dma.name(), "vfio");
    ASSERT_THAT(prepare(dma, {rom, part}), IsOk());
    EXPECT_THAT(mapped, IsEmpty());
    VMSPACE_ASSERT_OK(dma.add(rom));
    VMSPACE_ASSERT_OK(dma.add(part));
    VMSPACE_ASSERT_OK(dma.add(bar));
    VMSPACE_ASSERT_OK(dma.commit());
    EXPECT_THAT(mapped,
                ElementsAre(Pair(1_MiB, as_mapped(rom, read_only)),
                            Pair(base + 64_KiB, as_mapped(part)), Pair(8_GiB, as_mapped(bar))));
    VMSPACE_EXPECT_OK(dma.check_invariants());
    EXPECT_THAT(dma.unmapped_windows(), IsEmpty());
    VMSPACE_ASSERT_OK(dma.remove(rom));
    EXPECT_THAT(mapped, SizeIs(2));
  }
  EXPECT_THAT(mapped, IsEmpty());
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(DmaMappingsTest, NeedsATargetThatAnswers) {
  EXPECT_THAT(DmaMappings::create(nullptr), HasError(Errc::invalid_argument));
  has_iommu = false;
  const auto refused = DmaMappings::create(open());
  ASSERT_THAT(refused, HasError(Errc::os));
  EXPECT_THAT(refused.error().message(),
              AllOf(HasSubstr("DmaMappings::create"), HasSubstr("VFIO_IOMMU_GET_INFO")));
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(DmaMappingsTest, KnowsWhatIsMapped) {
  DmaMappings dma = make();
  const auto at = [](std::uint64_t first, std::uint64_t size) {
    return GuestRange{GuestAddress(first), size};
  };
  EXPECT_FALSE(dma.is_mapped(ram.guest_range()));
  VMSPACE_ASSERT_OK(dma.add(part));
  EXPECT_TRUE(dma.is_mapped(ram.guest_range()));
  EXPECT_TRUE(dma.is_mapped(at(base + 64_KiB, 1)));
  EXPECT_TRUE(dma.is_mapped(at(base + 192_KiB - 1, 4_KiB)));
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  EXPECT_TRUE(dma.is_mapped(at(0, most)));
  EXPECT_TRUE(dma.is_mapped(at(base, most))) << "what passes 2^64 ends there";
  EXPECT_FALSE(dma.is_mapped(at(base + 192_KiB, most)));
  EXPECT_FALSE(dma.is_mapped(at(base, 64_KiB)));
  EXPECT_FALSE(dma.is_mapped(at(base + 192_KiB, 4_KiB)));
  EXPECT_FALSE(dma.is_mapped(at(base + 64_KiB, 0)));
  VMSPACE_ASSERT_OK(dma.remove(part));
  EXPECT_FALSE(dma.is_mapped(ram.guest_range()));
}

TEST_F(DmaMappingsTest, KeepsASectionMappedUntilDevicesHaveLetGo) {
  DmaMappings dma = make();
  auto region = map_region({.name = "dimm", .base = GuestAddress(16_GiB)});
  const std::weak_ptr<const MemoryRegion> watched = region;
  VMSPACE_ASSERT_OK(dma.add(MemorySection(std::move(region))));
  fail_next(0, EINVAL);
  const auto refused = dma.remove(MemorySection(watched.lock()));
  ASSERT_THAT(refused, HasError(Errc::os));
  EXPECT_THAT(refused.error().message(),
              AllOf(HasSubstr("DmaMappings::remove: \"dimm\""), HasSubstr("VFIO_IOMMU_UNMAP_DMA")));
  ASSERT_FALSE(watched.expired());
  EXPECT_TRUE(dma.is_mapped(watched.lock()->guest_range()));
  VMSPACE_ASSERT_OK(dma.remove(MemorySection(watched.lock())));
  EXPECT_TRUE(watched.expired());
}

TEST_F(DmaMappingsTest, WhatIsMappedCanNotBeDiscarded) {
  const MemoryMapping& memory = ram_region->mapping();
  {
    DmaMappings dma = make();
    VMSPACE_ASSERT_OK(dma.add(part));
    const auto refused = memory.discard(part.region_offset(), 4_KiB);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), AllOf(HasSubstr("\"ram0\""), HasSubstr("for DMA")));
    EXPECT_THAT(memory.discard(0, memory.size()), HasError(Errc::bad_state));
    VMSPACE_EXPECT_OK(memory.discard(0, part.region_offset()));
    fail_next(0, EINVAL);
    EXPECT_THAT(dma.remove(part), HasError(Errc::os));
    EXPECT_THAT(memory.discard(part.region_offset(), 4_KiB), HasError(Errc::bad_state))
        << "devices still have it";
    VMSPACE_ASSERT_OK(dma.remove(part));
    VMSPACE_EXPECT_OK(memory.discard(0, memory.size()));

    fail_next(1, EFAULT);
    EXPECT_THAT(dma.add(part), HasError(Errc::os));
    VMSPACE_EXPECT_OK(memory.discard(0, memory.size())) << "it was refused";
    fail_next(1, EFAULT);
    VMSPACE_ASSERT_OK(dma.add(bar));
    VMSPACE_EXPECT_OK(bar.region()->mapping().discard(0, 4_KiB)) << "a window that is not mapped";
    fail_call.reset();

    VMSPACE_ASSERT_OK(dma.add(part));
    VMSPACE_ASSERT_OK(dma.add(rom));
    fail_next(0, EINVAL);  // whose is unmapped first
  }
  VMSPACE_EXPECT_OK(memory.discard(0, memory.size()));
  EXPECT_THAT(rom.region()->mapping().discard(0, 4_KiB), HasError(Errc::bad_state))
      << "devices have it, and nobody can take it from them any more";
}

TEST_F(DmaMappingsTest, PrepareRefusesWhatTheIommuCanNotMapAndNamesIt) {
  iova_ranges = {Range::of(0, 0xfedf'ffff), Range::of(0xfef0'0000, 1_TiB - 1)};
  page_sizes = 64_KiB;
  DmaMappings dma = make();
  struct Case {
    MemorySection section;
    Errc code;
    const char* text;
  };
  const auto dimm = [](std::uint64_t first, Protection protection = Protection::read_write) {
    return map_region({.name = "dimm", .base = GuestAddress(first), .protection = protection});
  };
  const Case cases[] = {
      {MemorySection(dimm(0, Protection::none)), Errc::access_denied, "must be readable"},
      {MemorySection(dimm(0, Protection::write)), Errc::access_denied, "must be readable"},
      {MemorySection(dimm(4_KiB)), Errc::misaligned, "guest address"},
      {MemorySection(dimm(0), 0, 4_KiB), Errc::misaligned, "the size"},
      {MemorySection(dimm(0xfed8'0000)), Errc::out_of_bounds,
       "[0xfed80000, 0xfee7ffff] is not within [0x0, 0xfedfffff]"},
      {MemorySection(dimm(0xfee0'0000)), Errc::out_of_bounds, "IOVA ranges"},
      {MemorySection(dimm(1_TiB - 512_KiB)), Errc::out_of_bounds,
       "is not within [0xfef00000, 0xffffffffff]"},
      {MemorySection(dimm(1_TiB)), Errc::out_of_bounds, "IOVA ranges"},
      {MemorySection(dimm(std::numeric_limits<std::uint64_t>::max() - 1_MiB + 1)),
       Errc::out_of_bounds, "0xffffffffffffffff]"},
  };
  for (const Case& c : cases) {
    const auto refused = prepare(dma, {ram, c.section});
    ASSERT_THAT(refused, HasError(c.code)) << c.text;
    EXPECT_THAT(refused.error().message(),
                AllOf(HasSubstr("DmaMappings::prepare: \"dimm\""), HasSubstr(c.text)));
    const auto added = dma.add(c.section);
    ASSERT_THAT(added, HasError(c.code)) << c.text;
    EXPECT_THAT(added.error().message(), HasSubstr("DmaMappings::add: \"dimm\""));
    EXPECT_FALSE(dma.is_mapped(c.section.guest_range()));
  }
  VMSPACE_EXPECT_OK(prepare(dma, {ram}));
  EXPECT_THAT(mapped, IsEmpty());
  VMSPACE_EXPECT_OK(dma.check_invariants());
}

TEST_F(DmaMappingsTest, PrepareCountsTheMappingsThatAreLeft) {
  mapping_limit = 2;
  DmaMappings dma = make();
  VMSPACE_EXPECT_OK(prepare(dma, {rom, ram}));
  const MemorySection dimm(map_region({.name = "dimm", .base = GuestAddress(16_GiB)}));
  VMSPACE_EXPECT_OK(prepare(dma, {rom, ram, bar})) << "a window takes what is left";
  const auto refused = prepare(dma, {rom, ram, dimm});
  ASSERT_THAT(refused, HasError(Errc::limit_exceeded));
  EXPECT_EQ(refused.error().first, Operand::number(3));
  EXPECT_EQ(refused.error().second, Operand::number(2));
  EXPECT_EQ(refused.error().text.subject(), "dimm");

  VMSPACE_ASSERT_OK(dma.add(rom));
  VMSPACE_ASSERT_OK(dma.add(ram));
  const MemorySection over(map_region({.name = "over", .base = GuestAddress(base + 64_KiB)}));
  VMSPACE_EXPECT_OK(prepare(dma, {over}, {ram}));
  EXPECT_THAT(prepare(dma, {dimm}, {ram}), HasError(Errc::limit_exceeded))
      << "removed only after the addition";
  VMSPACE_EXPECT_OK(prepare(dma, {}, {ram}));
  VMSPACE_ASSERT_OK(dma.add(bar));  // not mapped: nothing is left
  ASSERT_THAT(dma.unmapped_windows(), SizeIs(1));
  const MemorySection over_bar(map_region({.name = "dimm", .base = GuestAddress(8_GiB)}));
  EXPECT_THAT(prepare(dma, {over_bar}, {bar}), HasError(Errc::limit_exceeded))
      << "a window that is not mapped leaves nothing";
  const auto added = dma.add(dimm);
  ASSERT_THAT(added, HasError(Errc::os));
  EXPECT_THAT(added.error().message(), HasSubstr("no mapping left"));
}

TEST_F(DmaMappingsTest, AWindowThatCanNotBeMappedIsReportedAndRefusesNothing) {
  DmaMappings dma = make();
  VMSPACE_ASSERT_OK(dma.add(ram));
  fail_next(1, EFAULT);  // GET_INFO, then MAP_DMA
  VMSPACE_ASSERT_OK(dma.add(bar));
  EXPECT_EQ(calls, 2);
  fail_call.reset();
  const MemorySection dax(map_region({.name = "dax",
                                      .type = RegionType::dax_memory,
                                      .base = GuestAddress(16_GiB),
                                      .protection = Protection::none}));
  VMSPACE_ASSERT_OK(prepare(dma, {dax}));
  VMSPACE_ASSERT_OK(dma.add(dax));
  EXPECT_THAT(mapped, ElementsAre(Pair(base, as_mapped(ram))));
  EXPECT_FALSE(dma.is_mapped(bar.guest_range()));

  const std::vector<UnmappedWindow> windows = dma.unmapped_windows();
  ASSERT_THAT(windows, SizeIs(2));
  EXPECT_EQ(windows[0].section, bar);
  EXPECT_EQ(windows[0].why.os_errno, EFAULT);
  EXPECT_THAT(windows[0].why.message(),
              AllOf(HasSubstr("DmaMappings::add: \"gpu BAR1\""), HasSubstr("can't be pinned")));
  EXPECT_EQ(windows[1].section, dax);
  EXPECT_EQ(windows[1].why.code, Errc::access_denied);
  VMSPACE_EXPECT_OK(dma.check_invariants());

  EXPECT_THAT(dma.add(bar), HasError(Errc::overlap)) << "it is known";
  calls = 0;
  VMSPACE_ASSERT_OK(dma.remove(bar));
  EXPECT_EQ(calls, 0);
  VMSPACE_ASSERT_OK(dma.add(bar));
  EXPECT_TRUE(dma.is_mapped(bar.guest_range())) << "this time it worked";
  EXPECT_THAT(dma.unmapped_windows(), SizeIs(1));
}

TEST_F(DmaMappingsTest, OnlyASectionThatWasAddedIsRemoved) {
  DmaMappings dma = make();
  VMSPACE_ASSERT_OK(dma.add(ram));
  const auto twice = dma.add(part);
  ASSERT_THAT(twice, HasError(Errc::overlap));
  EXPECT_EQ(twice.error().text.subject(), "ram0");
  const MemorySection other(map_region({.name = "other", .base = GuestAddress(base)}));
  for (const MemorySection& section : {part, other, rom, MemorySection(ram_region, 0, 64_KiB)}) {
    const auto refused = dma.remove(section);
    ASSERT_THAT(refused, HasError(Errc::not_found));
    EXPECT_EQ(refused.error().text.subject(), section.name());
  }
  EXPECT_THAT(mapped, SizeIs(1));
  VMSPACE_EXPECT_OK(dma.remove(ram));
}

// Two sections come, one goes. Whichever call the kernel refuses, the step that needed it changes
// nothing, and works when it is tried again.
TEST_F(DmaMappingsTest, EveryStepIsAllOrNothingWhicheverCallIsRefused) {
  int refused = 0;
  for (int k = 0; k < 8; ++k) {
    DmaMappings dma = make();
    fail_next(k);
    const auto step = [&](const auto& call, const MemorySection& section) {
      const auto before = mapped;
      const bool was_mapped = dma.is_mapped(section.guest_range());
      const Result<void> done = call();
      if (done) return;
      ++refused;
      EXPECT_EQ(done.error().os_errno, ENOMEM);
      EXPECT_EQ(done.error().text.subject(), section.name());
      EXPECT_EQ(mapped, before);
      EXPECT_EQ(dma.is_mapped(section.guest_range()), was_mapped);
      VMSPACE_EXPECT_OK(dma.check_invariants());
      VMSPACE_EXPECT_OK(call());
    };
    step([&] { return dma.add(rom); }, rom);
    step([&] { return dma.add(ram); }, ram);
    step([&] { return dma.remove(rom); }, rom);
    EXPECT_THAT(mapped, ElementsAre(Pair(base, as_mapped(ram))));
    fail_call.reset();
    VMSPACE_EXPECT_OK(dma.remove(ram));
  }
  EXPECT_EQ(refused, 5) << "GET_INFO and MAP_DMA twice, and UNMAP_DMA";
}

TEST_F(DmaMappingsTest, EveryStepIsAllOrNothingWhenMemoryRunsOut) {
  DmaMappings dma = make();
  const std::vector<MemorySection> added{ram};
  const auto nothing = [&] {
    EXPECT_THAT(mapped, IsEmpty());
    EXPECT_FALSE(dma.is_mapped(ram.guest_range()));
    VMSPACE_EXPECT_OK(ram_region->mapping().discard(0, ram.size()));
    VMSPACE_EXPECT_OK(dma.check_invariants());
  };
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(dma.prepare({.added = added})); }, nothing), 0);
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(dma.add(ram)); }, nothing), 0);
  EXPECT_EQ(fail_each_allocation([&] { EXPECT_TRUE(dma.remove(ram)); }, [] {}), 0);
  VMSPACE_EXPECT_OK(ram_region->mapping().discard(0, ram.size()));
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(dma.add(bar)); }, nothing), 0)
      << "for a window as well";
}

TEST_F(DmaMappingsTest, AMappingThatTheKernelHasDroppedCanBeRemoved) {
  DmaMappings dma = make();
  VMSPACE_ASSERT_OK(dma.add(ram));
  mapped.clear();  // the last group left the container
  VMSPACE_EXPECT_OK(dma.remove(ram));
}

TEST_F(DmaMappingsTest, AnUnmapOfAnotherSizeIsAnErrorUntilNothingIsLeft) {
  DmaMappings dma = make();
  VMSPACE_ASSERT_OK(dma.add(ram));
  unmapped_size = 64_KiB;
  EXPECT_THAT(dma.remove(ram), HasError(Errc::corrupt));
  EXPECT_TRUE(dma.is_mapped(ram.guest_range()));
  unmapped_size.reset();
  VMSPACE_EXPECT_OK(dma.remove(ram));
}

TEST_F(DmaMappingsTest, DestructionUnmapsWhatItCanWhateverIsRefused) {
  {
    DmaMappings dma = make();
    VMSPACE_ASSERT_OK(dma.add(rom));
    VMSPACE_ASSERT_OK(dma.add(ram));
    VMSPACE_ASSERT_OK(dma.add(bar));
    fail_next(1, EINVAL);
  }
  EXPECT_THAT(mapped, ElementsAre(Pair(base, as_mapped(ram))));
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(DmaMappingsTest, WhatDevicesKeepStaysMappedAndPinnedForGood) {
  auto kept = map_region({.name = "kept", .base = GuestAddress(16_GiB)});
  auto gone = map_region({.name = "gone", .base = GuestAddress(32_GiB)});
  const std::weak_ptr<const MemoryRegion> watched[] = {kept, gone};
  {
    DmaMappings dma = make();
    VMSPACE_ASSERT_OK(dma.add(MemorySection(std::move(kept))));
    VMSPACE_ASSERT_OK(dma.add(MemorySection(std::move(gone))));
    fail_next(0, EINVAL);
  }
  EXPECT_TRUE(watched[1].expired());
  ASSERT_FALSE(watched[0].expired());
  EXPECT_THAT(watched[0].lock()->mapping().discard(0, 4_KiB), HasError(Errc::bad_state));
}

TEST_F(DmaMappingsTest, MovesWithItsSections) {
  DmaMappings first = make();
  VMSPACE_ASSERT_OK(first.add(ram));
  DmaMappings dma = std::move(first);
  EXPECT_EQ(first.name(), "dma");
  EXPECT_THAT(first.prepare({}), HasError(Errc::bad_state));
  EXPECT_THAT(first.add(rom), HasError(Errc::bad_state));
  EXPECT_THAT(first.remove(ram), HasError(Errc::bad_state));
  EXPECT_FALSE(first.is_mapped(ram.guest_range()));
  EXPECT_THAT(first.unmapped_windows(), IsEmpty());
  VMSPACE_EXPECT_OK(first.check_invariants());
  MemoryListener& listener = dma;
  VMSPACE_ASSERT_OK(listener.add(rom));
  dma = make();
  EXPECT_THAT(mapped, IsEmpty());
  first = std::move(dma);
  VMSPACE_EXPECT_OK(first.add(ram));
}

}  // namespace
}  // namespace vmspace::dma_mappings_test
