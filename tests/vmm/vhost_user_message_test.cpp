// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_message.hpp"

#include <sys/eventfd.h>

#include <cerrno>
#include <thread>

#include "faults/injector.hpp"
#include "vmm/vhost_user_support.hpp"

namespace vmspace::vhost_user_message_test {
namespace {

using namespace test;
using std::chrono::milliseconds;
using testing::ElementsAreArray;
using testing::Field;
using testing::SizeIs;

Result<VhostUserMessage> receive(const SocketPair& pair) {
  return VhostUserMessage::receive(pair.back.value(), long_enough);
}

TEST(VhostUserMessage, IsReceivedWithPayloadAndDescriptors) {
  const SocketPair pair;
  const Descriptor file = memory_file(4_KiB);
  const auto payload = bytes_of(std::uint64_t{0x1122334455667788});
  send_request(pair.front.value(), 9, payload, {file.value(), file.value()},
               vhost_user::need_reply);
  const auto before = open_descriptors();
  {
    const auto message = VMSPACE_ASSERT_OK(receive(pair));
    EXPECT_EQ(message.request(), 9U);
    EXPECT_TRUE(message.needs_reply());
    EXPECT_FALSE(message.is_reply());
    EXPECT_EQ(to_text(message), "request 9 payload 0x8 fds 2 needs_reply");
    EXPECT_THAT(message.payload(), ElementsAreArray(payload));
    EXPECT_THAT(message.number(), IsOkAndHolds(0x1122334455667788U));
    ASSERT_THAT(message.fds(), SizeIs(2));
    for (const int fd : message.fds())
      EXPECT_EQ(::fcntl(fd, F_GETFD), FD_CLOEXEC);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(VhostUserMessage, MayArriveByteByByte) {
  const SocketPair pair(SOCK_NONBLOCK);
  const Descriptor file = memory_file(4_KiB);
  const auto bytes = bytes_of(WireHeader{.request = 12, .flags = vhost_user::version, .size = 8},
                              std::uint64_t{7});
  std::thread sender([&] {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      send_bytes(pair.front.value(), {bytes[i]},
                 i == 0 ? std::vector{file.value()} : std::vector<int>{});
    }
  });
  const auto message = receive(pair);
  sender.join();
  ASSERT_THAT(message, IsOk());
  EXPECT_THAT(message->number(), IsOkAndHolds(7U));
  EXPECT_THAT(message->fds(), SizeIs(1));
}

TEST(VhostUserMessage, DescriptorsCanBeTakenAndMessagesMoved) {
  const SocketPair pair;
  const auto before = open_descriptors();
  {
    const Descriptor event(::eventfd(0, EFD_CLOEXEC));
    send_request(pair.front.value(), 12, {}, {event.value()});
    send_request(pair.front.value(), 13, bytes_of(std::uint64_t{3}), {event.value()});
    auto first = VMSPACE_ASSERT_OK(receive(pair));
    auto second = VMSPACE_ASSERT_OK(receive(pair));
    const Descriptor taken(first.release_fds()[0]);
    EXPECT_THAT(first.fds(), SizeIs(0));
    EXPECT_EQ(::eventfd_write(taken.value(), 1), 0);
    first = std::move(second);
    EXPECT_EQ(first.request(), 13U);
    EXPECT_THAT(first.number(), IsOkAndHolds(3U));
    EXPECT_THAT(first.fds(), SizeIs(1));
    const VhostUserMessage third(std::move(first));
    EXPECT_THAT(third.number(), IsOkAndHolds(3U));
    EXPECT_THAT(third.fds(), SizeIs(1));
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(VhostUserMessage, ReplyCarriesTheRequestAndTheReplyFlagAlone) {
  const SocketPair pair;
  send_request(pair.front.value(), 36, {}, {}, vhost_user::need_reply);
  const auto request = VMSPACE_ASSERT_OK(receive(pair));
  VMSPACE_ASSERT_OK(request.reply(pair.back.value(), 509, long_enough));
  const auto reply = VMSPACE_ASSERT_OK(VhostUserMessage::receive(pair.front.value(), long_enough));
  EXPECT_EQ(reply.request(), 36U);
  EXPECT_TRUE(reply.is_reply());
  EXPECT_FALSE(reply.needs_reply());
  EXPECT_EQ(to_text(reply), "reply to request 36 payload 0x8 fds 0");
  EXPECT_THAT(reply.number(), IsOkAndHolds(509U));
  const std::vector<std::byte> too_long(VhostUserMessage::max_payload + 1);
  EXPECT_THAT(request.reply(pair.back.value(), too_long, long_enough),
              HasError(Errc::invalid_argument));
}

TEST(VhostUserMessage, HostileHeadersAreCorruptAndLeaveNoDescriptor) {
  const Descriptor file = memory_file(4_KiB);
  const WireHeader headers[] = {
      {.request = 5, .flags = 0, .size = 0},                         // no version
      {.request = 5, .flags = 2, .size = 0},                         // another version
      {.request = 5, .flags = vhost_user::version | 16, .size = 0},  // an unknown flag
      {.request = 5, .flags = vhost_user::version, .size = 4097},    // too long
      {.request = 5, .flags = vhost_user::version, .size = UINT32_MAX},
  };
  for (const WireHeader& header : headers) {
    const SocketPair pair;
    send_bytes(pair.front.value(), bytes_of(header), {file.value()});
    const auto before = open_descriptors();
    EXPECT_THAT(receive(pair), HasError(Errc::corrupt));
    EXPECT_EQ(open_descriptors(), before);
  }
}

TEST(VhostUserMessage, AsManyDescriptorsAsFitAreReceivedAndOneMoreIsCorrupt) {
  const Descriptor file = memory_file(4_KiB);
  for (std::size_t count = 7; count <= 32; ++count) {
    const SocketPair pair;
    send_request(pair.front.value(), 5, {}, std::vector(count, file.value()));
    const auto before = open_descriptors();
    {
      const auto message = receive(pair);
      if (count <= VhostUserMessage::max_fds) {
        ASSERT_THAT(message, IsOk());
        EXPECT_THAT(message->fds(), SizeIs(count));
      } else {
        EXPECT_THAT(message, HasError(Errc::corrupt));
      }
    }
    EXPECT_EQ(open_descriptors(), before) << count;
  }
}

TEST(VhostUserMessage, DescriptorsInSeveralPartsOfAHeaderAreCountedTogether) {
  const Descriptor file = memory_file(4_KiB);
  const SocketPair pair;
  const auto bytes = bytes_of(WireHeader{.request = 5, .flags = vhost_user::version, .size = 0});
  send_bytes(pair.front.value(), {bytes.begin(), bytes.begin() + 6}, std::vector(8, file.value()));
  send_bytes(pair.front.value(), {bytes.begin() + 6, bytes.end()}, {file.value()});
  const auto before = open_descriptors();
  EXPECT_THAT(receive(pair), HasError(Errc::corrupt));
  EXPECT_EQ(open_descriptors(), before);
}

TEST(VhostUserMessage, DescriptorsWithThePayloadAreCorrupt) {
  const Descriptor file = memory_file(4_KiB);
  const SocketPair pair;
  send_bytes(pair.front.value(),
             bytes_of(WireHeader{.request = 9, .flags = vhost_user::version, .size = 8}));
  send_bytes(pair.front.value(), bytes_of(std::uint64_t{1}), {file.value()});
  const auto before = open_descriptors();
  EXPECT_THAT(receive(pair), HasError(Errc::corrupt));
  EXPECT_EQ(open_descriptors(), before);
}

TEST(VhostUserMessage, APeerThatClosesIsToldFromOneThatIsSilent) {
  {
    const SocketPair pair;
    EXPECT_THAT(VhostUserMessage::receive(pair.back.value(), milliseconds(1)),
                HasError(Errc::timed_out));
    EXPECT_THAT(VhostUserMessage::receive(pair.back.value(), std::chrono::nanoseconds::min()),
                HasError(Errc::timed_out));
    send_request(pair.front.value(), 1, {});  // nothing was lost
    EXPECT_THAT(receive(pair), IsOk());
  }
  for (const std::size_t sent :
       {std::size_t{0}, std::size_t{5}, std::size_t{12}, std::size_t{15}}) {
    SCOPED_TRACE(sent);
    SocketPair pair;
    auto bytes = bytes_of(WireHeader{.request = 9, .flags = vhost_user::version, .size = 8},
                          std::uint64_t{1});
    bytes.resize(sent);
    if (sent != 0) {
      send_bytes(pair.front.value(), bytes);
      EXPECT_THAT(VhostUserMessage::receive(pair.back.value(), milliseconds(1)),
                  HasError(Errc::corrupt));
      send_bytes(pair.front.value(), bytes);
    }
    pair.front = {};
    const auto closed = receive(pair);
    ASSERT_THAT(closed, HasError(Errc::os));
    EXPECT_EQ(closed.error().os_errno, ECONNRESET);
  }
}

TEST(VhostUserMessage, APeerThatDoesNotReadIsNotWaitedForBeyondTheDeadline) {
  const SocketPair pair;
  send_request(pair.front.value(), 1, {});
  const auto request = VMSPACE_ASSERT_OK(receive(pair));
  const std::vector<std::byte> payload(VhostUserMessage::max_payload);
  for (;;) {
    const auto sent = request.reply(pair.back.value(), payload, milliseconds(0));
    if (sent) continue;
    EXPECT_THAT(sent, HasError(Errc::timed_out));
    break;
  }
}

TEST(VhostUserMessage, ReplyingToAClosedConnectionIsAnErrorAndNoSignal) {
  SocketPair pair;
  send_request(pair.front.value(), 1, {});
  const auto request = VMSPACE_ASSERT_OK(receive(pair));
  pair.front = {};
  const auto sent = request.reply(pair.back.value(), 0, long_enough);
  ASSERT_THAT(sent, HasError(Errc::os));
  EXPECT_EQ(sent.error().os_errno, EPIPE);
}

TEST(VhostUserMessage, NumberIsOfEightBytes) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, std::size_t{16}}) {
    const SocketPair pair;
    send_request(pair.front.value(), 2, std::vector<std::byte>(size));
    const auto message = VMSPACE_ASSERT_OK(receive(pair));
    EXPECT_THAT(message.number(), HasError(Errc::corrupt));
  }
}

// Payloads of the messages about memory.

TEST(VhostUserPayload, TableHasExactlyTheRegionsThatItAnnounces) {
  const WireRegion region{.guest_address = 1, .size = 2, .user_address = 3, .file_offset = 4};
  const auto table =
      detail::decode_table(bytes_of(WireTable{.count = 2, .padding = 0}, region, region), "test");
  ASSERT_THAT(table, IsOk());
  ASSERT_THAT(table->all(), SizeIs(2));
  EXPECT_THAT(table->all()[1], Field(&WireRegion::file_offset, 4U));
  EXPECT_THAT(detail::decode_table(bytes_of(WireTable{}), "test"), IsOk());

  EXPECT_THAT(detail::decode_table({}, "test"), HasError(Errc::corrupt));
  EXPECT_THAT(detail::decode_table(bytes_of(std::uint32_t{0}), "test"), HasError(Errc::corrupt));
  EXPECT_THAT(detail::decode_table(bytes_of(WireTable{.count = 1, .padding = 0}), "test"),
              HasError(Errc::corrupt));
  EXPECT_THAT(
      detail::decode_table(bytes_of(WireTable{.count = 1, .padding = 0}, region, region), "test"),
      HasError(Errc::corrupt));
  EXPECT_THAT(detail::decode_table(bytes_of(WireTable{.count = 1, .padding = 1}, region), "test"),
              HasError(Errc::corrupt));
  EXPECT_THAT(detail::decode_table(bytes_of(WireTable{.count = 9, .padding = 0}), "test"),
              HasError(Errc::limit_exceeded));
  EXPECT_THAT(detail::decode_table(bytes_of(WireTable{.count = UINT32_MAX, .padding = 0}), "test"),
              HasError(Errc::limit_exceeded));
}

TEST(VhostUserPayload, SingleRegionHasNoPaddingAndNothingBehind) {
  const WireSingle single{.padding = 0, .region = {.guest_address = 5}};
  const auto region = detail::decode_region(bytes_of(single), "test");
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ(region->guest_address, 5U);
  EXPECT_THAT(detail::decode_region(bytes_of(single, 0), "test"), HasError(Errc::corrupt));
  EXPECT_THAT(detail::decode_region(bytes_of(single.region), "test"), HasError(Errc::corrupt));
  EXPECT_THAT(detail::decode_region(bytes_of(WireSingle{.padding = 1, .region = {}}), "test"),
              HasError(Errc::corrupt));
}

TEST(VhostUserMessageFaults, EveryFailingCallIsReportedAndLeavesNoDescriptor) {
  const Descriptor file = memory_file(4_KiB);
  const auto exchange = []() -> Result<void> {
    const SocketPair pair;
    const Descriptor event(::eventfd(0, EFD_CLOEXEC));
    send_request(pair.front.value(), 5, bytes_of(std::uint64_t{1}), {event.value()});
    const auto message = VMSPACE_TRY(receive(pair));
    return message.reply(pair.back.value(), 0, long_enough);
  };
  Injector injector;
  injector.fail_none();
  VMSPACE_ASSERT_OK(exchange());
  const auto calls = injector.calls();
  for (std::size_t index = 0; index < calls.size(); ++index) {
    for (const int error : {EINTR, EAGAIN, ENOMEM, EBADF, ECONNRESET}) {
      SCOPED_TRACE(calls[index] + ": " + std::strerror(error));
      const auto before = open_descriptors();
      injector.fail_call(index, error);
      const auto done = exchange();
      ASSERT_TRUE(injector.has_failed());
      if (calls[index] == "close" || error == EINTR || error == EAGAIN) {
        EXPECT_THAT(done, IsOk());
      } else {
        ASSERT_THAT(done, HasError(Errc::os));
        EXPECT_EQ(done.error().os_errno, error);
      }
      EXPECT_EQ(open_descriptors(), before);
    }
  }
}

TEST(VhostUserMessageFaults, APollThatFailsIsReported) {
  Injector injector;
  const SocketPair pair;
  injector.fail_next("poll", ENOMEM);
  const auto failed = receive(pair);
  ASSERT_THAT(failed, HasError(Errc::os));
  EXPECT_EQ(failed.error().os_errno, ENOMEM);
  injector.fail_next("poll", EINTR);
  EXPECT_THAT(VhostUserMessage::receive(pair.back.value(), milliseconds(1)),
              HasError(Errc::timed_out));
}

}  // namespace
}  // namespace vmspace::vhost_user_message_test
