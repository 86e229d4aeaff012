// SPDX-License-Identifier: Apache-2.0
//
// How a range of guest memory is cut into KVM's slots, and what KVM has of each.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

namespace vmspace::detail {

inline std::uint64_t host_page_size() {
  static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

/// A known range: what it shows, and its pieces in address order, each a slot of its own, whose
/// numbers are taken from a pool here and given back on destruction.
class KvmMapping {
 public:
  /// What KVM has of a piece.
  enum class Shown : std::uint8_t { no, yes, logged };

  struct Piece {
    std::uint32_t number;
    Shown shown = Shown::no;
    bool log_lost = false;  ///< KVM forgot what it had logged: all of it counts as dirty
  };

  /// How many pieces this memory needs; its size is not 0 and its end does not pass 2^64.
  static std::uint64_t pieces_of(const KvmMemory& memory) {
    return (memory.size - 1 + lead(memory)) / max_piece_size() + 1;
  }

  KvmMapping(const KvmMemory& memory, IntervalTree<>& pool) : memory_(memory), pool_(&pool) {}
  KvmMapping(KvmMapping&&) noexcept = default;  // leaves no pieces behind: no number is freed twice
  KvmMapping& operator=(KvmMapping&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(pool_, other.pool_);
    std::swap(pieces_, other.pieces_);
    return *this;
  }
  ~KvmMapping() {
    for (const Piece& piece : pieces_)
      (void)pool_->free(Range::point(piece.number));
  }

  /// Makes `count` pieces of the lowest numbers that are free; the pool has so many.
  void split(std::uint64_t count) {
    pieces_.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto number = pool_->allocate({.size = 1});
      assert(number);
      pieces_.push_back({.number = static_cast<std::uint32_t>(number->min())});
    }
  }

  [[nodiscard]] std::vector<Piece>& pieces() noexcept { return pieces_; }
  [[nodiscard]] const std::vector<Piece>& pieces() const noexcept { return pieces_; }
  [[nodiscard]] const KvmMemory& memory() const noexcept { return memory_; }

  /// How all of it is shown; nothing when an earlier failure has left it in part.
  [[nodiscard]] std::optional<Shown> shown() const noexcept {
    const Shown first = pieces_.front().shown;
    if (std::ranges::any_of(
            pieces_, [first](Shown s) { return s != first; }, &Piece::shown)) {
      return std::nullopt;
    }
    return first;
  }

  /// The memory of the index-th piece.
  [[nodiscard]] KvmMemory part(std::size_t index) const noexcept {
    const std::uint64_t cut_off = lead(memory_);
    const std::uint64_t offset = index == 0 ? 0 : index * max_piece_size() - cut_off;
    const std::uint64_t most = index == 0 ? max_piece_size() - cut_off : max_piece_size();
    KvmMemory part = memory_;
    part.base = GuestAddress(memory_.base.value() + offset);
    part.size = std::min(memory_.size - offset, most);
    // As a number: a request of nonsense is KVM's to refuse, and no object has such pointers.
    const auto host = reinterpret_cast<std::uintptr_t>(memory_.host_address);
    part.host_address = reinterpret_cast<void*>(host + offset);
    return part;
  }

 private:
  // A guest's huge pages have up to this size. Where pieces meet, none should be cut.
  static constexpr std::uint64_t largest_page = std::uint64_t{1} << 30;

  static std::uint64_t max_piece_size() {
    // KVM_MEM_MAX_NR_PAGES in the kernel's kvm_host.h.
    constexpr std::uint64_t max_pages_per_slot = (std::uint64_t{1} << 31) - 1;
    return max_pages_per_slot * host_page_size() / largest_page * largest_page;
  }

  // By how much the first piece is shorter, for the pieces to meet at multiples of the largest
  // page; in whole words of a dirty log, so that each piece has words of its own in that of the
  // range. (A base that is not a multiple of such a word, 256 KiB on x86, does have a page cut.)
  static std::uint64_t lead(const KvmMemory& memory) {
    const std::uint64_t log_word = 64 * host_page_size();
    return memory.base.value() % largest_page / log_word * log_word;
  }

  KvmMemory memory_;
  IntervalTree<>* pool_;
  std::vector<Piece> pieces_;
};

}  // namespace vmspace::detail
