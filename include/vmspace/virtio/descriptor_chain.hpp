// SPDX-License-Identifier: Apache-2.0
//
// A request that a driver has put into a virtqueue: where its bytes are.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/memory/detail/inline_vector.hpp"

namespace vmspace {

namespace detail {
class ChainBuilder;
}

/// A request's name in its queue, to be given back by push_used(): all that a device keeps of a request
/// whose chain it needs no more. Unique among the requests that are taken and not given back, unless
/// the driver is broken. Saved with a device that is saved before it has finished.
struct RequestId {
  std::uint16_t number = 0;   ///< split: the first descriptor's index; packed: the buffer's ID
  std::uint16_t entries = 0;  ///< how many entries of the ring it takes; split: always 1

  friend bool operator==(const RequestId&, const RequestId&) = default;
};

/// The buffers of one request, in two lists: those that the device reads, and those that it writes,
/// which come after (virtio 1.2, section 2.7.4.2). A private copy: what the driver does to its
/// descriptors afterwards changes nothing here. The addresses are the driver's and not yet checked;
/// GuestReader and GuestWriter do that.
///
/// A queue fills it, and a device keeps one for all its requests: up to 16 buffers lie in the object,
/// and memory that it has taken for more stays with it. Moves, never copies.
class DescriptorChain {
 public:
  /// No request.
  DescriptorChain() = default;
  /// Takes over the request of `other`, which then has none.
  DescriptorChain(DescriptorChain&& other) noexcept
      : ranges_(std::move(other.ranges_)),
        readable_(std::exchange(other.readable_, 0)),
        id_(std::exchange(other.id_, {})) {}
  /// As moving; the request that was here is dropped.
  DescriptorChain& operator=(DescriptorChain&& other) noexcept {
    ranges_ = std::move(other.ranges_);
    readable_ = std::exchange(other.readable_, 0);
    id_ = std::exchange(other.id_, {});
    return *this;
  }
  ~DescriptorChain() = default;

  /// What push_used() takes to give the request back.
  [[nodiscard]] RequestId id() const noexcept { return id_; }
  /// What the device reads; no range is empty.
  [[nodiscard]] std::span<const GuestRange> readable() const noexcept {
    return ranges_.values().first(readable_);
  }
  /// What the device writes; no range is empty.
  [[nodiscard]] std::span<const GuestRange> writable() const noexcept {
    return ranges_.values().subspan(readable_);
  }

 private:
  friend class detail::ChainBuilder;

  static constexpr std::size_t inline_ranges = 16;

  void clear() noexcept {
    ranges_.truncate(0);
    readable_ = 0;
  }

  detail::InlineVector<GuestRange, inline_ranges> ranges_;
  std::size_t readable_ = 0;
  RequestId id_;
};

}  // namespace vmspace
