// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_backend.hpp"

#include <cerrno>
#include <string>

#include "faults/failing_new.hpp"
#include "faults/injector.hpp"
#include "vmm/vhost_user_support.hpp"

namespace vmspace::vhost_user_backend_test {
namespace {

using namespace test;
using testing::IsEmpty;
using testing::SizeIs;

/// A back-end whose messages are sent and served in one thread.
class VhostUserBackend : public testing::Test {
 protected:
  static constexpr std::uint64_t user_base = 0x7f00'0000'0000;

  /// What the front-end was told, if anything, and what serve() said.
  struct Outcome {
    Result<bool> served;
    std::optional<std::uint64_t> reply;
  };

  Outcome serve(std::uint32_t request, const std::vector<std::byte>& payload,
                const std::vector<int>& fds = {}, std::uint32_t flags = vhost_user::need_reply) {
    send_request(pair_.front.value(), request, payload, fds, flags);
    const auto message = VhostUserMessage::receive(pair_.back.value(), long_enough);
    EXPECT_TRUE(message) << message.error().message();
    Outcome outcome{.served = memory_.serve(pair_.back.value(), *message), .reply = {}};
    const auto reply = VhostUserMessage::receive(pair_.front.value(), std::chrono::nanoseconds(0));
    if (reply) {
      EXPECT_TRUE(reply->is_reply());
      EXPECT_EQ(reply->request(), request);
      outcome.reply = *reply->number();
    }
    return outcome;
  }

  static WireRegion region(std::uint64_t base, std::uint64_t size, std::uint64_t offset = 0) {
    return {.guest_address = base,
            .size = size,
            .user_address = user_base + base,
            .file_offset = offset};
  }
  Outcome add(const WireRegion& wire, std::optional<int> fd = {}) {
    return serve(vhost_user::add_mem_reg, bytes_of(WireSingle{.region = wire}),
                 {fd.value_or(file_.value())});
  }
  Outcome remove(const WireRegion& wire) {
    return serve(vhost_user::rem_mem_reg, bytes_of(WireSingle{.region = wire}));
  }
  Outcome set_table(const std::vector<WireRegion>& regions) {
    auto payload =
        bytes_of(WireTable{.count = static_cast<std::uint32_t>(regions.size()), .padding = 0});
    for (const WireRegion& wire : regions) {
      const auto more = bytes_of(wire);
      payload.insert(payload.end(), more.begin(), more.end());
    }
    return serve(vhost_user::set_mem_table, payload, std::vector(regions.size(), file_.value()));
  }
  Outcome set_log(std::uint64_t size, std::uint32_t flags = 0) {
    return serve(vhost_user::set_log_base, bytes_of(WireLog{.size = size, .offset = 0}),
                 {file_.value()}, flags);
  }

  [[nodiscard]] std::vector<MemoryRegionPtr> regions() const {
    const auto map = memory_.map().snapshot();
    return {map->memory.regions().begin(), map->memory.regions().end()};
  }

  /// Expects that a message is refused, that its sender is told, and that nothing has changed.
  template <typename Call>
  void expect_refused(Errc code, Call call) {
    const auto before = regions();
    const auto descriptors = open_descriptors();
    const Outcome outcome = call();
    EXPECT_THAT(outcome.served, HasError(code));
    EXPECT_EQ(outcome.reply, 1U);
    EXPECT_EQ(regions(), before);
    EXPECT_EQ(open_descriptors(), descriptors);
    VMSPACE_EXPECT_OK(memory_.check_invariants());
  }
  void expect_done(const Outcome& outcome) {
    EXPECT_THAT(outcome.served, IsOkAndHolds(true));
    EXPECT_EQ(outcome.reply, 0U);
    VMSPACE_EXPECT_OK(memory_.check_invariants());
  }

  SocketPair pair_;
  Descriptor file_ = memory_file(1_MiB);
  VhostUserBackendMemory memory_{
      std::move(*VhostUserBackendMemory::create({.max_regions = 4, .release_timeout = {}}))};
};

TEST_F(VhostUserBackend, RegionsComeAndGoOneByOne) {
  expect_done(add(region(0, 64_KiB)));
  expect_done(add(region(4_GiB, 64_KiB, 64_KiB)));
  EXPECT_THAT(regions(), SizeIs(2));
  EXPECT_EQ(regions()[1]->mapping().file_offset(), 64_KiB);
  expect_done(remove(region(0, 64_KiB)));
  EXPECT_THAT(regions(), SizeIs(1));
  // The offset does not matter when a region goes, and a descriptor is closed.
  const auto descriptors = open_descriptors();
  expect_done(serve(vhost_user::rem_mem_reg,
                    bytes_of(WireSingle{.region = region(4_GiB, 64_KiB, 5)}), {file_.value()}));
  EXPECT_THAT(regions(), IsEmpty());
  EXPECT_LT(open_descriptors().size(), descriptors.size());  // the region's own
}

TEST_F(VhostUserBackend, ATableReplacesAnother) {
  expect_done(set_table({region(0, 64_KiB), region(1_MiB, 64_KiB, 64_KiB)}));
  const MemoryRegion* const second = regions()[1].get();
  expect_done(set_table({region(1_MiB, 64_KiB, 64_KiB), region(2_MiB, 64_KiB, 128_KiB)}));
  ASSERT_THAT(regions(), SizeIs(2));
  EXPECT_EQ(regions()[0].get(), second) << "what stays is not mapped again";
  // What the front-end describes alike, but of another file, or part of it, is new memory.
  file_ = memory_file(1_MiB);
  expect_done(set_table({region(1_MiB, 64_KiB, 64_KiB)}));
  EXPECT_EQ(::pwrite(file_.value(), "new", 4, 64_KiB), 4);
  EXPECT_THAT(memory_.map().snapshot()->memory.read_string(GuestAddress(1_MiB), 8),
              IsOkAndHolds(std::string("new")));
  expect_done(set_table({region(1_MiB, 64_KiB, 128_KiB)}));
  EXPECT_EQ(regions()[0]->mapping().file_offset(), 128_KiB);
  expect_done(set_table({}));
  EXPECT_THAT(regions(), IsEmpty());
}

TEST_F(VhostUserBackend, MessagesAboutOtherThingsAreLeftToTheDevice) {
  for (const std::uint32_t request : {0U, 1U, 3U, 4U, 7U, 8U, 15U, 16U, 35U, 39U, UINT32_MAX}) {
    const Outcome outcome = serve(request, {});
    EXPECT_THAT(outcome.served, IsOkAndHolds(false));
    EXPECT_FALSE(outcome.reply);
  }
}

TEST_F(VhostUserBackend, TellsHowManyRegionsItTakesAndTakesNoMore) {
  const Outcome slots = serve(vhost_user::get_max_mem_slots, {}, {}, 0);
  EXPECT_THAT(slots.served, IsOkAndHolds(true));
  EXPECT_EQ(slots.reply, 4U);
  for (std::uint64_t i = 0; i < 4; ++i)
    expect_done(add(region(i * 64_KiB, 64_KiB)));
  expect_refused(Errc::limit_exceeded, [&] { return add(region(1_MiB, 64_KiB)); });
  std::vector<WireRegion> table;
  for (std::uint64_t i = 0; i < 5; ++i)
    table.push_back(region(i * 64_KiB, 64_KiB));
  expect_refused(Errc::limit_exceeded, [&] { return set_table(table); });
  EXPECT_THAT(VhostUserBackendMemory::create({.max_regions = GuestMemory::max_regions + 1}),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(VhostUserBackendMemory::create({.unsealed = static_cast<Unsealed>(7)}),
              HasError(Errc::invalid_argument));
}

TEST_F(VhostUserBackend, RegionsThatCanNotBeAreRefused) {
  expect_done(add(region(1_MiB, 64_KiB)));
  const auto user = [](WireRegion wire, std::uint64_t address) {
    wire.user_address = address;
    return wire;
  };
  struct Case {
    const char* what;
    WireRegion wire;
    Errc code;
  };
  const std::uint64_t top = 0 - 64_KiB;
  const Case cases[] = {
      {"empty", region(0, 0), Errc::zero_size},
      {"guest addresses wrap", user(region(top, 128_KiB), user_base), Errc::overflow},
      {"user addresses wrap", user(region(0, 128_KiB), top), Errc::overflow},
      {"everything wraps", user(region(1, UINT64_MAX), 1), Errc::misaligned},
      {"the same", region(1_MiB, 64_KiB), Errc::overlap},
      {"guest addresses meet", user(region(1_MiB + 60_KiB, 8_KiB), user_base), Errc::overlap},
      {"user addresses meet", user(region(0, 64_KiB), user_base + 1_MiB - 60_KiB), Errc::overlap},
      {"around it", region(0, 2_MiB), Errc::overlap},
      {"guest address", user(region(512, 64_KiB), user_base), Errc::misaligned},
      {"user address", user(region(0, 64_KiB), user_base + 512), Errc::misaligned},
      {"size", region(0, 64_KiB + 512), Errc::misaligned},
      {"offset", region(0, 64_KiB, 512), Errc::misaligned},
      {"end of file", region(0, 1_MiB, 4_KiB), Errc::out_of_bounds},
      {"behind the end of file", region(0, 4_KiB, 1_MiB), Errc::out_of_bounds},
      {"offset wraps", region(0, 64_KiB, top), Errc::limit_exceeded},
  };
  for (const Case& refused : cases) {
    SCOPED_TRACE(refused.what);
    expect_refused(refused.code, [&] { return add(refused.wire); });
    // And as the last of a table, where the others were good.
    expect_refused(refused.code, [&] { return set_table({region(1_MiB, 64_KiB), refused.wire}); });
  }
  // Up to the last byte of both address spaces.
  expect_done(add(user(region(top, 64_KiB), top)));
}

TEST_F(VhostUserBackend, OnlyExactlyARegionCanBeRemoved) {
  const WireRegion there = region(1_MiB, 64_KiB);
  expect_done(add(there));
  for (std::uint64_t WireRegion::*field :
       {&WireRegion::guest_address, &WireRegion::user_address, &WireRegion::size}) {
    WireRegion other = there;
    other.*field -= 4_KiB;
    expect_refused(Errc::not_found, [&] { return remove(other); });
  }
  expect_done(remove(there));
  expect_refused(Errc::not_found, [&] { return remove(there); });
}

TEST_F(VhostUserBackend, MessagesThatAreNotWhatTheirNumberImpliesAreCorrupt) {
  expect_done(add(region(1_MiB, 64_KiB)));
  const auto single = bytes_of(WireSingle{.region = region(0, 64_KiB)});
  const auto table = bytes_of(WireTable{.count = 1, .padding = 0}, region(0, 64_KiB));
  const int fd = file_.value();
  const auto refused = [&](std::uint32_t request, const std::vector<std::byte>& payload,
                           const std::vector<int>& fds) {
    SCOPED_TRACE(request);
    expect_refused(Errc::corrupt, [&] { return serve(request, payload, fds); });
  };
  refused(vhost_user::add_mem_reg, {}, {fd});
  refused(vhost_user::add_mem_reg, single, {});
  refused(vhost_user::add_mem_reg, single, {fd, fd});
  refused(vhost_user::add_mem_reg, bytes_of(region(0, 64_KiB)), {fd});
  refused(vhost_user::rem_mem_reg, single, {fd, fd});
  refused(vhost_user::rem_mem_reg, table, {});
  refused(vhost_user::set_mem_table, table, {});
  refused(vhost_user::set_mem_table, table, {fd, fd});
  refused(vhost_user::set_mem_table, {}, {});
  refused(vhost_user::get_max_mem_slots, {}, {fd});
  refused(vhost_user::get_max_mem_slots, single, {});
  const Outcome reply = serve(vhost_user::rem_mem_reg, single, {}, vhost_user::is_reply);
  EXPECT_THAT(reply.served, HasError(Errc::corrupt));
  EXPECT_FALSE(reply.reply);
}

TEST_F(VhostUserBackend, FilesThatAreNoMemoryAreRefused) {
  expect_refused(Errc::invalid_argument, [&] { return add(region(0, 4_KiB), pair_.back.value()); });
  const Descriptor shrinks = memory_file(64_KiB, 0);
  expect_refused(Errc::access_denied, [&] { return add(region(0, 64_KiB), shrinks.value()); });
  const Descriptor sealed = memory_file(64_KiB, F_SEAL_SHRINK | F_SEAL_WRITE);
  expect_refused(Errc::access_denied, [&] { return add(region(0, 64_KiB), sealed.value()); });

  memory_ = std::move(*VhostUserBackendMemory::create({.unsealed = Unsealed::accept}));
  expect_done(add(region(0, 64_KiB), shrinks.value()));
}

TEST_F(VhostUserBackend, IsAcknowledgedOnlyWhenAskedFor) {
  const auto single = bytes_of(WireSingle{.region = region(0, 64_KiB)});
  Outcome outcome = serve(vhost_user::add_mem_reg, single, {file_.value()}, 0);
  EXPECT_THAT(outcome.served, IsOkAndHolds(true));
  EXPECT_FALSE(outcome.reply);
  outcome = serve(vhost_user::add_mem_reg, single, {file_.value()}, 0);
  EXPECT_THAT(outcome.served, HasError(Errc::overlap));
  EXPECT_FALSE(outcome.reply);
}

TEST_F(VhostUserBackend, MemoryIsNeverPopulated) {
  file_ = memory_file(256_MiB);
  expect_done(set_table({region(0, 256_MiB)}));
  EXPECT_EQ(regions()[0]->mapping().residency()->resident, 0U);
}

TEST_F(VhostUserBackend, UserAddressesAreFoundWithinOneRegion) {
  expect_done(add(region(1_MiB, 64_KiB)));
  expect_done(add(region(1_MiB + 64_KiB, 64_KiB, 64_KiB)));
  const std::uint64_t user = user_base + 1_MiB;
  EXPECT_THAT(memory_.guest_address(user, 64_KiB), IsOkAndHolds(GuestAddress(1_MiB)));
  EXPECT_THAT(memory_.guest_address(user + 64_KiB + 8, 16),
              IsOkAndHolds(GuestAddress(1_MiB + 64_KiB + 8)));
  EXPECT_THAT(memory_.guest_address(user, 0), HasError(Errc::zero_size));
  EXPECT_THAT(memory_.guest_address(user - 1, 1), HasError(Errc::not_found));
  EXPECT_THAT(memory_.guest_address(user + 128_KiB, 1), HasError(Errc::not_found));
  EXPECT_THAT(memory_.guest_address(user + 1, 64_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory_.guest_address(user, UINT64_MAX), HasError(Errc::overflow));
  EXPECT_THAT(memory_.guest_address(0, UINT64_MAX), HasError(Errc::not_found));
  EXPECT_THAT(memory_.guest_address(UINT64_MAX, 1), HasError(Errc::not_found));
}

// Removal waits.

TEST_F(VhostUserBackend, WhatSomebodyUsesIsNotRemoved) {
  const WireRegion there = region(1_MiB, 64_KiB);
  expect_done(add(there));
  auto reader = memory_.map().reader();
  EXPECT_THAT(reader.current().memory.regions(), SizeIs(1));
  expect_refused(Errc::timed_out, [&] { return remove(there); });
  expect_refused(Errc::timed_out, [&] { return set_table({region(0, 64_KiB)}); });
  EXPECT_THAT(memory_.clear(), HasError(Errc::timed_out));
  expect_done(add(region(2_MiB, 64_KiB)));  // nobody has to wait for more
  reader.park();
  {
    const auto view = VMSPACE_ASSERT_OK(
        memory_.map().snapshot()->memory.view({.base = GuestAddress(1_MiB), .size = 8}));
    expect_refused(Errc::timed_out, [&] { return remove(there); });
  }
  {
    const GuestMemory copy = memory_.map().snapshot()->memory;
    expect_refused(Errc::timed_out, [&] { return remove(there); });
  }
  expect_done(remove(there));
  EXPECT_THAT(memory_.clear(), IsOk());
  EXPECT_THAT(regions(), IsEmpty());
}

TEST_F(VhostUserBackend, WhatIsRemovedIsUnmappedBeforeTheReply) {
  file_ = memory_file(256_MiB);
  expect_done(add(region(0, 256_MiB)));
  const std::uint64_t mapped = address_space_bytes();
  expect_done(remove(region(0, 256_MiB)));
  EXPECT_LT(address_space_bytes(), mapped - 128_MiB);
}

// Logs.

TEST_F(VhostUserBackend, ALogIsThereFromSetLogBaseUntilFeaturesWithoutLogging) {
  expect_done(add(region(0, 64_KiB)));
  const Outcome outcome = set_log(64);
  EXPECT_THAT(outcome.served, IsOkAndHolds(true));
  EXPECT_EQ(outcome.reply, 0U) << "whether or not it was asked for";
  EXPECT_TRUE(memory_.map().snapshot()->log.is_on());
  const auto set_features = [&](std::uint64_t features) {
    const Outcome done = serve(vhost_user::set_features, bytes_of(features));
    EXPECT_THAT(done.served, IsOkAndHolds(false)) << "the device's to serve";
    EXPECT_FALSE(done.reply);
  };
  set_features(vhost_user::log_all);
  EXPECT_TRUE(memory_.map().snapshot()->log.is_on());
  set_features(~vhost_user::log_all);
  EXPECT_FALSE(memory_.map().snapshot()->log.is_on());
  VMSPACE_EXPECT_OK(memory_.check_invariants());
  EXPECT_THAT(serve(vhost_user::set_features, {}).served, IsOkAndHolds(false));
}

TEST_F(VhostUserBackend, ALogHasABitForEveryRegionThatIsAddedLater) {
  expect_done(set_table({region(0, 64_KiB)}));
  EXPECT_THAT(set_log(1).served, HasError(Errc::out_of_bounds));  // 32 KiB
  EXPECT_FALSE(memory_.map().snapshot()->log.is_on());
  EXPECT_THAT(set_log(4).served, IsOkAndHolds(true));  // 128 KiB
  expect_done(add(region(64_KiB, 64_KiB)));
  expect_refused(Errc::out_of_bounds, [&] { return add(region(128_KiB, 4_KiB)); });
  expect_refused(Errc::out_of_bounds, [&] { return set_table({region(128_KiB, 4_KiB)}); });
  EXPECT_THAT(set_log(8).served, IsOkAndHolds(true));
  expect_done(add(region(128_KiB, 4_KiB)));
}

TEST_F(VhostUserBackend, ARefusedLogHasNoReplyAndTheOldOneStays) {
  EXPECT_THAT(set_log(64).served, IsOkAndHolds(true));
  Outcome refused = set_log(2_MiB, vhost_user::need_reply);
  EXPECT_THAT(refused.served, HasError(Errc::out_of_bounds));
  EXPECT_FALSE(refused.reply);
  refused = serve(vhost_user::set_log_base, bytes_of(std::uint64_t{4096}));
  EXPECT_THAT(refused.served, HasError(Errc::corrupt));
  EXPECT_EQ(memory_.map().snapshot()->log.size(), 64U);
  // While somebody may still write to the old log, there is no other.
  const VhostUserLog kept = memory_.map().snapshot()->log;
  EXPECT_THAT(set_log(128).served, HasError(Errc::timed_out));
  EXPECT_EQ(memory_.map().snapshot()->log.size(), 64U);
}

TEST_F(VhostUserBackend, AFrontEndThatDoesNotReadItsReplyIsReported) {
  send_request(pair_.front.value(), vhost_user::get_max_mem_slots, {});
  const auto message =
      VMSPACE_ASSERT_OK(VhostUserMessage::receive(pair_.back.value(), long_enough));
  pair_.front = {};
  EXPECT_THAT(memory_.serve(pair_.back.value(), message), HasError(Errc::os));
}

TEST_F(VhostUserBackend, EveryFailingCallLeavesWhatWasThere) {
  expect_done(add(region(1_MiB, 64_KiB)));
  const auto body = [&]() -> Result<void> {
    VMSPACE_TRY(add(region(0, 64_KiB, 64_KiB)).served);
    VMSPACE_TRY(set_log(4_KiB).served);
    VMSPACE_TRY(set_table({region(0, 64_KiB), region(1_MiB, 64_KiB)}).served);
    return {};
  };
  const auto reset = [&] {
    VMSPACE_EXPECT_OK(memory_.clear());
    expect_done(add(region(1_MiB, 64_KiB)));
  };
  Injector injector;
  injector.fail_none();
  VMSPACE_ASSERT_OK(body());
  const auto calls = injector.calls();
  reset();
  for (std::size_t index = 0; index < calls.size(); ++index) {
    // The test itself sends and receives; and what can't be unmapped or closed is lost.
    if (calls[index] == "sendmsg" || calls[index] == "recvmsg" || calls[index] == "munmap" ||
        calls[index] == "close" || calls[index] == "membarrier" || calls[index] == "poll") {
      continue;
    }
    for (const int error : {ENOMEM, EINTR}) {
      SCOPED_TRACE(calls[index] + " " + std::to_string(index) + ": " + std::strerror(error));
      injector.fail_none();
      const auto before = open_descriptors();
      injector.fail_call(index, error);
      const auto done = body();
      ASSERT_TRUE(injector.has_failed());
      injector.fail_none();
      if (!done) {
        EXPECT_EQ(done.error().os_errno, error) << done.error().message();
      }
      VMSPACE_EXPECT_OK(memory_.check_invariants());
      reset();
      EXPECT_EQ(open_descriptors(), before);
    }
  }
}

TEST_F(VhostUserBackend, RunningOutOfMemoryLeavesWhatWasThere) {
  expect_done(add(region(1_MiB, 64_KiB)));
  send_request(pair_.front.value(), vhost_user::add_mem_reg,
               bytes_of(WireSingle{.region = region(0, 64_KiB)}), {file_.value()});
  send_request(pair_.front.value(), vhost_user::set_mem_table,
               bytes_of(WireTable{.count = 1, .padding = 0}, region(2_MiB, 64_KiB)),
               {file_.value()});
  for (int i = 0; i < 2; ++i) {
    const auto message =
        VMSPACE_ASSERT_OK(VhostUserMessage::receive(pair_.back.value(), long_enough));
    const auto before = regions().size();
    Result<bool> served;
    const int failed =
        fail_each_allocation([&] { served = memory_.serve(pair_.back.value(), message); },
                             [&] {
                               VMSPACE_EXPECT_OK(memory_.check_invariants());
                               EXPECT_THAT(regions(), SizeIs(before));
                             });
    EXPECT_GT(failed, 0);
    EXPECT_THAT(served, IsOkAndHolds(true));
    VMSPACE_EXPECT_OK(memory_.check_invariants());
  }
}

}  // namespace
}  // namespace vmspace::vhost_user_backend_test
