// SPDX-License-Identifier: Apache-2.0

#include "vmspace/virtio.hpp"

#include <cstdio>
#include <string>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

struct Header {
  vmspace::Le32 type;
  vmspace::Le32 reserved;
  vmspace::Le64 sector;
};

/// What a driver would have written: a header to read, 512 bytes and a status to write.
vmspace::Result<void> offer_request(const vmspace::GuestMemory& memory) {
  const vmspace::SplitDescriptor chain[] = {
      {.address = 0x8000, .length = 16, .flags = vmspace::SplitDescriptor::has_next, .next = 1},
      {.address = 0x9000, .length = 512, .flags = 3, .next = 2},
      {.address = 0xa000, .length = 1, .flags = vmspace::SplitDescriptor::writable, .next = 0}};
  VMSPACE_TRY(memory.write_slice(vmspace::GuestAddress(0x1000), std::as_bytes(std::span(chain))));
  VMSPACE_TRY(
      memory.write(vmspace::GuestAddress(0x8000), Header{.type = 0, .reserved = 0, .sector = 7}));
  return memory.write(vmspace::GuestAddress(0x2002), vmspace::Le16(1));
}

vmspace::Result<void> example() {
  const vmspace::GuestRange ram[] = {{vmspace::GuestAddress{0}, 1_MiB}};
  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::create(ram));
  VMSPACE_TRY(offer_request(memory));
  // README begin
  // As the driver has set it up: size and addresses come from the registers of the transport.
  auto queue = VMSPACE_TRY(vmspace::SplitQueue::make({.size = 256,
                                                      .descriptors = vmspace::GuestAddress{0x1000},
                                                      .available = vmspace::GuestAddress{0x2000},
                                                      .used = vmspace::GuestAddress{0x3000}}));
  vmspace::DescriptorChain chain;  // one for all requests
  const bool any = VMSPACE_TRY(queue.pop(memory, chain));
  if (!any) return {};

  auto in = VMSPACE_TRY(vmspace::GuestReader::make(memory, chain.readable()));
  auto out = VMSPACE_TRY(vmspace::GuestWriter::make(memory, chain.writable()));
  const auto header = VMSPACE_TRY(in.read<Header>());  // wherever the driver has divided it
  std::printf("sector %u, %u bytes\n", static_cast<unsigned>(header.sector),
              static_cast<unsigned>(out.remaining() - 1));  // sector 7, 512 bytes

  const std::string sector(512, 'x');
  VMSPACE_TRY(out.write_exact(std::as_bytes(std::span(sector))));
  VMSPACE_TRY(out.write(std::uint8_t{0}));  // the status
  VMSPACE_TRY(queue.push_used(memory, chain.id(), 513));
  const bool notify = VMSPACE_TRY(queue.needs_notification(memory));
  std::printf("%s\n", notify ? "interrupt" : "silence");  // interrupt
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
