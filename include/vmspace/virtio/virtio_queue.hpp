// SPDX-License-Identifier: Apache-2.0
//
// What a device asks of its queue, split or packed. A device is a template of its queue, so that no
// call is virtual; a VMM that knows only at run time what its driver has negotiated holds a
// std::variant of both, and visits it once for each time that the device is served.

#pragma once

#include <concepts>
#include <cstdint>

#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/virtio/descriptor_chain.hpp"
#include "vmspace/virtio/packed_queue.hpp"
#include "vmspace/virtio/split_queue.hpp"

namespace vmspace {

/// SplitQueue or PackedQueue, where their calls are documented.
template <typename Queue>
concept VirtioQueue = requires(Queue& queue, const GuestMemory& memory, DescriptorChain& chain,
                               RequestId id, std::uint32_t written) {
  { queue.pop(memory, chain) } -> std::same_as<Result<bool>>;
  { queue.push_used(memory, id, written) } -> std::same_as<Result<void>>;
  { queue.needs_notification(memory) } -> std::same_as<Result<bool>>;
  { queue.disable_notifications(memory) } -> std::same_as<Result<void>>;
  { queue.enable_notifications(memory) } -> std::same_as<Result<bool>>;
};
static_assert(VirtioQueue<SplitQueue> && VirtioQueue<PackedQueue>);

}  // namespace vmspace
