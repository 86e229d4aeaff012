// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory.hpp"

#include <cstdint>
#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

/// A descriptor of a virtqueue, as the guest writes it (virtio 1.2, section 2.7.5).
struct Descriptor {
  vmspace::Le64 address;
  vmspace::Le32 size;
  vmspace::Le16 flags;
  vmspace::Le16 next;
};

vmspace::Result<void> example() {
  // README begin
  const vmspace::GuestRange ram[] = {{vmspace::GuestAddress{0}, 16_MiB}};
  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::create(ram));

  // A table of 256 descriptors, each read once: what the guest changes meanwhile does no harm.
  const vmspace::GuestPtr<Descriptor> table(memory, vmspace::GuestAddress{0x10000});
  const auto entry = VMSPACE_TRY(table.at(3, 256));
  const Descriptor descriptor = VMSPACE_TRY(entry.read());
  std::printf("%u bytes\n", descriptor.size.value());

  VMSPACE_TRY(enable_dirty_tracking(memory));  // then copy all of the memory
  VMSPACE_TRY(memory.write(vmspace::GuestAddress{0x20000}, std::uint64_t{1}));
  for (const auto& [base, size] : VMSPACE_TRY(harvest_dirty(memory))) {  // then only what changed
    std::printf("%#llx + %#llx\n", base.value() + 0ULL, size + 0ULL);    // 0x20000 + 0x1000
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
