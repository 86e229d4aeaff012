// SPDX-License-Identifier: Apache-2.0
//
// The input is a driver: its features, then what it writes into the page that holds its rings, its
// table and an indirect table, and how often the device looks in between. What comes out of the queue
// is a chain within its bounds, or an error that has left the queue as it was.

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/virtio/split_queue.hpp"

#include "fuzz/chain_check.hpp"

namespace {

using namespace vmspace;
using fuzz::check_chain;
using fuzz::expect;

constexpr std::uint64_t base = 0x10000;
constexpr std::uint64_t page = 4096;
constexpr std::uint16_t size = 8;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t length) {
  if (length < 2) return 0;
  static const GuestMemory memory = [] {
    const GuestRange ram[] = {{GuestAddress(base), page}};
    return GuestMemory::create(ram).value();
  }();
  expect(memory.fill({GuestAddress(base), page}, std::byte{0}).has_value());
  const std::uint16_t max_chain = data[0] % 4 == 0 ? std::uint16_t{1000} : std::uint16_t{0};
  auto made = SplitQueue::make({.size = size,
                                .descriptors = GuestAddress(base),
                                .available = GuestAddress(base + 128),
                                .used = GuestAddress(base + 160),
                                .indirect = (data[0] & 4) != 0,
                                .event_index = (data[0] & 8) != 0,
                                .max_chain = max_chain});
  expect(made.has_value());
  SplitQueue& queue = *made;
  std::span<const std::uint8_t> left(data + 1, length - 1);
  DescriptorChain chain;
  // Writes of 4 bytes: where (in the first 1024), and what; the top bits say what the device does.
  for (; left.size() >= 4; left = left.subspan(4)) {
    const std::uint64_t at = static_cast<std::uint64_t>(left[0] | (left[1] & 3) << 8);
    const std::uint16_t value = static_cast<std::uint16_t>(left[2] | left[3] << 8);
    expect(memory.write(GuestAddress(base + at), value).has_value());
    if ((left[1] & 0x80) != 0) {
      const SplitQueueState before = queue.state();
      const auto any = queue.pop(memory, chain);
      if (any && *any) {
        expect(queue.in_flight() <= size);
        check_chain(memory, chain, max_chain == 0 ? size : max_chain);
      } else {
        expect(queue.state() == before);
      }
    }
    if ((left[1] & 0x40) != 0) {
      const bool out = queue.in_flight() != 0;
      expect(queue.push_used(memory, chain.id(), value).has_value() == out);
    }
    if ((left[1] & 0x20) != 0) expect(queue.needs_notification(memory).has_value());
    if ((left[1] & 0x10) != 0) {
      expect(queue.disable_notifications(memory).has_value());
      static_cast<void>(queue.enable_notifications(memory));  // the index may be impossible
    }
  }
  return 0;
}
