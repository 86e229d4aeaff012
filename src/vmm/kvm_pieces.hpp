// SPDX-License-Identifier: Apache-2.0
//
// How guest memory is split into pieces, each small enough for one of KVM's slots.

#pragma once

#include <algorithm>
#include <cstdint>

#include "vmspace/vmm/kvm_memslots.hpp"

#include "os/page_size.hpp"

namespace vmspace::detail {

/// KVM_MEM_MAX_NR_PAGES in the kernel's kvm_host.h. Changed by tests alone: what takes two slots of
/// the largest size has a dirty log of 256 MiB.
inline std::uint64_t max_pages_per_slot = (std::uint64_t{1} << 31) - 1;

/// The pieces of some memory whose size is not 0 and whose end does not pass 2^64.
class KvmPieces {
 public:
  explicit KvmPieces(const KvmMemory& memory) noexcept
      : memory_(memory),
        largest_(max_pages_per_slot * base_page_size() / largest_page * largest_page),
        lead_(memory.base.value() % largest_page / log_word() * log_word()) {}

  /// How many there are, in address order.
  [[nodiscard]] std::uint64_t count() const noexcept {
    return (memory_.size - 1 + lead_) / largest_ + 1;
  }

  /// The memory of the index-th piece.
  [[nodiscard]] KvmMemory operator[](std::uint64_t index) const noexcept {
    const std::uint64_t offset = index == 0 ? 0 : index * largest_ - lead_;
    const std::uint64_t most = index == 0 ? largest_ - lead_ : largest_;
    KvmMemory piece = memory_;
    piece.base = GuestAddress(memory_.base.value() + offset);
    piece.size = std::min(memory_.size - offset, most);
    // As a number: a request of nonsense is KVM's to refuse, and no object has such pointers.
    const auto host = reinterpret_cast<std::uintptr_t>(memory_.host_address);
    piece.host_address = reinterpret_cast<void*>(host + offset);
    return piece;
  }

 private:
  // A guest's huge pages have up to this size. Where pieces meet, none should be split.
  static constexpr std::uint64_t largest_page = std::uint64_t{1} << 30;

  /// The bytes that a word of a dirty log stands for.
  static std::uint64_t log_word() noexcept { return 64 * base_page_size(); }

  KvmMemory memory_;
  std::uint64_t largest_;  // a piece
  // By how much the first piece is shorter, so that the pieces meet at multiples of the largest
  // page; in whole words of a dirty log, so that each piece has words of its own in that of the
  // range. (A base that is not a multiple of such a word, 256 KiB on x86, does have a page split.)
  std::uint64_t lead_;
};

}  // namespace vmspace::detail
