// SPDX-License-Identifier: Apache-2.0
//
// The two kinds of node of the interval tree's B+-tree: what they hold, and how entries move within
// a node and between two siblings. The shape of the tree is bplus_tree.hpp's concern.
//
// A leaf holds up to 32 entries, an inner node up to 32 children, both in ascending order. Keys,
// upper bounds, values and summaries are arrays of their own: a search for a key reads only keys, a
// search for free space only summaries. The states of a leaf's entries are two 32-bit words.
//
// `count` entries are in use. Unused keys are 2^64-1, so a search may compare all 32 without
// checking the count.

#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/learned_alignments.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// Entries in a leaf, children of an inner node.
inline constexpr unsigned node_capacity = 32;

/// Every node but the root has at least this many: three eighths, which bounds the memory of a tree that
/// has been thinned out. With half, entries would go back and forth between two siblings.
inline constexpr unsigned node_minimum = node_capacity * 3 / 8;

/// A node that has at most this many has space for more: two siblings are merged when together they have
/// no more, and a full leaf gives entries to a sibling that has no more. Fewer than fit, so that the
/// next insertions find space.
inline constexpr unsigned node_roomy = node_capacity - 6;

/// Ascending keys; unused ones are 2^64-1.
struct Keys {
  std::uint64_t at[node_capacity];

  Keys() {
    for (std::uint64_t& key : at)
      key = std::numeric_limits<std::uint64_t>::max();
  }

  std::uint64_t& operator[](unsigned i) noexcept { return at[i]; }
  const std::uint64_t& operator[](unsigned i) const noexcept { return at[i]; }

  /// How many of the first `count` keys are at most `value`.
  ///
  /// Two rounds of independent comparisons, first with the last key of each group of eight, then
  /// within one group; a binary search would be a chain of five dependent ones.
  [[nodiscard]] unsigned count_up_to(std::uint64_t value, unsigned count) const noexcept {
    static_assert(node_capacity == 32);
    const unsigned group =
        static_cast<unsigned>(at[7] <= value) + (at[15] <= value) + (at[23] <= value);
    const std::uint64_t* const key = at + group * 8;
    const unsigned inside = static_cast<unsigned>(key[0] <= value) + (key[1] <= value) +
                            (key[2] <= value) + (key[3] <= value) + (key[4] <= value) +
                            (key[5] <= value) + (key[6] <= value) + (key[7] <= value);
    return min_of(group * 8 + inside, count);
  }

  /// Marks the keys [from, to) as unused.
  void mark_unused(unsigned from, unsigned to) noexcept {
    for (; from < to; ++from)
      at[from] = std::numeric_limits<std::uint64_t>::max();
  }
};

/// One bit for each entry of a leaf.
class Bits {
 public:
  [[nodiscard]] bool test(unsigned i) const noexcept { return (word_ >> i & 1) != 0; }
  void set(unsigned i) noexcept { word_ |= std::uint32_t{1} << i; }
  void reset(unsigned i) noexcept { word_ &= ~(std::uint32_t{1} << i); }
  [[nodiscard]] bool any() const noexcept { return word_ != 0; }
  [[nodiscard]] unsigned lowest() const noexcept {
    return static_cast<unsigned>(std::countr_zero(word_));
  }
  void reset_lowest() noexcept { word_ &= word_ - 1; }
  [[nodiscard]] unsigned highest() const noexcept {
    return 31 - static_cast<unsigned>(std::countl_zero(word_));
  }

  /// The bits from `i` on; i is at most 32.
  [[nodiscard]] Bits from(unsigned i) const noexcept {
    return Bits(static_cast<std::uint32_t>(std::uint64_t{word_} >> i << i));
  }
  /// The bits below `i`; i is at most 32.
  [[nodiscard]] Bits below(unsigned i) const noexcept { return Bits(word_ ^ from(i).word_); }
  /// All bits `by` positions higher; those shifted past the top are lost.
  [[nodiscard]] Bits up(unsigned by) const noexcept {
    return Bits(static_cast<std::uint32_t>(std::uint64_t{word_} << by));
  }
  /// All bits `by` positions lower; those shifted past the bottom are lost.
  [[nodiscard]] Bits down(unsigned by) const noexcept {
    return Bits(static_cast<std::uint32_t>(std::uint64_t{word_} >> by));
  }
  [[nodiscard]] Bits operator|(Bits other) const noexcept { return Bits(word_ | other.word_); }

  Bits() = default;

 private:
  static_assert(node_capacity == 32);
  explicit Bits(std::uint32_t word) noexcept : word_(word) {}
  std::uint32_t word_ = 0;
};

/// Raw storage for the values of a leaf's entries. The leaf knows which slots hold one.
template <typename T>
class ValueSlots {
 public:
  [[nodiscard]] T* at(unsigned i) noexcept {
    return std::launder(reinterpret_cast<T*>(bytes_ + i * sizeof(T)));
  }
  [[nodiscard]] const T* at(unsigned i) const noexcept {
    return std::launder(reinterpret_cast<const T*>(bytes_ + i * sizeof(T)));
  }
  template <typename... Args>
  void construct(unsigned i, Args&&... args) {
    ::new (static_cast<void*>(bytes_ + i * sizeof(T))) T(std::forward<Args>(args)...);
  }
  void destroy(unsigned i) noexcept { at(i)->~T(); }

 private:
  alignas(T) std::byte bytes_[node_capacity * sizeof(T)];
};

/// A type without state, whose objects are all equal, needs no storage: one address serves them
/// all. Nothing is ever written there, so threads may share it.
template <typename T>
requires(std::is_empty_v<T>&& std::is_trivially_copyable_v<T>) class ValueSlots<T> {
 public:
  [[nodiscard]] T* at(unsigned) const noexcept {
    return std::launder(reinterpret_cast<T*>(no_state));
  }
  template <typename... Args>
  void construct(unsigned, Args&&...) noexcept {}
  void destroy(unsigned) noexcept {}

 private:
  alignas(T) inline static std::byte no_state[sizeof(T)];
};

/// What both kinds of node have. A node does not record its kind: that follows from its level.
struct Node {
  std::uint32_t count = 0;
};

/// Up to 32 ranges with their states and values, and links to the neighbouring leaves.
///
/// An entry is free, valued, or, with neither bit set, allocated. Exactly the valued entries have a
/// value in their slot.
template <typename T>
struct Leaf : Node {
  Bits free;
  Bits valued;
  Leaf* prev = nullptr;
  Leaf* next = nullptr;
  Keys min;
  std::uint64_t max[node_capacity];
  [[no_unique_address]] ValueSlots<T> values;

  Leaf() noexcept = default;
  Leaf(const Leaf&) = delete;
  Leaf& operator=(const Leaf&) = delete;
  ~Leaf() {
    for (Bits left = valued; left.any(); left.reset(left.lowest()))
      values.destroy(left.lowest());
  }

  [[nodiscard]] std::uint64_t first_key() const noexcept { return min[0]; }

  /// Begins to load the leaf. A change reads most of it, one part after the other.
  void prefetch() const noexcept {
    constexpr std::size_t line = 64;
    constexpr std::size_t most = 1024;  // a change needs few of its values, where they are large
    const char* const begin = reinterpret_cast<const char*>(this);
    for (std::size_t at = 0; at < min_of(sizeof *this, most); at += line)
      __builtin_prefetch(begin + at);
  }

  [[nodiscard]] FreeSummary summary() const noexcept {
    FreeSummaryBuilder all;
    for (Bits left = free; left.any(); left.reset_lowest())
      all.add(min[left.lowest()], max[left.lowest()]);
    return all.summary();
  }

  /// The longest aligned length of the free entries, for the alignment of this row.
  [[nodiscard]] std::uint64_t longest_of(unsigned row,
                                         const LearnedAlignments& learned) const noexcept {
    std::uint64_t longest = 0;
    for (Bits left = free; left.any(); left.reset_lowest()) {
      const unsigned pos = left.lowest();
      longest = max_of(longest, aligned_length(min[pos], max[pos], learned.low_bits(row)));
    }
    return longest;
  }

  /// Makes space for `n` entries at `pos`, at least one, in state allocated, for the caller to fill in.
  void open_gap(unsigned pos, unsigned n) noexcept {
    move_entries(*this, pos, pos + n, count - pos);
    free = free.below(pos) | free.from(pos).up(n);
    valued = valued.below(pos) | valued.from(pos).up(n);
    count += n;
  }

  /// Removes the `n` entries at `pos`, at least one, whose values have been destroyed.
  void close_gap(unsigned pos, unsigned n) noexcept {
    move_entries(*this, pos + n, pos, count - pos - n);
    free = free.below(pos) | free.from(pos + n).down(n);
    valued = valued.below(pos) | valued.from(pos + n).down(n);
    min.mark_unused(count - n, count);
    count -= n;
  }

  /// Moves entries between two siblings until `left` has `n`, which it has not yet.
  static void redistribute(Leaf& left, Leaf& right, unsigned n) noexcept {
    if (n < left.count) {
      const unsigned moved = left.count - n;
      right.open_gap(0, moved);
      left.move_entries(right, n, 0, moved);
      right.free = right.free | left.free.from(n).down(n);
      right.valued = right.valued | left.valued.from(n).down(n);
      left.free = left.free.below(n);
      left.valued = left.valued.below(n);
      left.min.mark_unused(n, left.count);
      left.count = n;
    } else {
      const unsigned moved = n - left.count;
      right.move_entries(left, 0, left.count, moved);
      left.free = left.free | right.free.below(moved).up(left.count);
      left.valued = left.valued | right.valued.below(moved).up(left.count);
      left.count = n;
      right.close_gap(0, moved);
    }
  }

 private:
  /// Moves the bounds and values, but not the states, of `n` entries from position `from` here to
  /// position `to` in a leaf that may be this one.
  void move_entries(Leaf& target, unsigned from, unsigned to, unsigned n) noexcept {
    if (n == 0) return;
    if (n == 1) {  // as often in a tree of a few ranges, which two calls would cost more than this
      target.min.at[to] = min.at[from];
      target.max[to] = max[from];
    } else {
      std::memmove(target.min.at + to, min.at + from, n * sizeof min.at[0]);
      std::memmove(target.max + to, max + from, n * sizeof max[0]);
    }
    if constexpr (std::is_empty_v<ValueSlots<T>>) {
      return;
    } else if constexpr (std::is_trivially_copyable_v<T>) {
      std::memmove(static_cast<void*>(target.values.at(to)), values.at(from), n * sizeof(T));
    } else {
      // In the order in which memmove copies, so that no value lands on a live one.
      for (Bits left = valued.from(from).below(from + n); left.any();) {
        const unsigned i = to > from ? left.highest() : left.lowest();
        target.values.construct(i - from + to, std::move(*values.at(i)));
        values.destroy(i);
        left.reset(i);
      }
    }
  }
};

/// Rows of lengths that a tree has learned: row r of an inner node is rows[r - 1], 0 in unused slots.
struct LearnedLengths {
  std::uint64_t rows[length_rows - 1][node_capacity] = {};
};

/// Up to 32 children. `key[i]` is the lowest address of any entry below child i; the arrays
/// `longest`, `order` and `zeros` are the children's summaries, 0 in unused slots.
struct Inner : Node {
  Keys key;
  Node* child[node_capacity];
  std::uint64_t longest[node_capacity] = {};
  std::uint8_t order[node_capacity] = {};
  std::uint8_t zeros[node_capacity] = {};
  LearnedLengths* learned = nullptr;  ///< our own; not null once the tree has learned an alignment

  /// With space for learned lengths, if asked.
  explicit Inner(bool with_lengths = false)
      : learned(with_lengths ? new LearnedLengths : nullptr) {}
  Inner(const Inner&) = delete;
  Inner& operator=(const Inner&) = delete;
  ~Inner() { delete learned; }

  /// The children's longest aligned lengths, for the alignment of a row in use.
  [[nodiscard]] std::uint64_t* lengths(unsigned row) noexcept {
    return row == 0 ? longest : learned->rows[row - 1];
  }
  [[nodiscard]] const std::uint64_t* lengths(unsigned row) const noexcept {
    return row == 0 ? longest : learned->rows[row - 1];
  }

  [[nodiscard]] std::uint64_t first_key() const noexcept { return key[0]; }

  /// The child that `value` belongs to: the last whose key is at most `value`.
  [[nodiscard]] unsigned child_for(std::uint64_t value) const noexcept {
    return max_of(key.count_up_to(value, count), 1U) - 1;
  }

  [[nodiscard]] FreeSummary summary_of(unsigned slot) const noexcept {
    return {longest[slot], order[slot], zeros[slot]};
  }
  void set_summary(unsigned slot, const FreeSummary& summary) noexcept {
    longest[slot] = summary.longest;
    order[slot] = summary.order;
    zeros[slot] = summary.zeros;
  }

  /// The summary of all children.
  [[nodiscard]] FreeSummary summary() const noexcept {
    FreeSummary summary;
    for (unsigned i = 0; i < count; ++i)
      summary.longest = max_of(summary.longest, longest[i]);
    // All 32, unused ones included: a loop of fixed length becomes a few vector instructions.
    for (unsigned i = 0; i < node_capacity; ++i)
      summary.order = max_of(summary.order, order[i]);
    for (unsigned i = 0; i < node_capacity; ++i)
      summary.zeros = max_of(summary.zeros, zeros[i]);
    return summary;
  }

  /// The longest aligned length below any child, for the alignment of this row.
  [[nodiscard]] std::uint64_t longest_of(unsigned row, const LearnedAlignments&) const noexcept {
    std::uint64_t most = 0;
    for (unsigned i = 0; i < count; ++i)
      most = max_of(most, lengths(row)[i]);
    return most;
  }

  /// Notes what there is below the child in this slot.
  template <typename N>
  void summarise(unsigned slot, const N& below, const LearnedAlignments& alignments) noexcept {
    set_summary(slot, below.summary());
    for (unsigned row = 1; row < alignments.rows(); ++row)
      lengths(row)[slot] = below.longest_of(row, alignments);
  }

  /// Whether the child may have a fit for the request, whose alignment this row is for, or less.
  [[nodiscard]] bool may_fit(const Request& request, unsigned row, unsigned slot) const noexcept {
    return lengths(row)[slot] >= request.size() && request.may_fit(summary_of(slot));
  }

  /// The first child from `slot` on that may have a fit, as may_fit() has it; 32 when there is none.
  [[nodiscard, gnu::always_inline]] unsigned next_candidate(const Request& request, unsigned row,
                                                            unsigned slot) const noexcept {
    if (slot >= count) return node_capacity;
    unsigned group = slot / 8 * 8;
    std::uint64_t may = request.may_fit(order + group, zeros + group);
    may &= ~std::uint64_t{0} << (slot - group) * 8;
    for (;;) {
      for (; may != 0; may &= may - 1) {
        const unsigned found = group + static_cast<unsigned>(std::countr_zero(may)) / 8;
        if (lengths(row)[found] >= request.size()) return found;
      }
      group += 8;
      if (group >= count) return node_capacity;
      may = request.may_fit(order + group, zeros + group);
    }
  }

  template <typename N>
  void insert(unsigned slot, N* node, const LearnedAlignments& alignments) noexcept {
    open_gap(slot, 1);
    key[slot] = node->first_key();
    child[slot] = node;
    summarise(slot, *node, alignments);
  }

  void open_gap(unsigned slot, unsigned n) noexcept {
    copy_entries(*this, slot, slot + n, count - slot);
    count += n;
  }

  void close_gap(unsigned slot, unsigned n) noexcept {
    copy_entries(*this, slot + n, slot, count - slot - n);
    key.mark_unused(count - n, count);
    for (unsigned i = count - n; i < count; ++i) {
      set_summary(i, FreeSummary{});
      if (learned == nullptr) continue;
      for (auto& row : learned->rows)
        row[i] = 0;
    }
    count -= n;
  }

  /// Moves children between two siblings until `left` has `n`.
  static void redistribute(Inner& left, Inner& right, unsigned n) noexcept {
    if (n < left.count) {
      const unsigned moved = left.count - n;
      right.open_gap(0, moved);
      left.copy_entries(right, n, 0, moved);
      left.close_gap(n, moved);
    } else {
      const unsigned moved = n - left.count;
      right.copy_entries(left, 0, left.count, moved);
      left.count = n;
      right.close_gap(0, moved);
    }
  }

  /// Copies `n` children from slot `from` here to slot `to` in a node that may be this one.
  void copy_entries(Inner& target, unsigned from, unsigned to, unsigned n) const noexcept {
    const auto move = [=](auto& source, auto& destination) {
      // NOLINTNEXTLINE(bugprone-sizeof-expression): pointers are what is moved, where they are
      std::memmove(destination + to, source + from, n * sizeof source[0]);
    };
    if (n == 0) return;  // as always where a space is filled in ascending order
    move(key.at, target.key.at);
    move(child, target.child);
    move(longest, target.longest);
    move(order, target.order);
    move(zeros, target.zeros);
    if (learned == nullptr || target.learned == nullptr) return;  // nothing is known yet
    for (unsigned row = 1; row < length_rows; ++row)
      move(learned->rows[row - 1], target.learned->rows[row - 1]);
  }
};

}  // namespace vmspace::detail
