// SPDX-License-Identifier: Apache-2.0
//
// What split and packed queues have in common: the rules that the descriptors of a request obey
// (Virtual I/O Device 1.2, sections 2.7.4.2, 2.7.5 and 2.8.5 to 2.8.7). The descriptors of both have
// an address, a length and flags; they differ in how one leads to the next, which is the queue's.

#pragma once

#include <cstdint>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/virtio/descriptor_chain.hpp"

namespace vmspace::detail {

/// How many descriptors a queue of either kind may have (sections 2.7 and 2.8).
inline constexpr std::uint16_t max_queue_size = 32768;

/// A driver that breaks `rule` with the number `what`, of which there may be `limit`.
[[nodiscard, gnu::cold]] Error broken(const char* operation, std::uint64_t what,
                                      std::uint64_t limit, const char* rule);
/// A driver that breaks `rule` in the descriptor with this index.
[[nodiscard, gnu::cold]] Error broken_at(const char* operation, std::uint64_t index,
                                         const char* rule);

/// Checks the place of a part of a queue, whose size is not 0: `misaligned`; `overflow` when it would
/// pass 2^64.
[[nodiscard]] Result<void> check_part(const char* operation, GuestAddress base, std::uint64_t align,
                                      std::uint64_t size);

/// A table of descriptors: the queue's, or that of one request.
template <typename Descriptor>
struct DescriptorTable {
  GuestAddress base;
  std::uint32_t count;

  [[nodiscard]] Result<Descriptor> read(const char* operation, const GuestMemory& memory,
                                        std::uint32_t index) const {
    if (index >= count) {
      return fail(
          broken(operation, index, count, "the index of a descriptor must lie within its table"));
    }
    const auto at = base.checked_add(std::uint64_t{index} * sizeof(Descriptor));
    if (!at) {
      return fail({.code = Errc::overflow,
                   .operation = operation,
                   .first = Operand::address(base.value()),
                   .second = Operand::size(std::uint64_t{index} * sizeof(Descriptor))});
    }
    return VMSPACE_TRY_IN(operation, memory.read<Descriptor>(*at));
  }
};

/// Fills a chain with one descriptor after another, each of which has been copied out of the guest.
class ChainBuilder {
 public:
  /// Empties the chain, which will take up to `limit` descriptors.
  ChainBuilder(const char* operation, DescriptorChain& chain, std::uint32_t limit) noexcept
      : operation_(operation), chain_(chain), limit_(limit), left_(limit) {
    chain.clear();
  }

  /// Adds the buffer of a descriptor, whose index is for errors. A limit on steps is a limit on
  /// loops.
  template <typename Descriptor>
  [[nodiscard, gnu::always_inline]] Result<void> add(std::uint32_t index,
                                                     const Descriptor& descriptor) {
    if (left_ == 0) [[unlikely]] {
      return fail(broken(operation_, std::uint64_t{limit_} + 1, limit_,
                         "a chain in a loop, or with more descriptors than it may have"));
    }
    --left_;
    const bool writes = (descriptor.flags & Descriptor::writable) != 0;
    if (writing_ && !writes) [[unlikely]] {
      return fail(broken_at(operation_, index, "buffers to read must come before those to write"));
    }
    writing_ = writes;
    bytes_ += descriptor.length;  // can't wrap: at most 2^16 numbers of 32 bits
    if (bytes_ > std::uint64_t{1} << 32) [[unlikely]] {
      return fail(broken(operation_, bytes_, std::uint64_t{1} << 32,
                         "a chain must not be longer than 2^32 bytes"));
    }
    if (descriptor.length != 0) {
      chain_.ranges_.push_back({GuestAddress(descriptor.address), descriptor.length});
      if (!writes) ++chain_.readable_;
    }
    return {};
  }

  /// The table that an indirect descriptor refers to.
  template <typename Descriptor>
  [[nodiscard]] Result<DescriptorTable<Descriptor>> table(std::uint32_t index,
                                                          const Descriptor& descriptor,
                                                          bool negotiated) const {
    if (!negotiated) {
      return fail(
          broken_at(operation_, index, "an indirect descriptor without VIRTIO_F_INDIRECT_DESC"));
    }
    if ((descriptor.flags & Descriptor::has_next) != 0) {
      return fail(
          broken_at(operation_, index, "an indirect descriptor must be the last of its chain"));
    }
    if (descriptor.length == 0 || descriptor.length % sizeof(Descriptor) != 0) {
      return fail(
          broken_at(operation_, index, "an indirect table must consist of whole descriptors"));
    }
    return DescriptorTable<Descriptor>{
        .base = GuestAddress(descriptor.address),
        .count = descriptor.length / static_cast<std::uint32_t>(sizeof(Descriptor))};
  }

  /// Names the request.
  void finish(RequestId id) noexcept { chain_.id_ = id; }

 private:
  const char* operation_;
  DescriptorChain& chain_;
  std::uint32_t limit_;
  std::uint32_t left_;
  std::uint64_t bytes_ = 0;
  bool writing_ = false;
};

}  // namespace vmspace::detail
