// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator.hpp"

#include <cstdio>

namespace {

vmspace::Result<void> example() {
  // README begin
  const auto irqs =
      VMSPACE_TRY(vmspace::RangePool::create("legacy IRQs", {vmspace::Range::of(5, 15)}));

  vmspace::Lease nic =
      VMSPACE_TRY(irqs.acquire({.size = 1}, "nic0"));  // returned by its destructor
  const vmspace::Lease disk = VMSPACE_TRY(irqs.acquire_at(vmspace::Range::point(14), "disk0"));

  for (const auto& [range, tag] : irqs.holders()) {
    std::printf("%d: %s\n", static_cast<int>(range.min()), tag.c_str());  // 5: nic0, 14: disk0
  }
  VMSPACE_TRY(nic.release());  // or now
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
