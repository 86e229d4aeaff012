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
  if (auto ok = mmio.insert(vmspace::Range::of(0xc000'0000, 0xfbff'ffff)); !ok) return ok;

  const auto bar = mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0 BAR0");
  if (!bar) return vmspace::fail(bar.error());  // "IntervalTree::allocate: no space for ..."

  const std::string* owner = mmio.find_value(bar->min() + 0x10);
  if (owner != nullptr) std::printf("%s\n", owner->c_str());  // nic0 BAR0

  const auto returned = mmio.free(*bar);  // its value comes back; neighbours merge
  if (!returned) return vmspace::fail(returned.error());
  // README end
  return {};
}

}  // namespace

int main() {
  const auto ok = example();
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  return ok ? 0 : 1;
}
