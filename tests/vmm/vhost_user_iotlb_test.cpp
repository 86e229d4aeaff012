// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_iotlb.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "vmspace/memory/iommu_view.hpp"

#include "vmm/vhost_user_support.hpp"

namespace vmspace::vhost_user_iotlb_test {
namespace {

using namespace std::chrono_literals;
using namespace test;
using detail::WireIotlb;
using testing::IsEmpty;

constexpr std::uint64_t guest_base = 0x10000;
constexpr std::uint64_t user_base = 0x7f00'0000'0000;
constexpr std::uint64_t iova_base = 0xffff'0000;
constexpr std::uint64_t size = 0x4000;

WireIotlb update_of(std::uint64_t iova, std::uint64_t bytes, std::uint64_t user,
                    std::uint8_t access = vhost_user::access_both) {
  return {.iova = iova,
          .size = bytes,
          .user_address = user,
          .access = access,
          .type = vhost_user::iotlb_update};
}

WireIotlb invalidation_of(std::uint64_t iova, std::uint64_t bytes) {
  return {.iova = iova, .size = bytes, .type = vhost_user::iotlb_invalidate};
}

/// A back-end with a region of memory, and a front-end that sends messages.
class VhostUserIotlb : public testing::Test {
 protected:
  struct Outcome {
    Result<bool> served;
    std::optional<std::uint64_t> reply;
  };

  void SetUp() override {
    const WireSingle wire{
        .region = {.guest_address = guest_base, .size = size, .user_address = user_base}};
    send_request(pair_.front.value(), vhost_user::add_mem_reg, bytes_of(wire), {file_.value()});
    const auto message = VhostUserMessage::receive(pair_.back.value(), long_enough);
    ASSERT_THAT(message, IsOk());
    ASSERT_THAT(memory_.serve(pair_.back.value(), *message), IsOkAndHolds(true));
  }

  Outcome send(const std::vector<std::byte>& payload, const std::vector<int>& fds = {},
               std::uint32_t request = vhost_user::iotlb_msg,
               std::uint32_t flags = vhost_user::need_reply) {
    send_request(pair_.front.value(), request, payload, fds, flags);
    const auto message = VhostUserMessage::receive(pair_.back.value(), long_enough);
    EXPECT_TRUE(message) << message.error().message();
    Outcome outcome{.served = serve_iotlb(pair_.back.value(), *message, memory_, tlb_,
                                          {.release_timeout = 10ms}),
                    .reply = {}};
    const auto reply = VhostUserMessage::receive(pair_.front.value(), 0ns);
    if (reply) outcome.reply = *reply->number();
    return outcome;
  }
  Outcome send(const WireIotlb& wire) { return send(bytes_of(wire)); }

  void expect_done(const Outcome& outcome) {
    EXPECT_THAT(outcome.served, IsOkAndHolds(true));
    EXPECT_EQ(outcome.reply, 0U);
    VMSPACE_EXPECT_OK(tlb_.check_invariants());
  }
  /// Expects that it is refused, that its sender is told, and that nothing has changed.
  template <typename Message>
  void expect_refused(Errc code, const Message& message) {
    const auto before = tlb_.entries();
    const Outcome outcome = send(message);
    EXPECT_THAT(outcome.served, HasError(code));
    EXPECT_EQ(outcome.reply, 1U);
    EXPECT_EQ(tlb_.entries(), before);
  }

  SocketPair pair_;
  Descriptor file_ = memory_file(size);
  VhostUserBackendMemory memory_ = std::move(*VhostUserBackendMemory::create());
  IoTlb tlb_ = std::move(*IoTlb::make());
};

TEST_F(VhostUserIotlb, AnUpdateTranslatesToWhatTheFrontEndHasShared) {
  expect_done(send(update_of(iova_base, 0x2000, user_base + 0x1000, vhost_user::access_read)));
  const IoTlbEntry expected{.iova = GuestAddress(iova_base),
                            .guest = {GuestAddress(guest_base + 0x1000), 0x2000},
                            .access = Protection::read};
  EXPECT_EQ(tlb_.entries(), std::vector{expected});
  const auto map = memory_.map().snapshot();
  VMSPACE_EXPECT_OK(map->memory.write(GuestAddress(guest_base + 0x1008), 7U));
  IoTlbReader reader = tlb_.reader();
  IommuView view(reader, map->memory);
  EXPECT_THAT(view.read<std::uint32_t>(GuestAddress(iova_base + 8)), IsOkAndHolds(7U));
  EXPECT_THAT(view.write(GuestAddress(iova_base + 8), 8U), HasError(Errc::access_denied));
}

TEST_F(VhostUserIotlb, AnInvalidationIsAcknowledgedWhenNobodyUsesIt) {
  expect_done(send(update_of(iova_base, size, user_base)));
  IoTlbReader reader = tlb_.reader();
  const GuestMemory memory = memory_.map().snapshot()->memory;
  {
    const IommuView view(reader, memory);
    const Outcome outcome = send(invalidation_of(iova_base, 0x1000));
    EXPECT_THAT(outcome.served, HasError(Errc::timed_out));
    EXPECT_EQ(outcome.reply, 1U);
  }
  expect_done(send(invalidation_of(iova_base, 0x1000)));
  IommuView view(reader, memory);
  EXPECT_THAT(view.read<std::uint8_t>(GuestAddress(iova_base)), HasError(Errc::not_found));
  VMSPACE_EXPECT_OK(view.read<std::uint8_t>(GuestAddress(iova_base + 0x1000)));
}

TEST_F(VhostUserIotlb, AllIsInvalidatedAtOnce) {
  expect_done(send(update_of(0, 0x1000, user_base)));
  expect_done(send(update_of(iova_base, 0x1000, user_base)));
  expect_done(send(invalidation_of(0, ~std::uint64_t{0})));
  EXPECT_THAT(tlb_.entries(), IsEmpty());
}

TEST_F(VhostUserIotlb, MessagesAboutSomethingElseAreOthers) {
  const Outcome other = send(bytes_of(std::uint64_t{0}), {}, vhost_user::set_features, 0);
  EXPECT_THAT(other.served, IsOkAndHolds(false));
  EXPECT_EQ(other.reply, std::nullopt);
  const Outcome silent =
      send(bytes_of(update_of(0, 0x1000, user_base)), {}, vhost_user::iotlb_msg, 0);
  EXPECT_THAT(silent.served, IsOkAndHolds(true));
  EXPECT_EQ(silent.reply, std::nullopt);
}

TEST_F(VhostUserIotlb, RefusesWhatIsWrongAndChangesNothing) {
  expect_done(send(update_of(iova_base, 0x1000, user_base)));
  // Not memory of this front-end, or past its end, or none.
  expect_refused(Errc::not_found, update_of(0, 0x1000, user_base - 0x1000));
  expect_refused(Errc::out_of_bounds, update_of(0, size, user_base + 0x1000));
  expect_refused(Errc::zero_size, update_of(0, 0, user_base));
  expect_refused(Errc::overflow, update_of(~std::uint64_t{0}, 0x1000, user_base));
  expect_refused(Errc::overflow, update_of(0, 0x2000, ~std::uint64_t{0xfff}));
  // Accesses and types that there are not.
  for (const int access : {0, 4, 255})
    expect_refused(Errc::corrupt,
                   update_of(0, 0x1000, user_base, static_cast<std::uint8_t>(access)));
  WireIotlb odd = update_of(0, 0x1000, user_base);
  for (const int type :
       {0, int{vhost_user::iotlb_miss}, int{vhost_user::iotlb_access_fail}, 5, 255}) {
    odd.type = static_cast<std::uint8_t>(type);
    expect_refused(Errc::corrupt, odd);
  }
  // Sizes and descriptors.
  auto bytes = bytes_of(update_of(0, 0x1000, user_base));
  bytes.push_back(std::byte{0});
  expect_refused(Errc::corrupt, bytes);
  bytes.resize(31);
  expect_refused(Errc::corrupt, bytes);
  EXPECT_THAT(send(bytes_of(update_of(0, 0x1000, user_base)), {file_.value()}).served,
              HasError(Errc::corrupt));
}

TEST_F(VhostUserIotlb, AMissIsSentOverTheChannel) {
  const SocketPair channel;
  VMSPACE_EXPECT_OK(
      send_iotlb_miss(channel.back.value(), GuestAddress(iova_base), Access::write, long_enough));
  const auto message = VhostUserMessage::receive(channel.front.value(), long_enough);
  ASSERT_THAT(message, IsOk());
  EXPECT_EQ(message->request(), vhost_user::backend_iotlb_msg);
  EXPECT_FALSE(message->needs_reply());
  const WireIotlb expected{
      .iova = iova_base, .access = vhost_user::access_write, .type = vhost_user::iotlb_miss};
  EXPECT_TRUE(std::ranges::equal(message->payload(), bytes_of(expected)));
}

TEST_F(VhostUserIotlb, AMissThatNobodyReadsIsAnError) {
  SocketPair channel;
  channel.front = Descriptor();
  EXPECT_THAT(send_iotlb_miss(channel.back.value(), GuestAddress(0), Access::read, long_enough),
              HasError(Errc::os));
}

}  // namespace
}  // namespace vmspace::vhost_user_iotlb_test
