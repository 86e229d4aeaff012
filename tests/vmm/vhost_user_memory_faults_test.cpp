// SPDX-License-Identifier: Apache-2.0
//
// VhostUserMemory with devices that refuse, fail or lie, and with system calls that fail.

#include <cerrno>

#include "faults/failing_new.hpp"
#include "faults/injector.hpp"
#include "vmm/vhost_user_front_support.hpp"

namespace vmspace::vhost_user_memory_faults_test {
namespace {

using namespace test;
using testing::HasSubstr;

TEST(VhostUserMemory, ARegionThatTheDeviceRefusesIsNotInTheTable) {
  const SocketPair pair;
  will_reply(pair, vhost_user::get_max_mem_slots, 32);
  auto memory = memory_for(pair, with(slots | acks));
  const MemorySection ram(shared_ram(0, 64_KiB));
  will_reply(pair, vhost_user::add_mem_reg, 1);
  EXPECT_THAT(memory->add(ram), HasError(Errc::bad_state));
  EXPECT_EQ(memory->used(), 0U);
  EXPECT_FALSE(memory->is_gone());
  will_reply(pair, vhost_user::add_mem_reg, 0);
  VMSPACE_EXPECT_OK(memory->add(ram));
  will_reply(pair, vhost_user::rem_mem_reg, 7);
  EXPECT_THAT(memory->remove(ram), HasError(Errc::bad_state));
  EXPECT_EQ(memory->used(), 1U);
  will_reply(pair, vhost_user::rem_mem_reg, 0);
  VMSPACE_EXPECT_OK(memory->remove(ram));
  EXPECT_EQ(memory->used(), 0U);
}

/// What a peer sends instead of a good reply, and the error.
struct BadReply {
  const char* what;
  std::vector<std::byte> bytes;
  Errc code;
  bool with_fd = false;
};

TEST(VhostUserMemory, AfterAnAnswerThatMakesNoSenseTheConnectionIsGone) {
  const auto header = [](std::uint32_t request, std::uint32_t flags, std::uint32_t size) {
    return WireHeader{.request = request, .flags = flags, .size = size};
  };
  constexpr std::uint32_t table = vhost_user::set_mem_table;
  constexpr std::uint32_t reply = vhost_user::version | vhost_user::is_reply;
  constexpr std::uint64_t zero = 0;
  const BadReply replies[] = {
      {"nothing", {}, Errc::timed_out},
      {"half a header", bytes_of(std::uint32_t{5}), Errc::corrupt},
      {"no payload", bytes_of(header(table, reply, 8)), Errc::corrupt},
      {"another request", bytes_of(header(37, reply, 8), zero), Errc::corrupt},
      {"not a reply", bytes_of(header(table, vhost_user::version, 8), zero), Errc::corrupt},
      {"another size", bytes_of(header(table, reply, 4), std::uint32_t{0}), Errc::corrupt},
      {"another version", bytes_of(header(table, 6, 8), zero), Errc::corrupt},
      {"too long", bytes_of(header(table, reply, 1U << 31U), zero), Errc::corrupt},
      {"a descriptor", bytes_of(header(table, reply, 8), zero), Errc::corrupt, true},
      {"refused", bytes_of(header(table, reply, 8), std::uint64_t{1}), Errc::bad_state},
  };
  for (const BadReply& bad : replies) {
    SCOPED_TRACE(bad.what);
    const SocketPair pair;
    auto options = with(acks);
    if (bad.bytes.size() < 20) options.timeout = std::chrono::milliseconds(1);
    const MemorySection ram(shared_ram(0, 64_KiB));
    const auto before = open_descriptors();
    auto memory = memory_for(pair, options);
    if (!bad.bytes.empty()) {
      send_bytes(pair.back.value(), bad.bytes,
                 bad.with_fd ? std::vector{pair.back.value()} : std::vector<int>{});
    }
    VMSPACE_ASSERT_OK(memory->add(ram));
    EXPECT_FALSE(memory->is_gone());
    const auto done = memory->commit();
    ASSERT_THAT(done, HasError(bad.code));
    EXPECT_THAT(done.error().message(), HasSubstr("net0"));
    EXPECT_THAT(done.error().message(), HasSubstr("the connection has been shut down"));
    EXPECT_TRUE(memory->is_gone());
    EXPECT_EQ(memory->used(), 0U);

    // The device sees the end, the VMM's own descriptor can't go on, and neither can we.
    VMSPACE_EXPECT_OK(VhostUserMessage::receive(pair.back.value(), long_enough));
    EXPECT_THAT(VhostUserMessage::receive(pair.back.value(), long_enough), HasError(Errc::os));
    EXPECT_EQ(::send(pair.front.value(), "x", 1, MSG_NOSIGNAL), -1);
    EXPECT_THAT(memory->prepare({.added = std::span(&ram, 1)}), HasError(Errc::bad_state));
    EXPECT_THAT(memory->add(ram), HasError(Errc::bad_state));
    EXPECT_THAT(memory->remove(ram), HasError(Errc::bad_state));
    memory.reset();
    EXPECT_EQ(open_descriptors(), before);
  }
}

TEST(VhostUserMemory, APeerThatHasClosedIsGone) {
  SocketPair pair;
  auto memory = memory_for(pair, with(acks));
  const MemorySection ram(shared_ram(0, 64_KiB));
  VMSPACE_ASSERT_OK(memory->add(ram));
  pair.back = {};
  EXPECT_THAT(memory->commit(), HasError(Errc::os));
  EXPECT_TRUE(memory->is_gone());
}

TEST(VhostUserMemory, ConnectsToSocketsOnlyAndAsksForTheSlots) {
  EXPECT_THAT(VhostUserMemory::create(-1), HasError(Errc::os));
  const Descriptor file = memory_file(4_KiB);
  EXPECT_THAT(VhostUserMemory::create(file.value()), HasError(Errc::invalid_argument));
  const SocketPair pair;
  EXPECT_THAT(
      VhostUserMemory::create(pair.front.value(), {.protocol_features = slots,
                                                   .timeout = std::chrono::milliseconds(1)}),
      HasError(Errc::timed_out));
}

TEST(VhostUserMemoryFaults, EveryFailingCallIsReportedAndLeavesNoDescriptor) {
  for (const std::uint64_t features : {acks | logs, slots | acks | logs}) {
    const MemorySection ram(shared_ram(0, 64_KiB));
    const SharedLog log(4_KiB);
    bool created = false;
    bool gone = false;
    const auto session = [&]() -> Result<void> {
      const SocketPair pair;
      if ((features & slots) != 0) will_reply(pair, vhost_user::get_max_mem_slots, 32);
      const auto memory = VMSPACE_TRY(VhostUserMemory::create(pair.front.value(), with(features)));
      created = true;
      const auto run = [&]() -> Result<void> {
        const bool one = (features & slots) != 0;
        will_reply(pair, one ? vhost_user::add_mem_reg : vhost_user::set_mem_table, 0);
        VMSPACE_TRY(memory->add(ram));
        VMSPACE_TRY(memory->commit());
        will_reply(pair, vhost_user::set_log_base, 0);
        VMSPACE_TRY(memory->share_log({.fd = log.file.value(), .size = 4_KiB}));
        will_reply(pair, one ? vhost_user::rem_mem_reg : vhost_user::set_mem_table, 0);
        VMSPACE_TRY(memory->remove(ram));
        return memory->commit();
      };
      auto done = run();
      gone = memory->is_gone();
      return done;
    };
    Injector injector;
    injector.fail_none();
    VMSPACE_ASSERT_OK(session());
    const auto calls = injector.calls();
    for (std::size_t index = 0; index < calls.size(); ++index) {
      for (const int error : {EINTR, EAGAIN, ENOMEM, EPIPE}) {
        SCOPED_TRACE(calls[index] + " " + std::to_string(index) + ": " + std::strerror(error));
        const auto before = open_descriptors();
        injector.fail_call(index, error);
        created = gone = false;
        const auto done = session();
        ASSERT_TRUE(injector.has_failed());
        const bool io = calls[index] == "sendmsg" || calls[index] == "recvmsg";
        const bool retried = error == EINTR && calls[index] != "mmap";
        if (calls[index] == "close" || calls[index] == "munmap" || retried ||
            (io && error == EAGAIN)) {
          EXPECT_THAT(done, IsOk());
        } else {
          ASSERT_THAT(done, HasError(Errc::os));
          EXPECT_EQ(done.error().os_errno, error);
          EXPECT_THAT(done.error().text.subject(), "net0");
          // The device still has its table after what fails before anything is sent.
          EXPECT_EQ(gone, created && io);
        }
        EXPECT_EQ(open_descriptors(), before);
      }
    }
  }
}

TEST(VhostUserMemoryFaults, RunningOutOfMemoryLeavesTheTableAndRemovingNeedsNone) {
  for (const std::uint64_t features : {acks, slots | acks}) {
    const SocketPair pair;
    if ((features & slots) != 0) will_reply(pair, vhost_user::get_max_mem_slots, 32);
    const auto memory = memory_for(pair, with(features));
    const MemorySection ram(shared_ram(0, 64_KiB));
    const bool one = (features & slots) != 0;
    will_reply(pair, one ? vhost_user::add_mem_reg : vhost_user::set_mem_table, 0);
    Result<void> done;
    const int failed = fail_each_allocation([&] { done = memory->add(ram); },
                                            [&] { EXPECT_EQ(memory->used(), 0U); });
    EXPECT_GT(failed, 0);
    VMSPACE_ASSERT_OK(done);
    granted = 0;
    done = memory->commit();
    granted = -1;
    VMSPACE_ASSERT_OK(done);

    will_reply(pair, one ? vhost_user::rem_mem_reg : vhost_user::set_mem_table, 0);
    granted = 0;
    done = memory->remove(ram);
    if (done) done = memory->commit();
    granted = -1;
    VMSPACE_EXPECT_OK(done);
    EXPECT_EQ(memory->used(), 0U);
  }
}

}  // namespace
}  // namespace vmspace::vhost_user_memory_faults_test
