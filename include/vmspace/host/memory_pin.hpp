// SPDX-License-Identifier: Apache-2.0
//
// Memory whose pages must stay, because devices access them by DMA.
//
//   const MemoryPin pin = VMSPACE_TRY(mapping.pin(0, 2_MiB, "dimm0"));
//   mapping.discard(0, 4_KiB);  // bad_state: "dimm0": ... mapped for DMA ...
//
// A device keeps the pages that were there when the memory was mapped for it. Discarding them would
// free nothing, and this process and the guest would get others, which the device does not see.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "vmspace/base/export.hpp"

namespace vmspace {

namespace detail {
class PinnedRanges;
}

/// Keeps a part of a MemoryMapping from being discarded, until it is destroyed; see
/// MemoryMapping::pin(). Several may pin the same memory. It keeps neither mapping nor backing.
///
/// Threads: pins are independent of one another, also those of the same memory.
class VMSPACE_EXPORT MemoryPin {
 public:
  /// Pins nothing.
  MemoryPin() noexcept = default;
  /// Takes over what `other` pins, which then pins nothing.
  MemoryPin(MemoryPin&& other) noexcept
      : ranges_(std::move(other.ranges_)), first_(other.first_), end_(other.end_) {}
  /// What was pinned before no longer is.
  MemoryPin& operator=(MemoryPin&& other) noexcept {
    MemoryPin moved(std::move(other));
    std::swap(ranges_, moved.ranges_);
    std::swap(first_, moved.first_);
    std::swap(end_, moved.end_);
    return *this;
  }
  /// Waits for discards that run. Allocates nothing. O(log n) in the pins of the backing, and the
  /// pins that lie within this one.
  ~MemoryPin();

  /// Leaves the memory pinned for good: for memory that a device could not be kept from. O(1).
  void abandon() noexcept { ranges_.reset(); }

 private:
  friend class MemoryMapping;

  MemoryPin(std::shared_ptr<detail::PinnedRanges> ranges, std::uint64_t first,
            std::uint64_t end) noexcept
      : ranges_(std::move(ranges)), first_(first), end_(end) {}

  std::shared_ptr<detail::PinnedRanges> ranges_;  // null when it pins nothing
  std::uint64_t first_ = 0;
  std::uint64_t end_ = 0;
};

}  // namespace vmspace
