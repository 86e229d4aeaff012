// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation that a call on a VmMemory makes: map, tables and logs are as
// they were.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::vm_memory_faults_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;
using test::fail_each_allocation;

class Gate final : public VmGate {
 public:
  Result<void> pause(const MemoryChange&) override { return {}; }
  void resume() noexcept override {}
};

/// A listener whose remove() takes no memory, as it should be. (A MemoryRecorder writes a line.)
class Table final : public MemoryListener {
 public:
  std::string_view name() const noexcept override { return "table"; }
  Result<void> prepare(const MemoryChange& change) override {
    sections_.reserve(sections_.size() + change.added.size());
    return {};
  }
  Result<void> add(const MemorySection& section) override {
    const auto copy = std::make_unique<MemorySection>(section);  // as if a record were needed
    sections_.push_back(*copy);
    return {};
  }
  Result<void> remove(const MemorySection& section) override {
    EXPECT_EQ(std::erase(sections_, section), 1u);
    return {};
  }
  Result<void> log_sync(const MemorySection& section) override {
    for (const std::uint64_t offset : written)
      section.region()->dirty().mark(offset, 1);
    return {};
  }

  bool equals(const GuestMemory& memory) const {
    std::vector<MemorySection> all(memory.regions().begin(), memory.regions().end());
    return std::ranges::is_permutation(all, sections_);
  }
  bool empty() const { return sections_.empty(); }

  std::vector<std::uint64_t> written;

 private:
  std::vector<MemorySection> sections_;
};

class VmMemoryFaults : public testing::Test {
 protected:
  void SetUp() override {
    VMSPACE_ASSERT_OK(memory.set_gate(std::make_shared<Gate>()));
    VMSPACE_ASSERT_OK(memory.add_listener(first));
    VMSPACE_ASSERT_OK(memory.add_listener(second));
  }
  void TearDown() override { expect_sound(); }

  static RegionOptions region(std::uint64_t base, const char* name = "dimm") {
    return {.name = name,
            .base = GuestAddress(base),
            .size = 64_KiB,
            .backing = {.source = MemorySource::shmem}};
  }

  void expect_sound() const {
    VMSPACE_EXPECT_OK(memory.check_invariants());
    const auto now = memory.map();
    EXPECT_TRUE(first->equals(now->memory));
    EXPECT_TRUE(second->equals(now->memory));
    EXPECT_TRUE(memory.unsettled().value().empty());
  }

  /// Every allocation of the call fails once; nothing has changed each time.
  template <typename Call>
  void expect_all_or_nothing(Call call) {
    const auto before = memory.map();
    const int failures = fail_each_allocation(
        [&] {
          const auto done = call();
          test::granted = -1;
          if (!done && done.error().code == Errc::inconsistent) {
            // A listener found no memory to take back what it had let go; later it does.
            VMSPACE_EXPECT_OK(memory.collect());
            throw std::bad_alloc();
          }
          VMSPACE_EXPECT_OK(done);
        },
        [&] {
          EXPECT_EQ(memory.map(), before);
          expect_sound();
        });
    EXPECT_GT(failures, 0);
    expect_sound();
  }

  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  const std::shared_ptr<Table> first = std::make_shared<Table>();
  const std::shared_ptr<Table> second = std::make_shared<Table>();
};

TEST_F(VmMemoryFaults, PluggingIsAllOrNothing) {
  expect_all_or_nothing([&]() -> Result<void> {
    VMSPACE_TRY(memory.plug(region(4_GiB)));
    return {};
  });
}

TEST_F(VmMemoryFaults, UnpluggingIsAllOrNothing) {
  const auto description = memory.plug(region(4_GiB)).value()->shared_description();
  expect_all_or_nothing([&]() -> Result<void> {
    return memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
      VMSPACE_TRY(draft.remove_region(description));
      return {};
    });
  });
}

TEST_F(VmMemoryFaults, ADisruptiveChangeUnderALogIsAllOrNothing) {
  const auto a = memory.plug(region(4_GiB, "a")).value()->shared_description();
  const auto b = memory.plug(region(5_GiB, "b")).value()->shared_description();
  auto log = memory.start_dirty_log().value();
  VMSPACE_ASSERT_OK(log.harvest());
  VMSPACE_ASSERT_OK(memory.map()->memory.write(a->base(), std::uint64_t{7}));
  expect_all_or_nothing([&]() -> Result<void> {
    return memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
      VMSPACE_TRY(
          draft.move_regions({{.region = a, .to = b->base()}, {.region = b, .to = a->base()}}));
      VMSPACE_TRY(draft.insert_region(region(6_GiB, "c")));
      return {};
    });
  });
  EXPECT_EQ(memory.map()->memory.read<std::uint64_t>(b->base()), std::uint64_t{7});
}

TEST_F(VmMemoryFaults, ListenersComeAndGoWhollyOrNot) {
  VMSPACE_ASSERT_OK(memory.plug(region(4_GiB, "a")));
  VMSPACE_ASSERT_OK(memory.plug(region(5_GiB, "b")));
  const auto late = std::make_shared<Table>();
  const auto count = [&] { return memory.listeners().value().size(); };
  fail_each_allocation(
      [&] {
        const auto done = memory.add_listener(late);
        test::granted = -1;
        VMSPACE_EXPECT_OK(done);
      },
      [&] {
        EXPECT_TRUE(late->empty());
        EXPECT_EQ(count(), 2u);
      });
  fail_each_allocation(
      [&] {
        const auto done = memory.remove_listener(*late);
        test::granted = -1;
        VMSPACE_EXPECT_OK(done);
      },
      [&] {
        EXPECT_TRUE(late->equals(memory.map()->memory));
        EXPECT_EQ(count(), 3u);
      });
  EXPECT_TRUE(late->empty());
}

TEST_F(VmMemoryFaults, AHarvestLosesNothing) {
  VMSPACE_ASSERT_OK(memory.plug(region(4_GiB)));
  auto log = memory.start_dirty_log().value();
  auto other = memory.start_dirty_log().value();
  const GuestRange page{GuestAddress(4_GiB), 4096};
  VMSPACE_ASSERT_OK(memory.map()->memory.write(page.base, std::uint64_t{7}));
  first->written = {8192};
  const std::vector<GuestRange> expected = {page, {GuestAddress(4_GiB + 8192), 4096}};
  fail_each_allocation(
      [&] {
        const auto found = log.harvest();
        test::granted = -1;
        EXPECT_EQ(found, expected);
      },
      [] {});
  first->written.clear();
  EXPECT_EQ(other.harvest(), expected);
}

TEST_F(VmMemoryFaults, RetiringTakesNoMemory) {
  const auto description = memory.plug(region(4_GiB)).value()->shared_description();
  RegionList list{description};
  test::granted = 0;
  memory.retire(std::move(list));
  test::granted = -1;
  expect_all_or_nothing([&] { return memory.collect(); });
  EXPECT_TRUE(memory.map()->memory.regions().empty());
}

}  // namespace
}  // namespace vmspace::vm_memory_faults_test
