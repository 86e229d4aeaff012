// SPDX-License-Identifier: Apache-2.0
//
// Devices come with all kinds of resources, move their BARs, and go, in every way in which they can.

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

class Devices final : public Activity {
 public:
  Devices(Machine& machine, std::uint64_t seed) : Activity("devices", seed), machine_(machine) {}

  void step() override {
    if (devices_.size() < 6 && random(2) == 0) return plug();
    if (devices_.empty()) return;
    const std::size_t chosen = random(devices_.size());
    switch (random(4)) {
      case 0: return park(devices_[chosen]);
      case 1: return exchange(devices_[chosen], devices_[random(devices_.size())]);
      case 2: must(devices_[chosen].release()); break;
      default: break;  // destroyed as it is
    }
    devices_.erase(devices_.begin() + static_cast<long>(chosen));
  }

  void finish() override {
    std::set<std::string> owners;
    for (const ResourceHolder& holder : machine_.manager.holders())
      owners.insert(holder.owner);
    require(owners.size() == devices_.size(), "who has resources is a device that was plugged");
    owners.clear();
    for (const ResourceClaim& claim : machine_.manager.claims())
      owners.insert(claim.owner);
    require(owners.size() == devices_.size(), "each device has its claims");
    devices_.clear();
  }

 private:
  void plug() {
    const std::string name = "device " + std::to_string(number_++);
    std::vector<ResourceRequest> requests = {PciDevice{},
                                             MmioRange{.size = bar},
                                             MmioRange{.size = 64_KiB, .prefetchable = true},
                                             LegacyIrq{.shared = true},
                                             GenericIrq{},
                                             MsiVectors{.count = 4},
                                             MsixVectors{.count = 3},
                                             PioRange{.size = 16},
                                             KvmSlots{},
                                             MacAddress{}};
    const bool has_memory = random(2) == 0;
    if (has_memory) {
      requests.emplace_back(
          MemoryRange{.region = {.size = 256_KiB, .backing = {.source = MemorySource::shmem}}});
    }
    auto device = must(machine_.manager.acquire(requests, name));
    if (has_memory) {
      const GuestAddress base = device.memory()->base();
      const std::uint64_t value = random(1'000'000);
      must(machine_.memory.map()->memory.write(base, value));
      require(must(machine_.memory.map()->memory.read<std::uint64_t>(base)) == value,
              "a device's memory keeps what is written");
    }
    // A list that fails at its end leaves nothing.
    requests.emplace_back(MmioRange{.size = 1_TiB});
    must_refuse(machine_.manager.acquire(requests, name + " too large"), Errc::no_space);
    must_refuse(machine_.manager.acquire({MmioRange{.size = bar, .fixed = device.mmio()->base()}},
                                         "another"),
                Errc::overlap);
    devices_.push_back(std::move(device));
  }
  /// As a guest does that sizes a BAR.
  void park(DeviceResources& device) {
    const GuestAddress base = device.mmio()->base();
    must(machine_.manager.relocate({ResourceMove::park(device)}));
    require(device.is_parked(ResourceKind::mmio), "a BAR that was parked is parked");
    must(machine_.manager.relocate({ResourceMove::place(device, base)}));
    require(device.mmio()->base() == base, "a BAR is where it was placed");
    must_refuse(
        machine_.manager.relocate({ResourceMove::place(device, GuestAddress(base.value() + 1))}),
        Errc::misaligned);
  }
  void exchange(DeviceResources& one, DeviceResources& other) {
    if (&one == &other) return;
    const GuestAddress first = one.mmio()->base();
    const GuestAddress second = other.mmio()->base();
    must_refuse(machine_.manager.relocate({ResourceMove::place(one, second)}), Errc::overlap);
    must(machine_.manager.relocate(
        {ResourceMove::place(one, second), ResourceMove::place(other, first)}));
    require(one.mmio()->base() == second && other.mmio()->base() == first,
            "two BARs have changed places");
  }

  static constexpr std::uint64_t bar = 16_KiB;
  Machine& machine_;
  std::vector<DeviceResources> devices_;
  std::uint64_t number_ = 0;
};

}  // namespace

std::unique_ptr<Activity> make_devices(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Devices>(machine, seed);
}

}  // namespace vmspace::soak
