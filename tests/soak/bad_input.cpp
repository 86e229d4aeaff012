// SPDX-License-Identifier: Apache-2.0
//
// What guests, peers and callers get wrong, to the machine while it works: each is refused, with the
// error that says why, and the machine goes on.

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "vmspace/snapshot.hpp"
#include "vmspace/virtio.hpp"

#include "activity.hpp"
#include "machine.hpp"
#include "os/descriptor.hpp"

namespace vmspace::soak {
namespace {

constexpr GuestAddress nowhere{64_GiB};
constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

class BadInput final : public Activity {
 public:
  BadInput(Machine& machine, std::uint64_t seed) : Activity("bad input", seed), machine_(machine) {}

  void step() override {
    accesses();
    changes();
    queues();
    files();
  }

 private:
  [[nodiscard]] std::vector<std::byte> garbage(std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes)
      byte = static_cast<std::byte>(random(256));
    return bytes;
  }

  void accesses() const {
    const auto map = machine_.memory.map();
    const GuestMemory& memory = map->memory;
    // No device has memory behind this one.
    const GuestAddress end(Machine::handed.value() + Machine::region_size);
    must_refuse(memory.read<std::uint64_t>(nowhere), Errc::not_found);
    must_refuse(memory.write(GuestAddress(end.value() - 4), std::uint64_t{1}), Errc::out_of_bounds);
    must_refuse(memory.fill({GuestAddress(top - 3), 8}, std::byte{1}), Errc::overflow);
    must_refuse(memory.load<std::uint64_t>(GuestAddress(4), std::memory_order_relaxed),
                Errc::misaligned);
    must_refuse(memory.view({Machine::handed, Machine::region_size + 1}), Errc::out_of_bounds);
  }

  void changes() const {
    const auto plug = [&](RegionOptions region) {
      region.name = "wrong";
      if (region.backing.source == MemorySource::none) region.backing.source = MemorySource::shmem;
      return machine_.memory.plug(std::move(region));
    };
    must_refuse(plug({.base = Machine::ram, .size = 1_MiB}), Errc::overlap);
    must_refuse(plug({.base = nowhere, .size = 0}), Errc::zero_size);
    must_refuse(plug({.base = GuestAddress(64_GiB + 1), .size = 1_MiB}), Errc::misaligned);
    must_refuse(plug({.base = GuestAddress(top - 4095), .size = 8192}), Errc::overflow);
    must_refuse(plug({.base = nowhere,
                      .size = 1_MiB,
                      .backing = {.source = MemorySource::file, .path = "/nowhere/at/all"}}),
                Errc::os);
    must_refuse(machine_.memory.unplug(nullptr, std::chrono::seconds(1)), Errc::invalid_argument);
    must_refuse(machine_.memory.add_listener(machine_.recorder), Errc::bad_state);
    must_refuse(machine_.manager.acquire({PioRange{.size = 0}}, "wrong"), Errc::zero_size);
    must_refuse(machine_.manager.acquire({LegacyIrq{.fixed = 4000}}, "wrong"), Errc::out_of_bounds);
    // Wrong in its second half: the first is undone.
    must_refuse(machine_.memory.transact([](AddressSpaceBase& draft) -> Result<void> {
      VMSPACE_TRY(draft.insert_region({.name = "undone",
                                       .base = nowhere,
                                       .size = 1_MiB,
                                       .backing = {.source = MemorySource::shmem}}));
      return draft.check_invariants().and_then(
          []() -> Result<void> { return fail({.code = Errc::bad_state, .operation = "soak"}); });
    }),
                Errc::bad_state);
  }

  /// A driver that writes anything at all.
  void queues() {
    const GuestMemory memory = machine_.only({Machine::shared});
    auto split = must(SplitQueue::make({.size = 256,
                                        .descriptors = Machine::shared,
                                        .available = GuestAddress(Machine::shared.value() + 8_KiB),
                                        .used = GuestAddress(Machine::shared.value() + 16_KiB),
                                        .indirect = true}));
    auto packed =
        must(PackedQueue::make({.size = 256,
                                .descriptors = GuestAddress(Machine::shared.value() + 32_KiB),
                                .driver_event = GuestAddress(Machine::shared.value() + 40_KiB),
                                .device_event = GuestAddress(Machine::shared.value() + 44_KiB),
                                .indirect = true}));
    must(memory.write_slice(Machine::shared, garbage(48_KiB)));
    DescriptorChain chain;
    for (int i = 0; i < 10; ++i) {
      static_cast<void>(split.pop(memory, chain));  // a chain, or an error; never a signal
      static_cast<void>(packed.pop(memory, chain));
    }
    must_refuse(SplitQueue::make({.size = 3}), Errc::invalid_argument);
  }

  void files() {
    const detail::Descriptor file(::memfd_create("garbage", MFD_CLOEXEC));
    const auto bytes = garbage(8192);
    require(::write(file.value(), bytes.data(), bytes.size()) == 8192, "a file can be written");
    must_refuse(SnapshotReader::open(file.value()), Errc::corrupt);
    must_refuse(map_snapshot(file.value()), Errc::corrupt);
    int ends[2] = {-1, -1};
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "there are sockets");
    const detail::Descriptor here(ends[0]);
    const detail::Descriptor there(ends[1]);
    require(::send(here.value(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == 8192,
            "a socket can be written");
    must_refuse(receive_handover(there.value()), Errc::corrupt);
  }

  Machine& machine_;
};

}  // namespace

std::unique_ptr<Activity> make_bad_input(Machine& machine, std::uint64_t seed) {
  return std::make_unique<BadInput>(machine, seed);
}

}  // namespace vmspace::soak
