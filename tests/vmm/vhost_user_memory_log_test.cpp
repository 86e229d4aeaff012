// SPDX-License-Identifier: Apache-2.0
//
// What a vhost-user device writes, in the dirty log of the VM.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "vmspace/vmm/vhost_user_log.hpp"
#include "vmspace/vmm/vm_dirty_log.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "host/forked_child.hpp"
#include "vmm/vhost_user_front_support.hpp"

namespace vmspace::vhost_user_memory_log_test {
namespace {

using namespace test;
using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t page = 4_KiB;

GuestRange pages(std::uint64_t address, std::uint64_t count = 1) {
  return {.base = GuestAddress(address), .size = count * page};
}

TEST(VhostUserLogTake, GivesEachPageOfTheRangeOnce) {
  const SharedLog shared(4_KiB);
  const auto log = VhostUserLog::map({.fd = shared.file.value(), .size = 20});  // 160 pages
  ASSERT_THAT(log, IsOk());
  const auto take = [&](std::uint64_t first, std::uint64_t count) {
    std::vector<GuestRange> taken;
    log->take(pages(first * page, count), [&](const GuestRange& run) { taken.push_back(run); });
    return taken;
  };
  EXPECT_THAT(take(0, 1000), IsEmpty());
  for (const std::uint64_t each : {0u, 3u, 4u, 62u, 63u, 64u, 100u, 159u})
    VMSPACE_ASSERT_OK(log->mark(pages(each * page)));
  EXPECT_THAT(take(4, 60), ElementsAre(pages(4 * page), pages(62 * page, 2)));
  EXPECT_THAT(take(4, 60), IsEmpty());
  EXPECT_THAT(take(64, 1), ElementsAre(pages(64 * page)));
  shared.bits[20] = 0xff;  // somebody else's
  EXPECT_THAT(take(0, 1000),
              ElementsAre(pages(0), pages(3 * page), pages(100 * page), pages(159 * page)));
  EXPECT_EQ(shared.bits[20], 0xff);
  EXPECT_THAT(take(160, 64), IsEmpty()) << "beyond its end";
  EXPECT_THAT(take(0, 0), IsEmpty());
  VhostUserLog().take(pages(0), [](const GuestRange&) { FAIL() << "there is no log"; });
}

class VhostUserDirtyLog : public testing::TestWithParam<std::uint64_t> {
 protected:
  static constexpr std::uint64_t dimm_base = 4_GiB;

  void SetUp() override {
    VMSPACE_ASSERT_OK(memory.add_listener(front, {.required = false}));
    VMSPACE_ASSERT_OK(memory.plug(ram("ram", 0, 1_MiB)));
  }
  void TearDown() override {
    if (front == nullptr) return;
    static_cast<void>(memory.remove_listener(*front));
    disconnect();
  }
  void disconnect() {
    pair.front = {};
    front.reset();
  }

  static RegionOptions ram(const char* name, std::uint64_t base, std::uint64_t size) {
    return {.name = name,
            .base = GuestAddress(base),
            .size = size,
            .backing = {.source = MemorySource::shmem}};
  }
  Result<void> share(const SharedLog& log) const {
    return front->share_log({.fd = log.file.value(), .size = log.mapped});
  }
  /// What a thread of the device does for a request of the guest.
  void device_writes(std::uint64_t address) {
    const auto map = device.memory.map().snapshot();
    VMSPACE_EXPECT_OK(map->memory.write(GuestAddress(address), std::uint64_t{1}));
    VMSPACE_EXPECT_OK(map->log.mark({GuestAddress(address), 8}));
  }

  SocketPair pair;
  Backend device{std::move(pair.back)};
  // By the guest's addresses, since a region that moves is there twice for a moment.
  static VhostUserMemoryOptions options() {
    VhostUserMemoryOptions all = with(GetParam() | logs);
    all.addresses = VhostUserAddresses::guest;
    return all;
  }
  std::shared_ptr<VhostUserMemory> front = memory_for(pair, options());
  VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  const SharedLog small{page};
  const SharedLog large{256_KiB};  // up to 8 GiB
};

INSTANTIATE_TEST_SUITE_P(Features, VhostUserDirtyLog, testing::Values(0, slots | acks));

TEST_P(VhostUserDirtyLog, IncludesWhatTheDeviceHasWritten) {
  VMSPACE_ASSERT_OK(share(small));
  auto log = memory.start_dirty_log().value();
  EXPECT_THAT(*log.harvest(), IsEmpty());
  device_writes(3 * page);
  device_writes(255 * page);
  EXPECT_THAT(*log.harvest(), ElementsAre(pages(3 * page), pages(255 * page)));
  EXPECT_THAT(*log.harvest(), IsEmpty());
  device_writes(3 * page);
  VMSPACE_ASSERT_OK(log.stop());
  auto next = memory.start_dirty_log().value();
  EXPECT_THAT(*next.harvest(), IsEmpty()) << "that was for the log before";
}

TEST_P(VhostUserDirtyLog, IsNotTakenByAForkedChild) {
  VMSPACE_ASSERT_OK(share(small));
  std::optional<VmDirtyLog> log = memory.start_dirty_log().value();
  device_writes(3 * page);
  in_a_child([&] {
    log.reset();
    memory = VmMemory::create(memory.map()->space.layout()).value();  // the old one goes
    front.reset();
  });
  EXPECT_FALSE(front->is_gone());
  EXPECT_THAT(*log->harvest(), ElementsAre(pages(3 * page)));
  VMSPACE_EXPECT_OK(memory.plug(ram("more", 2_MiB, 1_MiB)));
}

TEST_P(VhostUserDirtyLog, NeedsALogThatTheDeviceShares) {
  const auto refused = memory.start_dirty_log();
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(),
              testing::AllOf(HasSubstr("\"net0\""), HasSubstr("VHOST_F_LOG_ALL")));
  VMSPACE_ASSERT_OK(share(small));
  VMSPACE_EXPECT_OK(memory.start_dirty_log());
}

TEST_P(VhostUserDirtyLog, AGrowingMachineNeedsALargerLogAndLosesNothing) {
  VMSPACE_ASSERT_OK(share(small));
  auto log = memory.start_dirty_log().value();
  const auto refused = memory.plug(ram("dimm", dimm_base, 1_MiB));
  ASSERT_THAT(refused, HasError(Errc::out_of_bounds));
  EXPECT_THAT(refused.error().message(), HasSubstr("share a larger one first"));
  device_writes(page);  // noted in the old log
  VMSPACE_ASSERT_OK(share(large));
  device_writes(2 * page);
  const auto dimm = memory.plug(ram("dimm", dimm_base, 1_MiB));
  ASSERT_THAT(dimm, IsOk());
  EXPECT_THAT(*log.harvest(), ElementsAre(pages(page, 2), pages(dimm_base, 256)));
  device_writes(dimm_base);
  device_writes(dimm_base + 255 * page);
  EXPECT_THAT(*log.harvest(), ElementsAre(pages(dimm_base), pages(dimm_base + 255 * page)));

  device_writes(dimm_base + 8 * page);
  const std::uint64_t to = dimm_base + 2_MiB;
  VMSPACE_ASSERT_OK(memory.relocate((*dimm)->shared_description(), GuestAddress(to)));
  EXPECT_THAT(*log.harvest(), ElementsAre(pages(to, 256)));
  device_writes(to + page);
  const DirtyBitmap& dirty = (*dimm)->dirty();  // shared with the moved region
  VMSPACE_ASSERT_OK(memory.remove_listener(*front));
  EXPECT_THAT(dirty.peek(), ElementsAre(DirtyRange{page, page})) << "fetched before it goes";
}

TEST_P(VhostUserDirtyLog, HasWhatADeviceWroteBeforeItDied) {
  VMSPACE_ASSERT_OK(share(large));
  auto log = memory.start_dirty_log().value();
  device_writes(5 * page);
  ASSERT_EQ(::shutdown(pair.front.value(), SHUT_RDWR), 0);
  device.join();
  VMSPACE_ASSERT_OK(memory.plug(ram("dimm", dimm_base, 1_MiB)));  // goes on without it
  EXPECT_TRUE(front->is_gone());
  const auto refused = front->log_start(MemorySection(memory.map()->memory.regions().front()));
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("shut down"));
  EXPECT_THAT(*log.harvest(), ElementsAre(pages(5 * page), pages(dimm_base, 256)));
}

}  // namespace
}  // namespace vmspace::vhost_user_memory_log_test
