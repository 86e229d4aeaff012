// SPDX-License-Identifier: Apache-2.0
//
// The two kinds of node of the interval tree: what they hold, and how entries move inside one and
// between two neighbours. Which node is where is the business of the store.
//
// A leaf holds up to 32 entries, an inner node up to 32 children, both in ascending order. Keys,
// upper bounds, values and maxima are arrays of their own: a search for a key reads keys only, a
// search for room reads maxima only. The states of a leaf's entries are two words of 32 bits.
//
// `count` entries are in use. Keys above them are 2^64-1, so that a search may read all 32 without
// asking how many there are.

#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "vmspace/allocator/detail/free_summary.hpp"

namespace vmspace::detail {

/// Entries of a leaf, children of an inner node.
inline constexpr unsigned node_capacity = 32;

/// Every node but the root has at least so many.
inline constexpr unsigned node_minimum = node_capacity / 4;

/// Two neighbours are made one when together they have at most so many: fewer than fit, so that the
/// next insertion need not split them again.
inline constexpr unsigned node_merged = node_capacity * 3 / 4;

/// Ascending keys; those not in use are 2^64-1.
struct Keys {
  std::uint64_t at[node_capacity];

  Keys() { std::fill(std::begin(at), std::end(at), std::numeric_limits<std::uint64_t>::max()); }

  std::uint64_t& operator[](unsigned i) noexcept { return at[i]; }
  const std::uint64_t& operator[](unsigned i) const noexcept { return at[i]; }

  /// How many of the first `count` keys are at most `value`.
  ///
  /// Two rounds of comparisons that do not wait for each other, first of the last key of each group
  /// of eight, then inside one group; a binary search would be five rounds in a row.
  [[nodiscard]] unsigned count_up_to(std::uint64_t value, unsigned count) const noexcept {
    static_assert(node_capacity == 32);
    const unsigned group =
        static_cast<unsigned>(at[7] <= value) + (at[15] <= value) + (at[23] <= value);
    const std::uint64_t* const key = at + group * 8;
    const unsigned inside = static_cast<unsigned>(key[0] <= value) + (key[1] <= value) +
                            (key[2] <= value) + (key[3] <= value) + (key[4] <= value) +
                            (key[5] <= value) + (key[6] <= value) + (key[7] <= value);
    return std::min(group * 8 + inside, count);
  }

  /// Marks the keys [from, to) as not in use.
  void retire(unsigned from, unsigned to) noexcept {
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
  /// All bits `by` places higher; those that pass the top are lost.
  [[nodiscard]] Bits up(unsigned by) const noexcept {
    return Bits(static_cast<std::uint32_t>(std::uint64_t{word_} << by));
  }
  /// All bits `by` places lower; those that pass the bottom are lost.
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

/// Raw places for the values of a leaf's entries. Which of them hold one is for the leaf to know.
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
  void destroy(unsigned i) noexcept { std::destroy_at(at(i)); }

 private:
  alignas(T) std::byte bytes_[node_capacity * sizeof(T)];
};

/// A type without state, whose objects all have the same value, takes no place: one address serves
/// for all. Nothing is ever written there, so threads may share it.
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

/// What all nodes share. A node does not know its kind: its depth in the tree tells.
struct Node {
  std::uint32_t count = 0;
};

/// Up to 32 ranges with their states and values, and links to the leaves beside it.
///
/// An entry is free, valued, or, with neither bit set, allocated. Exactly the valued ones have a
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

  [[nodiscard]] Room room() const noexcept {
    Room room;
    for (Bits left = free; left.any(); left.reset_lowest()) {
      room.join(Room::of(min[left.lowest()], max[left.lowest()]));
    }
    return room;
  }

  /// Makes `n` entries at `pos`, for the caller to fill in; they are in state allocated.
  void open(unsigned pos, unsigned n) noexcept {
    move_entries(*this, pos, pos + n, count - pos);
    free = free.below(pos) | free.from(pos).up(n);
    valued = valued.below(pos) | valued.from(pos).up(n);
    count += n;
  }

  /// Removes the `n` entries at `pos`, whose values are gone already.
  void close(unsigned pos, unsigned n) noexcept {
    move_entries(*this, pos + n, pos, count - pos - n);
    free = free.below(pos) | free.from(pos + n).down(n);
    valued = valued.below(pos) | valued.from(pos + n).down(n);
    min.retire(count - n, count);
    count -= n;
  }

  /// Moves entries between two neighbours until `left` has `n`.
  static void divide(Leaf& left, Leaf& right, unsigned n) noexcept {
    if (n < left.count) {
      const unsigned moved = left.count - n;
      right.open(0, moved);
      left.move_entries(right, n, 0, moved);
      right.free = right.free | left.free.from(n).down(n);
      right.valued = right.valued | left.valued.from(n).down(n);
      left.free = left.free.below(n);
      left.valued = left.valued.below(n);
      left.min.retire(n, left.count);
      left.count = n;
    } else {
      const unsigned moved = n - left.count;
      right.move_entries(left, 0, left.count, moved);
      left.free = left.free | right.free.below(moved).up(left.count);
      left.valued = left.valued | right.valued.below(moved).up(left.count);
      left.count = n;
      right.close(0, moved);
    }
  }

 private:
  /// Moves `n` entries' bounds and values, but not their states, from `from` to `to` in a leaf that
  /// may be this one.
  void move_entries(Leaf& target, unsigned from, unsigned to, unsigned n) noexcept {
    if (std::addressof(target) == this && from == to) return;
    std::memmove(target.min.at + to, min.at + from, n * sizeof min.at[0]);
    std::memmove(target.max + to, max + from, n * sizeof max[0]);
    if constexpr (std::is_empty_v<ValueSlots<T>>) {
      return;
    } else if constexpr (std::is_trivially_copyable_v<T>) {
      std::memmove(static_cast<void*>(target.values.at(to)), values.at(from), n * sizeof(T));
    } else {
      // The end that moves away goes first, so that no value lands on another.
      for (Bits left = valued.from(from).below(from + n); left.any();) {
        const unsigned i = to > from ? left.highest() : left.lowest();
        target.values.construct(i - from + to, std::move(*values.at(i)));
        values.destroy(i);
        left.reset(i);
      }
    }
  }
};

/// Up to 32 children. `key[i]` is the lowest address of any entry under child i; the arrays
/// `longest`, `order` and `zeros` are the rooms of the children, and 0 above `count`.
struct Inner : Node {
  Keys key;
  Node* child[node_capacity];
  std::uint64_t longest[node_capacity] = {};
  std::uint8_t order[node_capacity] = {};
  std::uint8_t zeros[node_capacity] = {};

  [[nodiscard]] std::uint64_t first_key() const noexcept { return key[0]; }

  /// The child under which `value` belongs: the last that begins at or below it.
  [[nodiscard]] unsigned child_for(std::uint64_t value) const noexcept {
    return std::max(key.count_up_to(value, count), 1U) - 1;
  }

  [[nodiscard]] Room room_of(unsigned slot) const noexcept {
    return {longest[slot], order[slot], zeros[slot]};
  }
  void set_room(unsigned slot, const Room& room) noexcept {
    longest[slot] = room.longest;
    order[slot] = room.order;
    zeros[slot] = room.zeros;
  }

  /// Of all children together.
  [[nodiscard]] Room room() const noexcept {
    Room room;
    for (unsigned i = 0; i < count; ++i)
      room.longest = std::max(room.longest, longest[i]);
    // All 32, unused ones included: a loop of fixed length becomes a few vector instructions.
    for (unsigned i = 0; i < node_capacity; ++i)
      room.order = std::max(room.order, order[i]);
    for (unsigned i = 0; i < node_capacity; ++i)
      room.zeros = std::max(room.zeros, zeros[i]);
    return room;
  }

  /// The first child from `slot` on whose room allows the request; 32 when there is none.
  [[nodiscard]] unsigned next_fit(const Request& request, unsigned slot) const noexcept {
    for (unsigned group = slot / 8 * 8; group < count; group += 8) {
      std::uint64_t may = request.may_fit(order + group, zeros + group);
      if (group < slot) may = may >> (slot - group) * 8 << (slot - group) * 8;
      for (; may != 0; may &= may - 1) {
        const unsigned found = group + static_cast<unsigned>(std::countr_zero(may)) / 8;
        if (request.may_fit(room_of(found))) return found;
      }
    }
    return node_capacity;
  }

  void insert(unsigned slot, Node* node, std::uint64_t first, const Room& room) noexcept {
    open(slot, 1);
    key[slot] = first;
    child[slot] = node;
    set_room(slot, room);
  }

  void open(unsigned slot, unsigned n) noexcept {
    copy_entries(*this, slot, slot + n, count - slot);
    count += n;
  }

  void close(unsigned slot, unsigned n) noexcept {
    copy_entries(*this, slot + n, slot, count - slot - n);
    key.retire(count - n, count);
    for (unsigned i = count - n; i < count; ++i)
      set_room(i, Room{});
    count -= n;
  }

  /// Moves children between two neighbours until `left` has `n`.
  static void divide(Inner& left, Inner& right, unsigned n) noexcept {
    if (n < left.count) {
      const unsigned moved = left.count - n;
      right.open(0, moved);
      left.copy_entries(right, n, 0, moved);
      left.close(n, moved);
    } else {
      const unsigned moved = n - left.count;
      right.copy_entries(left, 0, left.count, moved);
      left.count = n;
      right.close(0, moved);
    }
  }

  /// Copies `n` children from slot `from` here to slot `to` in a node that may be this one.
  void copy_entries(Inner& target, unsigned from, unsigned to, unsigned n) const noexcept {
    const auto move = [=](auto& source, auto& destination) {
      // NOLINTNEXTLINE(bugprone-sizeof-expression): pointers are what is moved, where they are
      std::memmove(destination + to, source + from, n * sizeof source[0]);
    };
    move(key.at, target.key.at);
    move(child, target.child);
    move(longest, target.longest);
    move(order, target.order);
    move(zeros, target.zeros);
  }
};

}  // namespace vmspace::detail
