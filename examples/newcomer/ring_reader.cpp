// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <string>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/virtio.hpp"

using namespace vmspace::literals;
using vmspace::GuestAddress, vmspace::GuestMemory, vmspace::Le16;

constexpr vmspace::SplitQueueOptions ring{.size = 16,
                                          .descriptors = GuestAddress{0x1000},
                                          .available = GuestAddress{0x2000},
                                          .used = GuestAddress{0x3000}};

/// What the guest's driver does: one buffer, described by the first descriptor.
static vmspace::Result<void> offer(const GuestMemory& memory, std::string_view text) {
  VMSPACE_TRY(memory.write_slice(GuestAddress{0x8000}, std::as_bytes(std::span(text))));
  const vmspace::SplitDescriptor descriptor{
      .address = 0x8000, .length = static_cast<std::uint32_t>(text.size()), .flags = 0, .next = 0};
  VMSPACE_TRY(memory.write(ring.descriptors, descriptor));
  return memory.store(GuestAddress{0x2002}, Le16{1}, std::memory_order_release);
}

static vmspace::Result<void> read_ring(const GuestMemory& memory) {
  auto queue = VMSPACE_TRY(vmspace::SplitQueue::make(ring));
  vmspace::DescriptorChain chain;
  while (VMSPACE_TRY(queue.pop(memory, chain))) {
    auto in = VMSPACE_TRY(vmspace::GuestReader::make(memory, chain.readable()));
    std::string text(in.remaining(), '\0');
    VMSPACE_TRY(in.read_exact(std::as_writable_bytes(std::span(text))));
    std::cout << text << '\n';
    VMSPACE_TRY(queue.push_used(memory, chain.id(), 0));
  }
  return {};
}

static vmspace::Result<void> run() {
  const vmspace::GuestRange ram[] = {{GuestAddress{0}, 16_MiB}};
  const auto memory = VMSPACE_TRY(GuestMemory::create(ram));
  VMSPACE_TRY(offer(memory, "hello from the guest"));
  return read_ring(memory);
}

int main() {
  vmspace::value_or_exit(run());
}
