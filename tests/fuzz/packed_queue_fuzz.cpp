// SPDX-License-Identifier: Apache-2.0
//
// The input is a driver: its features and the size of its ring, then what it writes into the page that
// holds its ring, its event structure and an indirect table, and what the device does in between. What
// comes out of the queue is a chain within its bounds, or an error that has left the queue as it was;
// and its state is always one that a queue can be made with.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/virtio/packed_queue.hpp"

#include "fuzz/chain_check.hpp"

namespace {

using namespace vmspace;
using fuzz::check_chain;
using fuzz::expect;

constexpr std::uint64_t base = 0x10000;
constexpr std::uint64_t page = 4096;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t length) {
  if (length < 2) return 0;
  static const GuestMemory memory = [] {
    const GuestRange ram[] = {{GuestAddress(base), page}};
    return GuestMemory::create(ram).value();
  }();
  expect(memory.fill({GuestAddress(base), page}, std::byte{0}).has_value());
  const PackedQueueOptions options{
      .size = static_cast<std::uint16_t>(1 + (data[0] >> 4) % 8),
      .descriptors = GuestAddress(base),
      .driver_event = GuestAddress(base + 128),
      .device_event = GuestAddress(base + 132),
      .indirect = (data[0] & 4) != 0,
      .event_index = (data[0] & 8) != 0,
      .max_chain = data[0] % 4 == 0 ? std::uint16_t{1000} : std::uint16_t{0}};
  auto made = PackedQueue::make(options);
  expect(made.has_value());
  PackedQueue& queue = *made;
  const std::size_t most = options.max_chain == 0 ? options.size : options.max_chain;
  std::span<const std::uint8_t> left(data + 1, length - 1);
  DescriptorChain chain;
  std::vector<RequestId> taken;
  // Writes of 4 bytes: where (in the first 1024), and what; the top bits say what the device does.
  for (; left.size() >= 4; left = left.subspan(4)) {
    const std::uint64_t at = static_cast<std::uint64_t>(left[0] | (left[1] & 3) << 8);
    const auto value = static_cast<std::uint16_t>(left[2] | left[3] << 8);
    expect(memory.write(GuestAddress(base + at), value).has_value());
    if ((left[1] & 0x80) != 0) {
      const PackedQueueState before = queue.state();
      const auto any = queue.pop(memory, chain);
      if (any && *any) {
        check_chain(memory, chain, most);
        expect(chain.id().entries != 0);
        taken.push_back(chain.id());
      } else {
        expect(queue.state() == before);
      }
    }
    if ((left[1] & 0x40) != 0 && !taken.empty()) {
      const std::size_t which = value % taken.size();
      expect(queue.push_used(memory, taken[which], value).has_value());
      taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
    }
    if ((left[1] & 0x20) != 0) expect(queue.needs_notification(memory).has_value());
    if ((left[1] & 0x10) != 0) {
      expect(queue.disable_notifications(memory).has_value());
      expect(queue.enable_notifications(memory).has_value());
    }
    std::uint32_t entries = 0;
    for (const RequestId& id : taken)
      entries += id.entries;
    expect(entries == queue.in_flight() && entries <= options.size);
    expect(!taken.empty() || !queue.push_used(memory, {0, 1}, value));
    expect(PackedQueue::make(options, queue.state()).has_value());
  }
  return 0;
}
