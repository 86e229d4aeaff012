// SPDX-License-Identifier: Apache-2.0

#include "vmspace/boot.hpp"

#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  // README begin
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto plan = VMSPACE_TRY(layout.plan_ram({6_GiB}));
  for (const vmspace::E820Entry& entry : e820(layout, plan)) {
    std::printf("%#llx + %#llx %s\n", entry.base.value() + 0ULL, entry.size + 0ULL,
                entry.type == vmspace::E820Type::ram ? "RAM" : "reserved");
  }
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
