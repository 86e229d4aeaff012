// SPDX-License-Identifier: Apache-2.0
//
// Regions that come and go, grow and shrink, and move, each with its contents; and a thread that decodes
// addresses meanwhile.

#include <chrono>
#include <cstdint>
#include <memory>

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

using namespace std::chrono_literals;

class Change : public Activity {
 protected:
  Change(std::string_view name, Machine& machine, std::uint64_t seed)
      : Activity(name, seed), machine_(machine) {}

  void write(GuestAddress at, std::uint64_t value) const {
    must(machine_.memory.map()->memory.write(at, value));
  }
  [[nodiscard]] Result<std::uint64_t> read(GuestAddress at) const {
    return machine_.memory.map()->memory.read<std::uint64_t>(at);
  }

  Machine& machine_;
};

class Hotplug final : public Change {
 public:
  Hotplug(Machine& machine, std::uint64_t seed) : Change("hotplug", machine, seed) {}

  void step() override {
    const RegionOptions dimm{.name = "dimm",
                             .base = Machine::dimm,
                             .size = (1 + random(512)) * Machine::page,
                             .backing = {.source = MemorySource::shmem},
                             .hotplug = true,
                             .populate = random(2) == 0};
    const auto region = must(machine_.memory.plug(dimm));
    const GuestAddress last(dimm.base.value() + dimm.size - 8);
    require(must(read(last)) == 0, "new memory is zeros");
    const std::uint64_t value = random(1'000'000);
    write(dimm.base, value);
    write(last, value);
    must_refuse(machine_.memory.plug(dimm), Errc::overlap);
    require(must(read(last)) == value, "memory keeps what is written");
    must(machine_.memory.unplug(region->shared_description(), 60s));
    must_refuse(read(dimm.base), Errc::not_found);
    must_refuse(machine_.memory.unplug(region->shared_description(), 60s), Errc::not_found);
  }
};

class Resizing final : public Change {
 public:
  Resizing(Machine& machine, std::uint64_t seed) : Change("resizing", machine, seed) {
    const auto backing = must(Backing::open({.source = MemorySource::shmem}, most));
    region_ = must(machine.memory.plug({.name = "resized",
                                        .base = Machine::resized,
                                        .size = most,
                                        .backing = {.source = MemorySource::shmem}},
                                       {.backing = backing}))
                  ->shared_description();
    for (std::uint64_t at = 0; at < most; at += Machine::page)
      write(GuestAddress(Machine::resized.value() + at), at + 1);
  }

  void step() override {
    const std::uint64_t size = (1 + random(most / Machine::page)) * Machine::page;
    region_ = must(machine_.memory.resize(region_, size))->shared_description();
    const GuestAddress end(Machine::resized.value() + size);
    require(must(read(GuestAddress(end.value() - Machine::page))) == size - Machine::page + 1,
            "a region that is resized keeps its contents");
    if (size != most) must_refuse(read(end), Errc::not_found);
    must_refuse(machine_.memory.resize(region_, most + Machine::page), Errc::out_of_bounds);
    must_refuse(machine_.memory.resize(region_, 0), Errc::zero_size);
  }

 private:
  static constexpr std::uint64_t most = 1_MiB;
  AddressSpaceRegionPtr region_;
};

class Moving final : public Change {
 public:
  Moving(Machine& machine, std::uint64_t seed) : Change("moving", machine, seed) {
    region_ = must(machine.memory.plug({.name = "window",
                                        .type = RegionType::device_memory,
                                        .base = Machine::window,
                                        .size = size,
                                        .backing = {.source = MemorySource::shmem}}))
                  ->shared_description();
    write(Machine::window, tag);
  }

  void step() override {
    // Onto a part of itself, and back, or far away.
    const std::uint64_t distance = random(3) * size / 2 + (random(2) == 0 ? 1_MiB : 0);
    const GuestAddress to(Machine::window.value() + distance);
    region_ = must(machine_.memory.relocate(region_, to));
    require(must(read(to)) == tag, "a region that moves keeps its contents");
    must_refuse(machine_.memory.relocate(region_, GuestAddress(to.value() + 1)), Errc::misaligned);
    must_refuse(machine_.memory.relocate(region_, Machine::ram), Errc::overlap);
  }

 private:
  static constexpr std::uint64_t size = 64_KiB;
  static constexpr std::uint64_t tag = 0x7a60'0000'7a60'0000;
  AddressSpaceRegionPtr region_;
};

class Decoding final : public Change {
 public:
  Decoding(Machine& machine, std::uint64_t seed)
      : Change("decoding", machine, seed), reader_(machine.memory.reader()) {}

  void step() override {
    for (int i = 0; i < 50; ++i) {
      const VmMap& now = reader_.current();
      for (const AddressSpaceRegionPtr& region : now.space) {
        const GuestAddress inside(region->base().value() + random(region->size()));
        require(now.space.find_region(inside) == region.get(), "an address has its region");
        if (!region->is_mapped()) continue;
        const MemoryRegion* const mapped = now.memory.region_at(inside);
        // Of a region in blocks an address may have nothing.
        if (mapped != nullptr)
          require(mapped->shared_description() == region,
                  "a map is whole: what is there is mapped");
      }
      reader_.park();
    }
  }

 private:
  VmMemory::Reader reader_;
};

}  // namespace

std::unique_ptr<Activity> make_hotplug(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Hotplug>(machine, seed);
}
std::unique_ptr<Activity> make_resizing(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Resizing>(machine, seed);
}
std::unique_ptr<Activity> make_moving(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Moving>(machine, seed);
}
std::unique_ptr<Activity> make_decoding(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Decoding>(machine, seed);
}

}  // namespace vmspace::soak
