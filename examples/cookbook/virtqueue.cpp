// SPDX-License-Identifier: Apache-2.0

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/virtio.hpp"

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::GuestMemory;

namespace {

// README begin
/// Serves every request there is: reads what the driver has sent, answers with its bytes in reverse.
/// Gives whether the driver wants an interrupt.
vmspace::Result<bool> serve(const GuestMemory& memory, vmspace::VirtioQueue auto& queue) {
  vmspace::DescriptorChain chain;
  std::array<std::byte, 4096> bytes;
  do {
    VMSPACE_TRY(queue.disable_notifications(memory));  // no kicks while we are looking
    while (VMSPACE_TRY(queue.pop(memory, chain))) {
      auto in = VMSPACE_TRY(vmspace::GuestReader::make(memory, chain.readable()));
      auto out = VMSPACE_TRY(vmspace::GuestWriter::make(memory, chain.writable()));
      // The driver chooses both sizes; what fits is served.
      const std::uint64_t size =
          std::min({in.remaining(), out.remaining(), std::uint64_t{bytes.size()}});
      const std::span text(bytes.data(), size);
      VMSPACE_TRY(in.read_exact(text));
      std::ranges::reverse(text);
      VMSPACE_TRY(out.write_exact(text));
      VMSPACE_TRY(queue.push_used(memory, chain.id(), static_cast<std::uint32_t>(size)));
    }
  } while (VMSPACE_TRY(queue.enable_notifications(memory)));  // one came before kicks were on again
  return queue.needs_notification(memory);
}
// README end

constexpr vmspace::SplitQueueOptions ring{.size = 16,
                                          .descriptors = GuestAddress{0x1000},
                                          .available = GuestAddress{0x2000},
                                          .used = GuestAddress{0x3000}};

/// What a driver does: two requests, each of a buffer to read and one to write.
vmspace::Result<void> offer_requests(const GuestMemory& memory) {
  const std::string_view texts[] = {"drawer", "stressed"};
  for (std::uint16_t i = 0; i < 2; ++i) {
    const std::uint64_t text_at = 0x8000 + 0x1000ULL * i;
    VMSPACE_TRY(memory.write_slice(GuestAddress{text_at}, std::as_bytes(std::span(texts[i]))));
    const auto head = static_cast<std::uint16_t>(2 * i);
    const vmspace::SplitDescriptor pair[] = {{.address = text_at,
                                              .length = static_cast<std::uint32_t>(texts[i].size()),
                                              .flags = vmspace::SplitDescriptor::has_next,
                                              .next = static_cast<std::uint16_t>(head + 1)},
                                             {.address = text_at + 0x800,
                                              .length = 512,
                                              .flags = vmspace::SplitDescriptor::writable,
                                              .next = 0}};
    VMSPACE_TRY(memory.write_slice(GuestAddress{ring.descriptors.value() + 16ULL * head},
                                   std::as_bytes(std::span(pair))));
    VMSPACE_TRY(
        memory.write(GuestAddress{ring.available.value() + 4 + 2ULL * i}, vmspace::Le16{head}));
  }
  return memory.store(GuestAddress{ring.available.value() + 2}, vmspace::Le16{2},
                      std::memory_order_release);
}

/// Waits for the driver, then serves it: a device's thread.
vmspace::Result<void> run_device(const GuestMemory& memory, int kick, int interrupt) {
  auto queue = VMSPACE_TRY(vmspace::SplitQueue::make(ring));
  eventfd_t count = 0;
  ::eventfd_read(kick, &count);
  const bool wanted = VMSPACE_TRY(serve(memory, queue));
  if (wanted) ::eventfd_write(interrupt, 1);
  return {};
}

vmspace::Result<void> example() {
  const vmspace::GuestRange ram[] = {{GuestAddress{0}, 16_MiB}};
  const auto memory = VMSPACE_TRY(GuestMemory::create(ram));
  const int kick = ::eventfd(0, EFD_CLOEXEC);
  const int interrupt = ::eventfd(0, EFD_CLOEXEC);
  vmspace::exit_unless(kick >= 0 && interrupt >= 0, "eventfds can be made");
  std::thread device([&] { vmspace::value_or_exit(run_device(memory, kick, interrupt)); });

  const auto offered = offer_requests(memory);
  ::eventfd_write(kick, 1);
  eventfd_t count = 0;
  if (offered) ::eventfd_read(interrupt, &count);
  device.join();
  ::close(kick);
  ::close(interrupt);
  VMSPACE_TRY(offered);

  const auto first = VMSPACE_TRY(memory.read_string(GuestAddress{0x8800}, 512));
  const auto second = VMSPACE_TRY(memory.read_string(GuestAddress{0x9800}, 512));
  std::cout << first << '\n' << second << '\n';
  const auto used = VMSPACE_TRY(
      memory.load<vmspace::Le16>(GuestAddress{ring.used.value() + 2}, std::memory_order_acquire));
  std::cout << used.value() << " requests are given back\n";
  return {};
}

}  // namespace

int main() {
  vmspace::value_or_exit(example());
}
