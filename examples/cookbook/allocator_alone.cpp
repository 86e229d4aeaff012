// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <iostream>
#include <string>

#include "vmspace/allocator.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/ostream.hpp"

using namespace vmspace::literals;
using vmspace::Range;

namespace {

// README begin
vmspace::Result<void> example() {
  // Numbers that several parts of a VMM take: a pool, and leases that return what they hold.
  const auto slots = VMSPACE_TRY(vmspace::RangePool::create("PCI devices", {Range::of(0, 31)}));
  const vmspace::Lease host_bridge = VMSPACE_TRY(slots.acquire_at(Range::point(0), "host bridge"));
  auto nic = VMSPACE_TRY(slots.acquire({.size = 1}, "nic0"));
  VMSPACE_TRY(nic.release());  // or its destructor
  const vmspace::Lease disk = VMSPACE_TRY(slots.acquire({.size = 1}, "disk0"));  // 1 again
  for (const vmspace::RangeHolder& holder : slots.holders())
    std::cout << holder << '\n';

  // Addresses that one thread manages: a tree, whose taken ranges know their owner.
  vmspace::IntervalTree<std::string> mmio;
  VMSPACE_TRY(mmio.insert(Range::of(0xc000'0000, 0xdfff'ffff)));
  VMSPACE_TRY(mmio.insert(Range::of(0x20'0000'0000, 0x2f'ffff'ffff)));
  VMSPACE_TRY(mmio.allocate({.size = 64_KiB, .align = 64_KiB}, "nic0 BAR0"));
  VMSPACE_TRY(mmio.allocate({.size = 1_MiB, .min = 4_GiB, .align = 1_MiB}, "gpu0 BAR2"));
  const auto too_large = mmio.allocate({.size = 1_GiB, .max = 4_GiB - 1, .align = 1_GiB}, "gpu0");
  if (!too_large) std::cout << too_large.error().message() << '\n';
  std::cout << *mmio.find_value(0xc000'1234) << '\n';
  return {};
}
// README end

}  // namespace

int main() {
  vmspace::value_or_exit(example());
}
