// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator.hpp"

#include <cstdio>
#include <string>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  // README begin
  vmspace::IntervalTree<std::string> mmio;  // which address belongs to whom
  VMSPACE_TRY(mmio.insert(vmspace::Range::of(0xc000'0000, 0xfbff'ffff)));

  // The range, or an error returned: "IntervalTree::allocate: no space for 0x4000 in [...]; ..."
  const auto bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0 BAR0"));

  const std::string* owner = mmio.find_value(bar.min() + 0x10);
  if (owner != nullptr) std::printf("%s\n", owner->c_str());  // nic0 BAR0

  VMSPACE_TRY(mmio.free(bar));  // merges with its neighbours; gives the value back
  // README end
  return {};
}

}  // namespace

int main() {
  const auto ok = example();
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  return ok ? 0 : 1;
}
