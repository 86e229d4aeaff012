// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/lazy_restore.hpp"

#include "vmm/vhost_user_front_support.hpp"

namespace vmspace::vhost_user_memory_test {
namespace {

using namespace test;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Property;

/// Whether both processes' views of a region are one memory.
bool is_shared(const MemorySection& section, const VhostUserBackendMemory& backend) {
  static std::uint64_t value = 0x1234;
  std::memcpy(section.host_base() + 8, &++value, sizeof value);
  const auto map = backend.map().snapshot();
  const auto seen = map->memory.read<std::uint64_t>(GuestAddress(section.base().value() + 8));
  return seen && *seen == value;
}

class VhostUserMemoryModes : public testing::TestWithParam<std::uint64_t> {};

TEST_P(VhostUserMemoryModes, TheDeviceHasWhatWasAddedAndNotWhatWasRemoved) {
  SocketPair pair;
  Backend device(std::move(pair.back));
  auto memory = memory_for(pair, with(GetParam()));
  const MemorySection low(shared_ram(0, 64_KiB));
  const MemorySection high(shared_ram(4_GiB, 128_KiB));
  const MemorySection middle(high.region(), 64_KiB, 32_KiB);

  VMSPACE_ASSERT_OK(memory->prepare({.added = std::span(&low, 1)}));
  VMSPACE_ASSERT_OK(memory->add(low));
  VMSPACE_ASSERT_OK(memory->add(middle));
  VMSPACE_ASSERT_OK(memory->commit());
  EXPECT_EQ(memory->used(), 2U);
  EXPECT_TRUE(is_shared(low, device.memory));
  EXPECT_TRUE(is_shared(middle, device.memory));
  EXPECT_EQ(device.memory.map().snapshot()->memory.total_size(), 96_KiB);
  {
    const auto paused = device.pause();
    VMSPACE_EXPECT_OK(device.memory.check_invariants());
  }

  // A ring in the second region, as the device is told of it and finds it.
  const GuestRange ring{.base = GuestAddress(4_GiB + 64_KiB + 0x100), .size = 0x100};
  const auto user = VMSPACE_ASSERT_OK(memory->user_address(ring));
  EXPECT_EQ(user, reinterpret_cast<std::uintptr_t>(middle.host_base()) + 0x100);
  {
    const auto paused = device.pause();
    EXPECT_THAT(device.memory.guest_address(user, ring.size), IsOkAndHolds(ring.base));
  }

  VMSPACE_ASSERT_OK(memory->remove(low));
  VMSPACE_ASSERT_OK(memory->commit());
  EXPECT_EQ(memory->used(), 1U);
  EXPECT_EQ(device.memory.map().snapshot()->memory.total_size(), 32_KiB);
  VMSPACE_ASSERT_OK(memory->remove(middle));
  VMSPACE_ASSERT_OK(memory->commit());
  EXPECT_THAT(device.memory.map().snapshot()->memory.regions(), IsEmpty());
  EXPECT_FALSE(memory->is_gone());
  memory.reset();
  pair.front = {};
  device.join();
  EXPECT_THAT(device.errors, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Features, VhostUserMemoryModes,
                         testing::Values(0, acks, slots, slots | acks));

/// A snapshot of memory that was never written.
class Zeros final : public PageSource {
 public:
  Result<void> read(GuestAddress, std::span<std::byte> to) override {
    std::memset(to.data(), 0, to.size());
    return {};
  }
  Result<GuestRange> next_data(GuestRange range) override { return range; }
};

// The device would find pages missing that have not come yet.
TEST(VhostUserMemory, MemoryIsNotSharedWhileItIsRestored) {
  const MemorySection ram(shared_ram(0, 64_KiB));
  auto restore = LazyRestore::start(*GuestMemory::from_regions({ram.region()}),
                                    std::make_shared<Zeros>(), {.background = false});
  if (!restore &&
      (restore.error().code == Errc::unsupported || restore.error().code == Errc::access_denied))
    GTEST_SKIP() << restore.error().message();
  ASSERT_TRUE(restore) << restore.error().message();
  SocketPair pair;
  Backend device(std::move(pair.back));
  auto memory = memory_for(pair, with(slots | acks));
  for (const auto& refused : {memory->prepare({.added = std::span(&ram, 1)}), memory->add(ram)}) {
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("LazyRestore"));
  }
  VMSPACE_EXPECT_OK(memory->commit());
  EXPECT_EQ(memory->used(), 0U);
  restore->resume_background();
  VMSPACE_ASSERT_OK(restore->wait(long_enough));
  VMSPACE_ASSERT_OK(memory->add(ram));
  VMSPACE_ASSERT_OK(memory->commit());
  EXPECT_TRUE(is_shared(ram, device.memory));
  memory.reset();
  pair.front = {};
  device.join();
  EXPECT_THAT(device.errors, IsEmpty());
}

TEST(VhostUserMemory, ATableIsSentOnlyWhenItHasChanged) {
  SocketPair pair;
  Backend device(std::move(pair.back));
  auto memory = memory_for(pair, with(acks));
  const MemorySection one(shared_ram(0, 64_KiB));
  const MemorySection two(shared_ram(64_KiB, 64_KiB));
  VMSPACE_ASSERT_OK(memory->commit());
  VMSPACE_ASSERT_OK(memory->add(one));
  VMSPACE_ASSERT_OK(memory->add(two));
  VMSPACE_ASSERT_OK(memory->commit());
  // An addition, and then a removal, that are taken back before the device hears of them.
  VMSPACE_ASSERT_OK(memory->remove(two));
  VMSPACE_ASSERT_OK(memory->commit());
  VMSPACE_ASSERT_OK(memory->add(two));
  VMSPACE_ASSERT_OK(memory->remove(two));
  VMSPACE_ASSERT_OK(memory->commit());
  VMSPACE_ASSERT_OK(memory->remove(one));
  VMSPACE_ASSERT_OK(memory->add(one));
  VMSPACE_ASSERT_OK(memory->commit());
  memory.reset();
  pair.front = {};
  device.join();
  EXPECT_THAT(device.requests, ElementsAre(vhost_user::set_mem_table, vhost_user::set_mem_table));
}

TEST(VhostUserMemory, OnlyMemoryThatADeviceMayReachIsSent) {
  const SocketPair pair;  // nobody answers: nothing may be sent
  auto memory = memory_for(pair, with(acks));
  const MemorySection firmware(shared_ram(0, 64_KiB, {.type = RegionType::firmware_memory}));
  const MemorySection bar(shared_ram(64_KiB, 64_KiB, {.type = RegionType::device_memory}));
  const MemorySection rom(shared_ram(128_KiB, 64_KiB, {.protection = Protection::read}));
  const MemorySection anonymous_rom(
      shared_ram(192_KiB, 64_KiB,
                 {.type = RegionType::firmware_memory, .backing = {.source = MemorySource::anon}}));
  for (const MemorySection& section : {firmware, bar, rom, anonymous_rom}) {
    VMSPACE_EXPECT_OK(memory->prepare({.added = std::span(&section, 1)}));
    VMSPACE_EXPECT_OK(memory->add(section));
    VMSPACE_EXPECT_OK(memory->commit());
    VMSPACE_EXPECT_OK(memory->remove(section));
    VMSPACE_EXPECT_OK(memory->commit());
  }
  EXPECT_EQ(memory->used(), 0U);
}

TEST(VhostUserMemory, MemoryThatCanNotBeSharedIsRefused) {
  const SocketPair pair;
  auto memory = memory_for(pair, with(acks));
  const Descriptor file = memory_file(64_KiB);
  const MemorySection sections[] = {
      MemorySection(shared_ram(0, 64_KiB, {.backing = {.source = MemorySource::anon}})),
      MemorySection(shared_ram(0, 64_KiB,
                               {.backing = {.source = MemorySource::file,
                                            .fd = file.value(),
                                            .sharing = Sharing::map_private}})),
  };
  for (const MemorySection& section : sections) {
    EXPECT_THAT(memory->prepare({.added = std::span(&section, 1)}),
                HasErrorThat(Property(&Error::message, HasSubstr("\"net0\": unsupported"))));
    EXPECT_THAT(memory->add(section), HasError(Errc::unsupported));
  }
  EXPECT_EQ(memory->used(), 0U);
  EXPECT_FALSE(memory->is_gone());
}

TEST(VhostUserMemory, MoreRegionsThanTheDeviceCanHaveAreRefusedBeforehand) {
  SocketPair pair;
  Backend device(std::move(pair.back), {.max_regions = 2});
  auto memory = memory_for(pair, with(slots | acks));
  EXPECT_EQ(memory->limit(), 2U);
  const MemorySection sections[] = {MemorySection(shared_ram(0, 64_KiB)),
                                    MemorySection(shared_ram(64_KiB, 64_KiB)),
                                    MemorySection(shared_ram(128_KiB, 64_KiB))};
  const std::span all(sections);
  EXPECT_THAT(memory->prepare({.added = all}), HasError(Errc::limit_exceeded));
  VMSPACE_EXPECT_OK(memory->prepare({.added = all.first(2)}));
  VMSPACE_EXPECT_OK(memory->add(all[0]));
  VMSPACE_EXPECT_OK(memory->add(all[1]));
  EXPECT_THAT(memory->add(all[2]), HasError(Errc::limit_exceeded));
  // The third comes before the first goes, unless it needs its addresses.
  EXPECT_THAT(memory->prepare({.removed = all.first(1), .added = all.last(1)}),
              HasError(Errc::limit_exceeded));
  const MemorySection instead(shared_ram(0, 128_KiB));
  VMSPACE_EXPECT_OK(memory->prepare(
      {.removed = all.first(2), .added = std::span(&instead, 1), .disruptive = true}));
  memory.reset();
  pair.front = {};
  device.join();
  EXPECT_THAT(device.errors, IsEmpty());
}

TEST(VhostUserMemory, ATableHoldsEightRegions) {
  const SocketPair pair;
  auto memory = memory_for(pair, with(acks));
  EXPECT_EQ(memory->limit(), 8U);
  const MemoryRegionPtr region = shared_ram(0, 64_KiB);
  for (std::uint64_t i = 0; i < 8; ++i)
    VMSPACE_ASSERT_OK(memory->add(MemorySection(region, i * 4_KiB, 4_KiB)));
  EXPECT_THAT(memory->add(MemorySection(region, 32_KiB, 4_KiB)), HasError(Errc::limit_exceeded));
  will_reply(pair, vhost_user::set_mem_table, 0);
  VMSPACE_ASSERT_OK(memory->commit());
  const auto sent = VMSPACE_ASSERT_OK(VhostUserMessage::receive(pair.back.value(), long_enough));
  EXPECT_TRUE(sent.needs_reply());
  EXPECT_EQ(sent.fds().size(), 8U);
  const auto table = VMSPACE_ASSERT_OK(detail::decode_table(sent.payload(), "test"));
  EXPECT_EQ(table.all()[7].file_offset, 28_KiB);
}

TEST(VhostUserMemory, SectionsThatOverlapOrWereNeverAddedAreRefused) {
  SocketPair pair;
  Backend device(std::move(pair.back));
  auto memory = memory_for(pair, with(slots | acks));
  const MemorySection one(shared_ram(0, 64_KiB));
  const MemorySection part(one.region(), 0, 32_KiB);
  VMSPACE_ASSERT_OK(memory->add(one));
  EXPECT_THAT(memory->add(one), HasError(Errc::overlap));
  EXPECT_THAT(memory->add(part), HasError(Errc::overlap));
  EXPECT_THAT(memory->remove(part), HasError(Errc::not_found));
  EXPECT_EQ(memory->used(), 1U);
  EXPECT_TRUE(is_shared(one, device.memory));
  memory.reset();
  pair.front = {};
}

// A region that is relocated is added before it is removed.
TEST(VhostUserMemory, MemoryIsInTwoPlacesOnlyUnderTheGuestsAddresses) {
  const SocketPair pair;  // nobody answers: nothing may be sent
  const MemorySection before(shared_ram(0, 64_KiB));
  const auto region = before.region()->at(GuestAddress(4_GiB));
  ASSERT_THAT(region, IsOk());
  const MemorySection after(*region);
  VhostUserMemoryOptions options = with(acks);
  auto memory = memory_for(pair, options);
  VMSPACE_ASSERT_OK(memory->add(before));
  const auto refused = memory->add(after);
  ASSERT_THAT(refused, HasError(Errc::overlap));
  EXPECT_THAT(refused.error().message(), HasSubstr("VhostUserAddresses::guest"));
  EXPECT_EQ(memory->used(), 1U);
  VMSPACE_ASSERT_OK(memory->remove(before));
  VMSPACE_EXPECT_OK(memory->add(after));

  options.addresses = VhostUserAddresses::guest;
  memory = memory_for(pair, options);
  VMSPACE_ASSERT_OK(memory->add(before));
  VMSPACE_EXPECT_OK(memory->add(after));
}

TEST(VhostUserMemory, UserAddressesCanBeThoseOfTheGuest) {
  SocketPair pair;
  Backend device(std::move(pair.back));
  auto options = with(slots | acks);
  options.addresses = VhostUserAddresses::guest;
  auto memory = memory_for(pair, options);
  const MemorySection ram(shared_ram(1_GiB, 64_KiB));
  VMSPACE_ASSERT_OK(memory->add(ram));
  EXPECT_THAT(memory->user_address({GuestAddress(1_GiB + 16), 16}), IsOkAndHolds(1_GiB + 16));
  {
    const auto paused = device.pause();
    EXPECT_THAT(device.memory.guest_address(1_GiB + 16, 16),
                IsOkAndHolds(GuestAddress(1_GiB + 16)));
  }
  EXPECT_THAT(memory->user_address({GuestAddress(1_GiB), 0}), HasError(Errc::not_found));
  EXPECT_THAT(memory->user_address({GuestAddress(1_GiB), 64_KiB + 1}), HasError(Errc::not_found));
  EXPECT_THAT(memory->user_address({GuestAddress(UINT64_MAX), 1}), HasError(Errc::not_found));
  memory.reset();
  pair.front = {};

  options.addresses = static_cast<VhostUserAddresses>(2);
  EXPECT_THAT(VhostUserMemory::create(SocketPair().front.value(), options),
              HasError(Errc::invalid_argument));
}

// Logs.

TEST(VhostUserMemory, TheDeviceMarksWhatItWritesInTheSharedLog) {
  for (const std::uint64_t features : {slots | acks | logs, logs}) {
    SocketPair pair;
    Backend device(std::move(pair.back));
    auto memory = memory_for(pair, with(features));
    const MemorySection ram(shared_ram(1_MiB, 1_MiB));
    VMSPACE_ASSERT_OK(memory->add(ram));
    VMSPACE_ASSERT_OK(memory->commit());
    EXPECT_EQ(memory->log_size(), 64U);  // 512 pages
    EXPECT_FALSE(device.memory.map().snapshot()->log.is_on());

    const SharedLog log(4_KiB);
    VMSPACE_ASSERT_OK(memory->share_log({.fd = log.file.value(), .size = 64}));
    const auto map = device.memory.map().snapshot();
    EXPECT_EQ(map->log.size(), 64U);
    VMSPACE_EXPECT_OK(map->memory.write(GuestAddress(1_MiB + 5 * 4_KiB), std::uint64_t{1}));
    VMSPACE_EXPECT_OK(map->log.mark({GuestAddress(1_MiB + 5 * 4_KiB), 8}));
    EXPECT_EQ(log.bits[256 / 8], 1U << 5U);

    // Memory beyond the log needs a larger one first.
    const MemorySection more(shared_ram(2_MiB, 64_KiB));
    EXPECT_THAT(memory->prepare({.added = std::span(&more, 1)}), HasError(Errc::out_of_bounds));
    EXPECT_THAT(memory->add(more), HasError(Errc::out_of_bounds));
    memory->forget_log();
    VMSPACE_EXPECT_OK(memory->prepare({.added = std::span(&more, 1)}));
    EXPECT_FALSE(memory->is_gone());
    memory.reset();
    pair.front = {};
  }
}

TEST(VhostUserMemory, ALogThatCouldNotHoldTheMemoryIsNotSent) {
  const SocketPair pair;  // nobody answers: nothing may be sent
  const SharedLog log(8_KiB);
  {
    auto memory = memory_for(pair, with(acks));
    EXPECT_THAT(memory->share_log({.fd = log.file.value(), .size = 4_KiB}),
                HasError(Errc::unsupported));
  }
  auto memory = memory_for(pair, with(acks | logs));
  EXPECT_EQ(memory->log_size(), 0U);
  VMSPACE_ASSERT_OK(memory->add(MemorySection(shared_ram(128_MiB, 64_KiB))));
  EXPECT_EQ(memory->log_size(), 4_KiB + 8);
  const int fd = log.file.value();
  const auto share = [&](std::uint64_t size, std::uint64_t offset) {
    return memory->share_log({.fd = fd, .size = size, .offset = offset});
  };
  EXPECT_THAT(share(0, 0), HasError(Errc::zero_size));
  EXPECT_THAT(share(8_KiB, 512), HasError(Errc::misaligned));
  EXPECT_THAT(share(8_KiB, 4_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(share(8_KiB + 1, 0), HasError(Errc::out_of_bounds));
  EXPECT_THAT(share(UINT64_MAX, 4_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(share(8_KiB, UINT64_MAX - 4_KiB + 1), HasError(Errc::out_of_bounds));
  EXPECT_THAT(share(4_KiB, 0), HasError(Errc::out_of_bounds));  // too short for the memory
  EXPECT_THAT(memory->share_log({.fd = -1, .size = 8_KiB}), HasError(Errc::os));
  EXPECT_THAT(memory->share_log({.fd = pair.front.value(), .size = 8_KiB}),
              HasError(Errc::invalid_argument));
  EXPECT_FALSE(memory->is_gone());
}

TEST(VhostUserMemory, ALogThatCanBeIsSealed) {
  for (const unsigned flags : {MFD_CLOEXEC | MFD_ALLOW_SEALING, MFD_CLOEXEC | 0U}) {
    const SocketPair pair;
    const detail::Descriptor log(::memfd_create("log", flags));
    ASSERT_EQ(::ftruncate(log.value(), 4_KiB), 0);
    auto memory = memory_for(pair, with(logs));
    EXPECT_FALSE(memory->share_log({.fd = log.value(), .size = 8_KiB}));
    EXPECT_EQ(::fcntl(log.value(), F_GET_SEALS) & F_SEAL_SHRINK, 0) << "it was refused";
    send_request(pair.back.value(), vhost_user::set_log_base, {}, {}, vhost_user::is_reply);
    VMSPACE_EXPECT_OK(memory->share_log({.fd = log.value(), .size = 4_KiB}));
    const bool is_sealed = (::fcntl(log.value(), F_GET_SEALS) & F_SEAL_SHRINK) != 0;
    EXPECT_EQ(is_sealed, (flags & MFD_ALLOW_SEALING) != 0);
  }
}

TEST(VhostUserMemory, TheReplyToALogMayBeEmptyOrHoldAnything) {
  for (const bool empty : {true, false}) {
    const SocketPair pair;
    const SharedLog log(4_KiB);
    auto memory = memory_for(pair, with(logs));
    send_request(pair.back.value(), vhost_user::set_log_base,
                 empty ? std::vector<std::byte>() : bytes_of(std::uint64_t{4_KiB}), {},
                 vhost_user::is_reply);
    VMSPACE_EXPECT_OK(memory->share_log({.fd = log.file.value(), .size = 4_KiB}));
  }
}

}  // namespace
}  // namespace vmspace::vhost_user_memory_test
