// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "vmspace/allocator.hpp"
#include "vmspace/base.hpp"
#include "vmspace/exit_on_error.hpp"

using vmspace::Range;

namespace {

// README begin
/// What hangs on a simulated bus. Addresses are offsets into the device.
struct Device {
  std::string name;
  std::array<std::uint32_t, 4> registers{};

  [[nodiscard]] std::uint32_t read(std::uint64_t offset) const { return registers[offset / 4 % 4]; }
};

using Bus = vmspace::DecodeMap<Device*>;

/// One access of a simulated core: a table, no lock, and no search that grows with the devices.
std::uint32_t load(const Bus& bus, std::uint64_t address) {
  const auto* const hit = bus.find(address);
  if (hit == nullptr) return 0xffff'ffff;  // nobody answers
  return hit->value->read(address - hit->range.min());
}

/// What the cores read is immutable, and published to all of them at once.
using SharedBus = vmspace::Published<std::shared_ptr<const Bus>>;

/// Gives the cores the devices as they are planned now.
vmspace::Result<void> publish(const SharedBus& shared, const vmspace::IntervalTree<Device*>& plan) {
  auto made = VMSPACE_TRY(Bus::create(plan));
  const auto next = std::make_shared<const Bus>(std::move(made));
  return shared.update([&](std::shared_ptr<const Bus>& bus) -> vmspace::Result<void> {
    bus = next;
    return {};
  });
}

vmspace::Result<void> example(Device& uart, Device& timer) {
  const SharedBus shared(std::make_shared<const Bus>());
  vmspace::IntervalTree<Device*> plan;  // what is edited
  VMSPACE_TRY(plan.insert(Range::of(0x1000'0000, 0x1fff'ffff)));
  VMSPACE_TRY(plan.allocate_at(Range::of(0x1000'0000, 0x1000'0fff), &uart));
  const Range timer_at = VMSPACE_TRY(plan.allocate({.size = 0x1000, .align = 0x1000}, &timer));
  VMSPACE_TRY(publish(shared, plan));

  auto reader = shared.reader();  // one for each core's thread
  std::cout << "timer: " << load(*reader.current(), timer_at.min() + 4) << '\n';

  // The timer moves: the cores see it with their next access.
  VMSPACE_TRY(plan.free(timer_at));
  VMSPACE_TRY(plan.allocate_at(Range::of(0x1800'0000, 0x1800'0fff), &timer));
  VMSPACE_TRY(publish(shared, plan));
  std::cout << "moved: " << load(*reader.current(), 0x1800'0004) << '\n';
  std::cout << "its old place: " << std::hex << load(*reader.current(), timer_at.min() + 4) << '\n';
  return {};
}
// README end

}  // namespace

int main() {
  Device uart{.name = "uart", .registers = {0x55}};
  Device timer{.name = "timer", .registers = {0, 1000}};
  vmspace::value_or_exit(example(uart, timer));
}
