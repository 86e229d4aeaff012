// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/handover.hpp"

#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <string>

#include "vmspace/memory/dirty_tracking.hpp"

#include "snapshot/handover_support.hpp"

namespace vmspace::handover_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Property;
using namespace test;

TEST(Handover, GivesTheSameGuestToTheReceiver) {
  const Handover guest = sample_guest();
  const Outcome outcome = hand_over(guest);
  ASSERT_THAT(outcome.sent, IsOk());
  ASSERT_THAT(outcome.received, IsOk());
  const Handover& taken = *outcome.received;
  expect_sample(taken);
  EXPECT_EQ(taken.space.layout(), guest.space.layout());
  ASSERT_EQ(taken.space.size(), guest.space.size());
  EXPECT_TRUE(std::ranges::equal(taken.space, guest.space,
                                 [](const auto& a, const auto& b) { return *a == *b; }));
  ASSERT_EQ(taken.memory.regions().size(), 3U);
  for (const auto& region : taken.memory.regions()) {
    EXPECT_EQ(region->shared_description().get(), taken.space.find_region(region->base()));
    EXPECT_TRUE(region->backing().is_discardable());
    EXPECT_FALSE(region->dirty().is_enabled());
  }
}

TEST(Handover, TheMemoryIsOneAndNotACopy) {
  const Handover guest = sample_guest();
  const Outcome outcome = hand_over(guest);
  ASSERT_THAT(outcome.received, IsOk());
  ASSERT_THAT(outcome.received->memory.write(GuestAddress(page), std::uint64_t{42}), IsOk());
  EXPECT_THAT(guest.memory.read<std::uint64_t>(GuestAddress(page)), IsOkAndHolds(42U));
}

TEST(Handover, AnotherProcessReadsAndWritesTheMemory) {
  const Handover guest = sample_guest();
  Ends ends;
  const pid_t child = ::fork();
  if (child == 0) {
    ends.sender.close();
    const auto taken = receive_handover(ends.receiver.get());
    if (!taken) ::_exit(1);
    expect_sample(*taken);
    if (!taken->memory.write(GuestAddress(page), std::uint64_t{7})) ::_exit(2);
    ::_exit(::testing::Test::HasFailure() ? 3 : 0);
  }
  ends.receiver.close();
  ASSERT_THAT(send_handover(ends.sender.get(), guest), IsOk());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(guest.memory.read<std::uint64_t>(GuestAddress(page)), IsOkAndHolds(7U));
}

TEST(Handover, WhatWasReceivedCanBeHandedOn) {
  const Outcome first = hand_over(sample_guest());
  ASSERT_THAT(first.received, IsOk());
  const Outcome second = hand_over(*first.received);
  ASSERT_THAT(second.sent, IsOk());
  ASSERT_THAT(second.received, IsOk());
  expect_sample(*second.received);
}

TEST(Handover, AGuestOfNothingIsAGuest) {
  const auto layout = AddressSpaceLayout::make({.phys_max = 0xffff});
  ASSERT_THAT(layout, IsOk());
  const Outcome outcome = hand_over({.space = AddressSpaceBase(*layout), .memory = {}});
  ASSERT_THAT(outcome.sent, IsOk());
  ASSERT_THAT(outcome.received, IsOk());
  EXPECT_EQ(outcome.received->space.layout(), *layout);
  EXPECT_TRUE(outcome.received->space.empty());
  EXPECT_TRUE(outcome.received->state.empty());
}

TEST(Handover, RegionsWithOneFileHaveOneFileThere) {
  const auto backing = Backing::open({.source = MemorySource::shmem}, 96 * page);
  ASSERT_THAT(backing, IsOk());
  Handover guest = sample_guest();
  auto space = AddressSpaceBase(guest.space.layout());
  for (const std::uint64_t base : {std::uint64_t{0}, std::uint64_t{4_GiB}}) {
    ASSERT_THAT(space.insert_region({.name = "ram",
                                     .base = GuestAddress(base),
                                     .size = 48 * page,
                                     .backing = {.source = MemorySource::shmem}}),
                IsOk());
  }
  const auto memory = GuestMemory::map(space, {.backing = *backing});
  ASSERT_THAT(memory, IsOk());
  ASSERT_THAT(memory->write_slice(high_ram, pattern(page)), IsOk());
  const Outcome outcome = hand_over({.space = space, .memory = *memory});
  ASSERT_THAT(outcome.received, IsOk());
  const auto regions = outcome.received->memory.regions();
  EXPECT_EQ(regions[0]->backing(), regions[1]->backing());
  EXPECT_EQ(regions[1]->mapping().file_offset(), 48 * page);
  EXPECT_EQ(contents(outcome.received->memory, 4_GiB, page), pattern(page));
}

TEST(Handover, SendsMoreDescriptorsThanOneMessageCarries) {
  auto space = AddressSpaceBase(sample_guest().space.layout());
  for (std::uint64_t i = 0; i < GuestMemory::max_regions; ++i) {
    ASSERT_THAT(space.insert_region({.base = GuestAddress(i * page),
                                     .size = page,
                                     .backing = {.source = MemorySource::shmem}}),
                IsOk());
  }
  const auto memory = GuestMemory::map(space);
  ASSERT_THAT(memory, IsOk());
  for (std::uint64_t i = 0; i < GuestMemory::max_regions; ++i) {
    ASSERT_THAT(memory->write(GuestAddress(i * page), i), IsOk());
  }
  const auto before = open_descriptors().size();
  {
    const Outcome outcome = hand_over({.space = space, .memory = *memory});
    ASSERT_THAT(outcome.sent, IsOk());
    ASSERT_THAT(outcome.received, IsOk());
    for (std::uint64_t i = 0; i < GuestMemory::max_regions; ++i) {
      EXPECT_THAT(outcome.received->memory.read<std::uint64_t>(GuestAddress(i * page)),
                  IsOkAndHolds(i));
    }
  }
  EXPECT_EQ(open_descriptors().size(), before);
}

TEST(Handover, DirtyPagesStayDirtyOnBothSides) {
  // More than one piece of a bitmap, and not a multiple of its words.
  constexpr std::uint64_t size = 3_GiB - 5 * page;
  auto space = AddressSpaceBase(sample_guest().space.layout());
  for (const auto& [base, bytes] :
       {std::pair{std::uint64_t{0}, size}, std::pair{std::uint64_t{4_GiB}, 3 * page}}) {
    ASSERT_THAT(space.insert_region({.base = GuestAddress(base),
                                     .size = bytes,
                                     .backing = {.source = MemorySource::shmem}}),
                IsOk());
  }
  const auto memory = GuestMemory::map(space);
  ASSERT_THAT(memory, IsOk());
  ASSERT_THAT(enable_dirty_tracking(*memory), IsOk());
  const std::vector<GuestRange> dirty = {{GuestAddress(0), page},
                                         {GuestAddress(62 * page), 5 * page},
                                         {GuestAddress(2_GiB - page), 2 * page},
                                         {GuestAddress(size - page), page},
                                         {GuestAddress(4_GiB + page), page}};
  for (const GuestRange& range : dirty)
    ASSERT_THAT(memory->mark_dirty(range), IsOk());
  const Outcome outcome = hand_over({.space = space, .memory = *memory});
  ASSERT_THAT(outcome.sent, IsOk());
  ASSERT_THAT(outcome.received, IsOk());
  EXPECT_THAT(harvest_dirty(outcome.received->memory), IsOkAndHolds(dirty));
  EXPECT_THAT(harvest_dirty(*memory), IsOkAndHolds(dirty));
}

TEST(Handover, BlocksThatAreAbsentStayAbsent) {
  const auto none = PresentBlocks::none(16 * page, 2 * page, 8 * page);
  ASSERT_THAT(none, IsOk());
  const auto some = (*none)->with({2 * page, 4 * page});
  ASSERT_THAT(some, IsOk());
  const auto more = (*some)->with({14 * page, 2 * page});
  ASSERT_THAT(more, IsOk());
  auto space = AddressSpaceBase(sample_guest().space.layout());
  const auto description = space.insert_region(
      {.name = "blocks", .size = 16 * page, .backing = {.source = MemorySource::shmem}});
  ASSERT_THAT(description, IsOk());
  const auto region = MemoryRegion::map(*description, {.blocks = *more});
  ASSERT_THAT(region, IsOk());
  const auto memory = GuestMemory::from_regions({*region});
  ASSERT_THAT(memory, IsOk());
  const Outcome outcome = hand_over({.space = space, .memory = *memory});
  ASSERT_THAT(outcome.received, IsOk());
  const auto& taken = outcome.received->memory.regions()[0];
  ASSERT_NE(taken->blocks(), nullptr);
  EXPECT_EQ(*taken->blocks(), **more);
  EXPECT_FALSE(outcome.received->memory.contains({GuestAddress(0), page}));
}

TEST(Handover, PrivateMemoryIsRefusedByNameAndNothingIsSent) {
  const Handover guest = sample_guest({.source = MemorySource::anon});
  Ends ends;
  EXPECT_THAT(send_handover(ends.sender.get(), guest),
              HasErrorThat(Property(&Error::message, HasSubstr("low [0x0, 0x3ffff]"))));
  EXPECT_THAT(send_handover(ends.sender.get(), guest), HasError(Errc::unsupported));
  // The connection is as it was.
  auto sent = std::async(std::launch::async, [&] {
    return send_handover(ends.sender.get(), guest, {.private_memory = PrivateMemory::copy});
  });
  const auto taken = receive_handover(ends.receiver.get());
  EXPECT_THAT(sent.get(), IsOk());
  ASSERT_THAT(taken, IsOk());
  expect_sample(*taken);
}

TEST(Handover, PrivateMemoryIsCopiedAndDescribedAsWhatItIsThen) {
  const Handover guest = sample_guest({.source = MemorySource::anon});
  const Outcome outcome = hand_over(guest, {.private_memory = PrivateMemory::copy});
  ASSERT_THAT(outcome.sent, IsOk());
  ASSERT_THAT(outcome.received, IsOk());
  expect_sample(*outcome.received);
  const auto& region = outcome.received->memory.regions()[0];
  EXPECT_EQ(region->description().backing().source, MemorySource::shmem);
  EXPECT_EQ(region->description().name(), "low");
  // Only pages that hold something are there.
  EXPECT_EQ(region->mapping().residency(0, region->size())->resident, 3 * page);
  // What the sender still has is its own.
  ASSERT_THAT(outcome.received->memory.write(GuestAddress(page), std::uint64_t{1}), IsOk());
  EXPECT_THAT(guest.memory.read<std::uint64_t>(GuestAddress(page)), IsOkAndHolds(0U));
}

TEST(Handover, APrivateCopyOfAFileIsPrivateMemory) {
  const Fd file = memory_file(64 * page);
  const std::vector<std::byte> bytes = pattern(page, 9);
  ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), 2 * page), ssize_t{page});
  auto space = AddressSpaceBase(sample_guest().space.layout());
  ASSERT_THAT(space.insert_region({.name = "image",
                                   .size = 8 * page,
                                   .backing = {.source = MemorySource::file,
                                               .fd = file.get(),
                                               .offset = page,
                                               .sharing = Sharing::map_private}}),
              IsOk());
  const auto memory = GuestMemory::map(space);
  ASSERT_THAT(memory, IsOk());
  ASSERT_THAT(memory->write(GuestAddress(5 * page), std::uint64_t{5}), IsOk());
  EXPECT_THAT(hand_over({.space = space, .memory = *memory}, {}, {.timeout = soon}).sent,
              HasError(Errc::unsupported));
  const Outcome outcome =
      hand_over({.space = space, .memory = *memory}, {.private_memory = PrivateMemory::copy});
  ASSERT_THAT(outcome.received, IsOk());
  EXPECT_EQ(contents(outcome.received->memory, page, page), bytes);
  EXPECT_THAT(outcome.received->memory.read<std::uint64_t>(GuestAddress(5 * page)),
              IsOkAndHolds(5U));
}

TEST(Handover, ADescriptionByDescriptorHasTheOneOfTheReceiver) {
  const Fd file = memory_file(64 * page);
  auto space = AddressSpaceBase(sample_guest().space.layout());
  ASSERT_THAT(
      space.insert_region(
          {.name = "dax",
           .size = 8 * page,
           .backing = {.source = MemorySource::file, .fd = file.get(), .offset = 3 * page}}),
      IsOk());
  const auto memory = GuestMemory::map(space);
  ASSERT_THAT(memory, IsOk());
  ASSERT_THAT(memory->write_slice(GuestAddress(page), pattern(page)), IsOk());
  const Outcome outcome = hand_over({.space = space, .memory = *memory});
  ASSERT_THAT(outcome.received, IsOk());
  const auto& region = outcome.received->memory.regions()[0];
  EXPECT_EQ(region->description().backing().fd, region->backing().fd());
  EXPECT_FALSE(region->backing().is_discardable());
  EXPECT_EQ(region->mapping().file_offset(), 3 * page);
  EXPECT_EQ(contents(outcome.received->memory, page, page), pattern(page));
}

/// A guest of one region of a file.
Handover guest_of(RegionOptions options, const MapOptions& map = {}) {
  auto space = AddressSpaceBase(sample_guest().space.layout());
  VMSPACE_EXPECT_OK(space.insert_region(std::move(options)));
  const auto memory = GuestMemory::map(space, map);
  VMSPACE_EXPECT_OK(memory);
  return {.space = space, .memory = *memory};
}

TEST(Handover, MemoryThatWasGuardedStaysGuarded) {
  const Fd file = memory_file(8 * page, 0);
  const RegionOptions ram{.name = "shared",
                          .size = 8 * page,
                          .backing = {.source = MemorySource::file, .fd = file.get()}};
  const auto guard = FaultGuard::install();
  ASSERT_THAT(guard, IsOk());
  const Handover guarded = guest_of(ram, {.unsealed = Unsealed::guard});
  const Handover accepted = guest_of(ram);
  const auto may_fault = [](const Handover& guest, Unsealed unsealed) {
    const Outcome outcome = hand_over(guest, {}, {.map = {.unsealed = unsealed}});
    VMSPACE_EXPECT_OK(outcome.received);
    return outcome.received->memory.regions()[0]->may_fault();
  };
  EXPECT_TRUE(may_fault(guarded, Unsealed::accept));
  EXPECT_TRUE(may_fault(guarded, Unsealed::guard));
  EXPECT_FALSE(may_fault(accepted, Unsealed::accept));
  EXPECT_TRUE(may_fault(accepted, Unsealed::guard));
}

TEST(Handover, MemoryIsBoundToItsNodeThereToo) {
  const RegionOptions ram{
      .size = 8 * page, .backing = {.source = MemorySource::shmem}, .numa_node = 0};
  if (const auto here = MemoryRegion::map(ram); may_not_bind(here))
    GTEST_SKIP() << here.error().message();
  const Outcome bound = hand_over(guest_of(ram));
  ASSERT_THAT(bound.received, IsOk());
  EXPECT_EQ(bound.received->memory.regions()[0]->mapping().numa_policy(),
            (NumaPolicy{NumaMode::bind, {0}}));
  const Outcome free = hand_over(guest_of(ram, {.numa_mode = NumaMode::by_default}));
  ASSERT_THAT(free.received, IsOk());
  EXPECT_EQ(free.received->memory.regions()[0]->mapping().numa_policy(), NumaPolicy{});
}

TEST(Handover, HugePagesStayHugeCopiedOrNot) {
  const HugePages pool(2_MiB, 6);
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  for (const MemorySource source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    const Handover guest = guest_of({.size = 4_MiB, .backing = {.source = source}});
    ASSERT_THAT(guest.memory.write_slice(GuestAddress(2_MiB + 5), pattern(page)), IsOk());
    // Another holder of the file could punch holes in it: that is to be accepted.
    const Outcome outcome = hand_over(guest, {.private_memory = PrivateMemory::copy}, {.map = {}});
    ASSERT_THAT(outcome.sent, IsOk());
    ASSERT_THAT(outcome.received, IsOk());
    const auto& region = outcome.received->memory.regions()[0];
    EXPECT_TRUE(region->backing().is_hugetlb());
    EXPECT_EQ(region->description().backing().source, MemorySource::hugeshmem);
    EXPECT_EQ(contents(outcome.received->memory, 2_MiB + 5, page), pattern(page));
  }
}

TEST(Handover, WhatCantBeSentIsRefusedByName) {
  const Handover sample = sample_guest();
  const auto refused = [](const Handover& guest) {
    const Ends ends;
    return send_handover(ends.sender.get(), guest);
  };
  const auto with = [&](RegionOptions options) {
    Handover guest = sample;
    options.base = GuestAddress(0xd100'0000);
    options.size = page;
    options.type = RegionType::device_memory;
    VMSPACE_EXPECT_OK(guest.space.insert_region(std::move(options)));
    return guest;
  };
  EXPECT_THAT(refused(with({.name = "two\nlines"})), HasError(Errc::invalid_argument));
  EXPECT_THAT(refused(with({.name = "\xff"})), HasError(Errc::invalid_argument));
  EXPECT_THAT(refused(with({.name = std::string(1025, 'a')})), HasError(Errc::limit_exceeded));
  EXPECT_THAT(refused(with({.owner = std::string(1, '\0')})), HasError(Errc::invalid_argument));
  EXPECT_THAT(refused(with({.name = "bar", .backing = {.source = MemorySource::device, .fd = 0}})),
              HasErrorThat(Property(&Error::message, HasSubstr("\"bar "))));
  // Memory that the space does not have.
  Handover other = sample;
  ASSERT_THAT(other.space.remove_region(low_ram), IsOk());
  EXPECT_THAT(refused(other), HasError(Errc::invalid_argument));
  // Memory of another.
  alignas(4096) static std::array<std::byte, page> buffer;
  auto external = with({.name = "ext", .backing = {.source = MemorySource::external}});
  const auto memory = external.memory.remap(
      external.space, {.external = ExternalMemory{.data = buffer.data(), .size = page}});
  ASSERT_THAT(memory, IsOk());
  external.memory = *memory;
  EXPECT_THAT(refused(external), HasError(Errc::unsupported));
  const Ends ends;
  EXPECT_THAT(
      send_handover(ends.sender.get(), sample, {.private_memory = static_cast<PrivateMemory>(7)}),
      HasError(Errc::invalid_argument));
}

TEST(Handover, OnlyUnixStreamSocketsWillDo) {
  const Ends packets(SOCK_SEQPACKET);
  const Fd tcp(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Fd file = memory_file(page);
  for (const int fd : {packets.sender.get(), tcp.get(), file.get()}) {
    EXPECT_THAT(send_handover(fd, sample_guest()), HasError(Errc::invalid_argument));
    EXPECT_THAT(receive_handover(fd), HasError(Errc::invalid_argument));
  }
  EXPECT_THAT(receive_handover(-1), HasError(Errc::os));
}

}  // namespace
}  // namespace vmspace::handover_test
