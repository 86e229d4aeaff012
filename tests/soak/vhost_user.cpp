// SPDX-License-Identifier: Apache-2.0
//
// vhost-user devices that connect, are told of memory as it changes, write to it, and go; and a front-end
// whose messages are wrong.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "activity.hpp"
#include "machine.hpp"
#include "vmm/vhost_user_front_support.hpp"

namespace vmspace::soak {
namespace {

/// Ends a connection, whatever happens, before the device is waited for.
struct HangUp {
  void operator()(const int* socket) const { ::shutdown(*socket, SHUT_RDWR); }
};

class VhostUser final : public Activity {
 public:
  VhostUser(Machine& machine, std::uint64_t seed)
      : Activity("vhost-user", seed), machine_(machine), memory_(machine.only({Machine::shared})) {}

  /// Not always: what a peer is told of counts as written, and a migration has little to find then.
  void begin(unsigned round) override { is_away_ = round / 2 % 2 != 0; }

  void step() override {
    if (is_away_) return std::this_thread::sleep_for(std::chrono::milliseconds(10));
    test::SocketPair pair;
    test::Backend device(std::move(pair.back), {.release_timeout = test::long_enough});
    const std::uint64_t features = test::slots | test::logs | (random(2) == 0 ? test::acks : 0);
    const int socket = pair.front.value();
    std::unique_ptr<const int, HangUp> connection(&socket);
    // Large enough for the highest region that there may be.
    const test::SharedLog log(1_MiB);
    std::shared_ptr<VhostUserMemory> front =
        must(VhostUserMemory::create(socket, test::with(features)));
    must(front->share_log({.fd = log.file.value(), .size = log.mapped}));
    const auto added = machine_.memory.add_listener(front);
    if (!added) {
      // A peer can't have memory of which a live snapshot keeps pages.
      must_refuse(added, Errc::bad_state);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    for (int i = 0; i < 50; ++i) {
      const GuestAddress at(Machine::shared.value() + first +
                            random((Machine::region_size - first) / 8) * 8);
      const std::uint64_t value = random(1'000'000);
      {
        const auto map = device.memory.map().snapshot();
        must(map->memory.write(at, value));
        must(map->log.mark({at, 8}));
      }
      require(must(memory_.read<std::uint64_t>(at)) == value, "what a device writes is there");
      // The front-end itself can't be asked, since others change the machine, and it with it; nor the
      // device while it serves.
      const auto user = reinterpret_cast<std::uintptr_t>(must(memory_.host_address({at, 8})));
      const auto paused = device.pause();
      require(must(device.memory.guest_address(user, 8)) == at,
              "both sides mean the same by a user address");
    }
    must(machine_.memory.remove_listener(*front));
    connection.reset();
    device.join();
    require(device.errors.empty(), "a device refuses no correct message");
    must(device.memory.check_invariants());
  }

 private:
  static constexpr std::uint64_t first = 1_MiB;  ///< below are the queues of bad_input.cpp
  Machine& machine_;
  GuestMemory memory_;
  bool is_away_ = false;
};

class HostileFrontEnd final : public Activity {
 public:
  HostileFrontEnd(Machine& machine, std::uint64_t seed)
      : Activity("hostile front-end", seed), file_(test::memory_file(64_KiB)) {
    static_cast<void>(machine);
  }

  void step() override {
    test::SocketPair pair;
    // All of it is there before the device reads, which may close the connection at any message.
    for (std::uint64_t i = random(8); i != 0; --i)
      send(pair.front.value());
    require(::shutdown(pair.front.value(), SHUT_WR) == 0, "a socket can be shut down");
    test::Backend device(std::move(pair.back));
    device.join();
    must(device.memory.check_invariants());
  }

 private:
  void send(int socket) {
    constexpr std::uint32_t known[] = {
        test::vhost_user::set_mem_table, test::vhost_user::set_log_base,
        test::vhost_user::get_max_mem_slots, test::vhost_user::add_mem_reg,
        test::vhost_user::rem_mem_reg};
    std::vector<std::byte> payload;
    if (random(2) == 0) {
      payload = test::bytes_of(test::WireSingle{.region = {.guest_address = random(3) * 32_KiB,
                                                           .size = random(3) * 32_KiB,
                                                           .user_address = random(3) * 32_KiB,
                                                           .file_offset = random(3) * 32_KiB}});
    } else {
      payload.resize(random(64));
      for (std::byte& byte : payload)
        byte = static_cast<std::byte>(random(4));
    }
    test::send_request(socket, known[random(std::size(known))], payload,
                       std::vector<int>(random(4), file_.value()),
                       random(2) == 0 ? test::vhost_user::need_reply : 0);
  }

  test::Descriptor file_;
};

}  // namespace

std::unique_ptr<Activity> make_vhost_user(Machine& machine, std::uint64_t seed) {
  return std::make_unique<VhostUser>(machine, seed);
}
std::unique_ptr<Activity> make_hostile_front_end(Machine& machine, std::uint64_t seed) {
  return std::make_unique<HostileFrontEnd>(machine, seed);
}

}  // namespace vmspace::soak
