// SPDX-License-Identifier: Apache-2.0

#include "session.hpp"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "vmspace/base/try.hpp"

#include "logged_queue.hpp"

namespace vhost_user_blk {

using namespace std::chrono_literals;
using vmspace::Errc;
using vmspace::fail;
using vmspace::Operand;
using vmspace::Result;
using vmspace::VhostUserBackendMemory;
using vmspace::VhostUserMessage;

namespace {

constexpr const char* operation = "Session::run";
constexpr auto patience = 1s;  // for the rest of a message, and for the front-end to take a reply

/// Requests that concern the device (VHOST_USER_*).
enum Request : std::uint32_t {
  get_features = 1,
  set_features = 2,
  set_owner = 3,
  reset_owner = 4,
  set_vring_num = 8,
  set_vring_addr = 9,
  set_vring_base = 10,
  get_vring_base = 11,
  set_vring_kick = 12,
  set_vring_call = 13,
  set_vring_err = 14,
  get_protocol_features = 15,
  set_protocol_features = 16,
  get_queue_num = 17,
  set_vring_enable = 18,
  get_config = 24,
  set_config = 25,
};

constexpr std::uint64_t bit(unsigned number) {
  return std::uint64_t{1} << number;
}
constexpr unsigned log_all_bit = 26;            // VHOST_F_LOG_ALL
constexpr unsigned protocol_features_bit = 30;  // VHOST_USER_F_PROTOCOL_FEATURES
constexpr std::uint64_t device_features =
    bit(VIRTIO_F_VERSION_1) | Ring::features | bit(log_all_bit) | bit(protocol_features_bit);
constexpr std::uint64_t config_feature = bit(9);  // VHOST_USER_PROTOCOL_F_CONFIG
constexpr std::uint64_t protocol_features =
    VhostUserBackendMemory::protocol_features | config_feature;

auto corrupt(const VhostUserMessage& message, const char* reason) {
  return fail({.code = Errc::corrupt,
               .operation = operation,
               .first = Operand::number(message.request()),
               .reason = reason});
}

/// The payload, if it is of just this type.
template <typename T>
Result<T> payload_of(const VhostUserMessage& message) {
  if (message.payload().size() != sizeof(T)) return corrupt(message, "the payload's size is wrong");
  T value;
  std::memcpy(&value, message.payload().data(), sizeof value);
  return value;
}

/// Number of a ring, and of something else; the only ring is number 0.
struct RingNumber {
  std::uint32_t ring, number;
};
Result<std::uint32_t> ring_number(const VhostUserMessage& message) {
  const auto state = VMSPACE_TRY(payload_of<RingNumber>(message));
  if (state.ring != 0) return corrupt(message, "there is one ring, number 0");
  return state.number;
}

/// struct vhost_vring_addr; linux/vhost.h can't be included in C++.
struct RingAddresses {
  std::uint32_t ring, flags;
  std::uint64_t descriptors, used, available, log;
};

/// The eventfd of a ring; none where the front-end wants polling.
Result<Descriptor> ring_event(VhostUserMessage& message) {
  const std::uint64_t number = VMSPACE_TRY(message.number());
  if ((number & 0xff) != 0) return corrupt(message, "there is one ring, number 0");
  const bool is_polled = (number & bit(8)) != 0;
  if (message.fds().size() != (is_polled ? 0 : 1)) {
    return corrupt(message, "a ring's event is one descriptor");
  }
  return Descriptor(is_polled ? -1 : message.release_fds()[0]);
}

}  // namespace

Result<Disk> Disk::open(const char* path) {
  const auto os_failure = [&](const char* call) {
    return fail({.code = Errc::os,
                 .operation = "Disk::open",
                 .reason = call,
                 .os_errno = errno,
                 .text = {{}, path}});
  };
  Descriptor file(::open(path, O_RDWR | O_CLOEXEC));
  if (file.get() < 0) return os_failure("open");
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return os_failure("fstat");
  const std::uint64_t sectors =
      static_cast<std::uint64_t>(status.st_size) / example::BlkDevice::sector_size;
  return Disk{std::move(file), sectors};
}

Result<Session> Session::create(Descriptor socket, const Disk& disk) {
  auto memory = VMSPACE_TRY(VhostUserBackendMemory::create());
  return Session(std::move(socket), std::move(memory), disk);
}

Result<void> Session::run() {
  for (;;) {
    std::array<pollfd, 2> ready{
        pollfd{.fd = socket_.get(), .events = POLLIN, .revents = 0},
        pollfd{
            .fd = ring_.queue() != nullptr ? ring_.kick_fd() : -1, .events = POLLIN, .revents = 0}};
    if (::poll(ready.data(), ready.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return fail({.code = Errc::os, .operation = operation, .reason = "poll", .os_errno = errno});
    }
    if (ready[1].revents != 0) {
      ring_.acknowledge();
      serve_ring();
    }
    if (ready[0].revents == 0) continue;
    auto message = VhostUserMessage::receive(socket_.get(), patience);
    if (!message) {
      const bool is_closed = message.error().os_errno == ECONNRESET;
      if (is_closed) return {};
      return fail(message.error());
    }
    VMSPACE_TRY(serve_message(*message));
  }
}

Result<void> Session::serve_message(VhostUserMessage& message) {
  // While the library serves a message about memory, this thread uses none of it.
  const auto served = memory_.serve(socket_.get(), message);
  if (!served) {
    fmt::print(stderr, "vhost_user_blk: refused: {}\n", served.error().message());
    if (message.needs_reply()) return {};  // the front-end was told
    return fail(served.error());
  }
  if (*served) {
    say_memory();
    return restart_ring();
  }
  const auto done = serve_device_message(message);
  if (!done) return done;
  // What has an answer of its own has given it.
  switch (message.request()) {
    case get_features:
    case get_protocol_features:
    case get_queue_num:
    case get_vring_base:
    case get_config: return {};
    default: break;
  }
  return message.needs_reply() ? message.reply(socket_.get(), 0, patience) : Result<void>();
}

void Session::say_memory() const {
  const auto now = memory_.map().snapshot();
  std::uint64_t bytes = 0;
  for (const auto& region : now->memory.regions())
    bytes += region->size();
  fmt::print("vhost_user_blk: {} MiB of memory in {} regions{}\n", bytes >> 20,
             now->memory.regions().size(), now->log.is_on() ? ", logged" : "");
  std::fflush(stdout);
}

Result<void> Session::serve_device_message(VhostUserMessage& message) {
  std::uint32_t number = 0;
  switch (message.request()) {
    case get_features: return message.reply(socket_.get(), device_features, patience);
    case get_protocol_features: return message.reply(socket_.get(), protocol_features, patience);
    case get_queue_num: return message.reply(socket_.get(), 1, patience);
    case set_features:
      features_ = VMSPACE_TRY(message.number());
      if ((features_ & ~device_features) != 0) {
        return corrupt(message, "a feature that was not offered");
      }
      // Without it, a ring is enabled as it starts.
      if ((features_ & bit(protocol_features_bit)) == 0) ring_.enable(true);
      return {};
    case set_vring_num:
      number = VMSPACE_TRY(ring_number(message));
      if (number > 32'768) return corrupt(message, "a ring has at most 32768 entries");
      ring_.set_size(static_cast<std::uint16_t>(number));
      return {};
    case set_vring_base:
      number = VMSPACE_TRY(ring_number(message));
      if (number > 0xffff) return corrupt(message, "an index has 16 bits");
      ring_.set_next(static_cast<std::uint16_t>(number));
      return {};
    case set_vring_addr: {
      const auto where = VMSPACE_TRY(payload_of<RingAddresses>(message));
      if (where.ring != 0) return corrupt(message, "there is one ring, number 0");
      ring_.set_addresses(
          {.descriptors = where.descriptors, .used = where.used, .available = where.available});
      return {};
    }
    case set_vring_kick: {
      auto event = VMSPACE_TRY(ring_event(message));
      ring_.set_kick(std::move(event));
      return restart_ring();
    }
    case set_vring_call: {
      auto event = VMSPACE_TRY(ring_event(message));
      ring_.set_call(std::move(event));
      return {};
    }
    case set_vring_enable:
      number = VMSPACE_TRY(ring_number(message));
      ring_.enable(number != 0);
      serve_ring();  // what was kicked before
      return {};
    case get_vring_base: {
      number = VMSPACE_TRY(ring_number(message));
      const RingNumber next{.ring = 0, .number = ring_.stop()};
      return message.reply(socket_.get(), std::as_bytes(std::span(&next, 1)), patience);
    }
    case get_config: return send_config(message);
    case set_owner:
    case reset_owner:
    case set_vring_err:
    case set_protocol_features:
    case set_config: return {};
    default: return corrupt(message, "a request that was not offered");
  }
}

/// The device's configuration (virtio 1.2, section 5.2.4), of which the capacity matters.
Result<void> Session::send_config(const VhostUserMessage& message) {
  struct Config {
    std::uint32_t offset, size, flags;
    std::array<std::byte, 256> bytes;
  };
  constexpr std::size_t head = 3 * sizeof(std::uint32_t);
  if (message.payload().size() < head) return corrupt(message, "the payload's size is wrong");
  Config config{};
  std::memcpy(&config, message.payload().data(), head);
  if (config.size > config.bytes.size() || config.offset > config.bytes.size() - config.size) {
    return corrupt(message, "past the end of the configuration");
  }
  virtio_blk_config blk{};
  blk.capacity = sectors_;
  std::array<std::byte, 256> all{};
  std::memcpy(all.data(), &blk, sizeof blk);
  std::memcpy(config.bytes.data(), all.data() + config.offset, config.size);
  return message.reply(socket_.get(),
                       std::as_bytes(std::span(&config, 1)).first(head + config.size), patience);
}

Result<void> Session::restart_ring() {
  const auto started = ring_.start(memory_, features_);
  // The front-end may be about to remove the memory that the ring is in, or to bring it.
  if (!started)
    fmt::print(stderr, "vhost_user_blk: the ring waits: {}\n", started.error().message());
  serve_ring();
  return {};
}

/// A driver that breaks the rules has its ring stopped; its front-end, and others, go on.
void Session::serve_ring() {
  vmspace::SplitQueue* const queue = ring_.queue();
  if (queue == nullptr) return;
  const auto now = memory_.map().snapshot();
  LoggedQueue logged(*queue, now->log);
  const auto serve_all = [&]() -> Result<void> {
    for (bool any = true; any;) {
      const bool notify = VMSPACE_TRY(device_.serve(now->memory, logged));
      if (notify) ring_.notify();
      any = VMSPACE_TRY(logged.enable_notifications(now->memory));  // one that came meanwhile
    }
    return {};
  };
  const auto served = serve_all();
  if (served) return;
  fmt::print(stderr, "vhost_user_blk: the ring is stopped: {}\n", served.error().message());
  ring_.stop();
}

}  // namespace vhost_user_blk
