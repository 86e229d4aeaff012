// SPDX-License-Identifier: Apache-2.0
//
// Every system call and every allocation of a handover, failing on either side: exactly one process has
// the guest then, and nothing stays open.

#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <set>
#include <string>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/snapshot/handover.hpp"

#include "faults/failing_new.hpp"
#include "faults/injector.hpp"
#include "host/fault_owner.hpp"
#include "snapshot/handover_format.hpp"
#include "snapshot/handover_support.hpp"

namespace vmspace::handover_calls_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Property;
using namespace test;

constexpr int errnos[] = {ENOMEM, EMFILE, EINTR, EIO, ENOSPC, EPERM, EINVAL, ENOSYS};
constexpr SendHandoverOptions copying{.private_memory = PrivateMemory::copy};

/// A guest whose memory is partly private, and tracked.
Handover guest_to_copy() {
  Handover guest = sample_guest();
  const auto description = guest.space.insert_region({.name = "private",
                                                      .base = GuestAddress(1_GiB),
                                                      .size = 8 * page,
                                                      .backing = {.source = MemorySource::anon}});
  VMSPACE_EXPECT_OK(description);
  const auto region = MemoryRegion::map(*description);
  VMSPACE_EXPECT_OK(region);
  const auto memory = guest.memory.with_region(*region);
  VMSPACE_EXPECT_OK(memory);
  guest.memory = *memory;
  VMSPACE_EXPECT_OK(guest.memory.write_slice(GuestAddress(1_GiB + page), pattern(page, 8)));
  VMSPACE_EXPECT_OK(enable_dirty_tracking(guest.memory));
  VMSPACE_EXPECT_OK(guest.memory.write_slice(high_ram, pattern(page, 2)));
  return guest;
}

/// A connection on which the receiver has said that it is ready, before anything came.
Ends ends_with_ready() {
  Ends ends;
  EXPECT_TRUE(send_piece(ends.receiver.get(), std::array{detail::handover_ready}));
  return ends;
}

/// What has come at the receiver's end.
std::vector<std::byte> arrived(Ends& ends) {
  std::vector<std::byte> all;
  EXPECT_EQ(::shutdown(ends.sender.get(), SHUT_WR), 0);
  for (Piece piece = receive_piece(ends.receiver.get()); !piece.bytes.empty();
       piece = receive_piece(ends.receiver.get())) {
    all.insert(all.end(), piece.bytes.begin(), piece.bytes.end());
  }
  return all;
}

/// A connection to which a sender has given everything, and the commit too.
Ends ends_with_all(const Recording& whole) {
  Ends ends;
  std::vector<std::byte> bytes = whole.bytes;
  bytes.push_back(detail::handover_commit);
  Recording::send(ends.sender.get(), bytes, whole.fds());
  return ends;
}

/// The calls that `body` makes, but for those of destructors, by number.
std::vector<std::pair<std::size_t, std::string>> calls_of(Injector& injector,
                                                          const std::function<void()>& body) {
  body();
  injector.fail_none();
  body();
  std::vector<std::pair<std::size_t, std::string>> calls;
  const std::set<std::string> skipped = {"close", "munmap", "shutdown"};
  const auto names = injector.calls();
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (!skipped.contains(names[i])) calls.emplace_back(i, names[i]);
  }
  return calls;
}

TEST(HandoverCalls, ASenderThatFailsHasNotGivenTheGuestUp) {
  const Handover guest = guest_to_copy();
  Injector injector;
  std::vector<std::byte> whole;
  const auto calls = calls_of(injector, [&] {
    Ends ends = ends_with_ready();
    ASSERT_THAT(send_handover(ends.sender.get(), guest, copying), IsOk());
    whole = arrived(ends);
  });
  ASSERT_EQ(whole.back(), detail::handover_commit);
  const auto descriptors = open_descriptors();
  for (const auto& [index, name] : calls) {
    for (const int error : errnos) {
      SCOPED_TRACE(name + " (call " + std::to_string(index) + "): " + std::strerror(error));
      Ends ends = ends_with_ready();
      injector.fail_call(index, error);
      const auto sent = send_handover(ends.sender.get(), guest, copying);
      const bool failed = injector.has_failed();
      injector.fail_none();
      ASSERT_TRUE(failed);
      const auto bytes = arrived(ends);
      if (sent) {
        EXPECT_EQ(bytes, whole);
      } else {
        EXPECT_LT(bytes.size(), whole.size());
        EXPECT_STREQ(sent.error().operation, "send_handover");
      }
    }
  }
  EXPECT_EQ(open_descriptors(), descriptors);
  expect_sample(guest);
}

TEST(HandoverCalls, AReceiverThatFailsSaysSoAndKeepsNothing) {
  const Handover guest = sample_guest();
  ASSERT_THAT(enable_dirty_tracking(guest.memory), IsOk());
  const Recording whole = Recording::of(guest);
  Injector injector;
  const auto calls = calls_of(injector, [&] {
    const Ends ends = ends_with_all(whole);
    ASSERT_THAT(receive_handover(ends.receiver.get()), IsOk());
  });
  // Without advice on huge pages, with writers that fence, and with the commit looked for once more.
  const std::set<std::string> dispensable = {"madvise", "membarrier", "open"};
  const auto descriptors = open_descriptors();
  for (const auto& [index, name] : calls) {
    for (const int error : errnos) {
      SCOPED_TRACE(name + " (call " + std::to_string(index) + "): " + std::strerror(error));
      const Ends ends = ends_with_all(whole);
      injector.fail_call(index, error);
      const auto taken = receive_handover(ends.receiver.get());
      const std::string failed = injector.failed_call();
      injector.fail_none();
      ASSERT_NE(failed, "");
      const bool is_last = index == calls.back().first;
      if (taken) {
        EXPECT_TRUE(error == EINTR || is_last || dispensable.contains(failed));
        expect_sample(*taken);
      } else {
        EXPECT_FALSE(is_last);
        EXPECT_STREQ(taken.error().operation, "receive_handover");
      }
    }
  }
  EXPECT_EQ(calls.back().second, "recvmsg");
  EXPECT_EQ(open_descriptors(), descriptors);
}

/// Stands in for shutdown(2): the sender commits at the last moment.
struct LateCommit {
  static inline int sender = -1;
  static int shutdown(int fd, int how) {
    if (sender >= 0) {
      EXPECT_TRUE(send_piece(std::exchange(sender, -1), std::array{detail::handover_commit}));
    }
    return ::shutdown(fd, how);
  }
};

TEST(HandoverCalls, ACommitAtTheLastMomentIsTaken) {
  const Recording whole = Recording::of(sample_guest());
  const Ends ends;
  Recording::send(ends.sender.get(), whole.bytes, whole.fds());
  Injector injector;
  LateCommit::sender = ends.sender.get();
  injector.table().shutdown = LateCommit::shutdown;
  const auto taken = receive_handover(ends.receiver.get(), {.timeout = soon});
  ASSERT_THAT(taken, IsOk());
  expect_sample(*taken);
}

TEST(HandoverCalls, WhereTheSocketCantBeShutDownNobodyKnowsWhoHasTheGuest) {
  const Recording whole = Recording::of(sample_guest());
  const Ends ends;
  Recording::send(ends.sender.get(), whole.bytes, whole.fds());
  Injector injector;
  injector.fail_always("shutdown", EIO);
  EXPECT_THAT(receive_handover(ends.receiver.get(), {.timeout = soon}),
              HasError(Errc::inconsistent));
}

TEST(HandoverCalls, WithoutMemoryTheReceiverKeepsNothing) {
  const Recording whole = Recording::of(sample_guest());
  Ends ends = ends_with_all(whole);
  const auto descriptors = open_descriptors();
  bool is_taken = false;
  const int failures =
      fail_each_allocation([&] { is_taken = receive_handover(ends.receiver.get()).has_value(); },
                           [&] {
                             // The peer has been told.
                             EXPECT_FALSE(send_piece(ends.sender.get(), std::array{std::byte{}}));
                             ends = ends_with_all(whole);
                             EXPECT_EQ(open_descriptors().size(), descriptors.size());
                           });
  EXPECT_TRUE(is_taken);
  EXPECT_GT(failures, 10);
}

TEST(HandoverCalls, WithoutMemoryTheSenderKeepsTheGuest) {
  const Handover guest = guest_to_copy();
  Ends ends = ends_with_ready();
  bool is_sent = false;
  std::size_t most = 0;
  const int failures = fail_each_allocation(
      [&] { is_sent = send_handover(ends.sender.get(), guest, copying).has_value(); },
      [&] {
        most = std::max(most, arrived(ends).size());
        ends = ends_with_ready();
      });
  EXPECT_TRUE(is_sent);
  EXPECT_GT(failures, 10);
  EXPECT_LT(most, arrived(ends).size());
  expect_sample(guest);
}

TEST(HandoverCalls, MemoryWhosePagesAreStillToComeIsRefused) {
  struct Owner final : detail::FaultOwner {
    [[nodiscard]] const char* name() const noexcept override { return "LazyRestore"; }
    [[nodiscard]] Result<void> begin_discard(std::uint64_t, std::uint64_t) override { return {}; }
    void end_discard(std::uint64_t, std::uint64_t, bool) noexcept override {}
  } owner;
  const Handover guest = sample_guest();
  Ends ends;
  {
    const auto claim =
        detail::FaultClaim::make("test", guest.memory.regions()[0]->mapping(), owner);
    ASSERT_THAT(claim, IsOk());
    const auto sent = send_handover(ends.sender.get(), guest);
    EXPECT_THAT(sent, HasError(Errc::bad_state));
    EXPECT_THAT(sent, HasErrorThat(Property(&Error::message, HasSubstr("LazyRestore"))));
    EXPECT_THAT(sent, HasErrorThat(Property(&Error::message, HasSubstr("low [0x0"))));
  }
  EXPECT_TRUE(arrived(ends).empty());
  EXPECT_THAT(hand_over(guest).sent, IsOk());
}

}  // namespace
}  // namespace vmspace::handover_calls_test
