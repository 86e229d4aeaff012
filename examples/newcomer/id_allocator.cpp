// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "vmspace/allocator.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/ostream.hpp"

using vmspace::Range, vmspace::RangePool;

static vmspace::Result<void> run() {
  const auto gsis = VMSPACE_TRY(RangePool::create("GSIs", {Range::of(24, 1023)}));

  auto nic = VMSPACE_TRY(gsis.acquire({.size = 4}, "nic0"));
  const auto disk = VMSPACE_TRY(gsis.acquire({.size = 1}, "disk0"));
  std::cout << "disk0 has GSI " << disk.range().min() << '\n';

  const auto taken = gsis.acquire_at(Range::point(25), "gpu0");
  if (!taken) std::cout << taken.error().message() << '\n';

  VMSPACE_TRY(nic.release());
  const auto gpu = VMSPACE_TRY(gsis.acquire_at(Range::point(25), "gpu0"));
  for (const auto& holder : gsis.holders())
    std::cout << holder << '\n';
  return {};
}

int main() {
  vmspace::value_or_exit(run());
}
