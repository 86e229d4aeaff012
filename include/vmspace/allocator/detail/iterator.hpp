// SPDX-License-Identifier: Apache-2.0
//
// Walking over an interval tree: over all entries, or over the free ranges only.
//
// Both iterators make what they give: entries are kept as arrays of bounds, states and values, so
// that there is no object for a reference. C++20 calls them bidirectional. C++17 asks a true
// reference of anything above an input iterator, and yet they say bidirectional there too: the old
// category is what std::prev, std::advance, std::reverse_iterator and the old algorithms choose by,
// and all that they need is to step back. As input iterators, which std::prev takes without a word
// and steps forward, past the end, they would be a trap. std::vector<bool> made the same choice. To
// keep an entry inside the iterator and refer to that would be worse: std::reverse_iterator gives
// references into an iterator that is gone.

#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <ranges>

#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/range.hpp"

namespace vmspace {

/// What a range of a tree is used for.
enum class NodeState : std::uint8_t {
  free,       ///< may be allocated
  allocated,  ///< taken, without a value
  valued,     ///< taken, and holds a value
};

/// One range of a tree, as a look-up or an iterator gives it.
template <typename T>
struct IntervalEntry {
  Range range;
  NodeState state;
  const T* value;  ///< null unless valued; good until the next call that changes the tree

  /// Entries are equal when range, state and value are; two values are compared, not their places.
  friend bool operator==(const IntervalEntry& a,
                         const IntervalEntry& b) requires std::equality_comparable<T> {
    return a.range == b.range && a.state == b.state &&
           (a.value == nullptr || b.value == nullptr ? a.value == b.value : *a.value == *b.value);
  }
};

namespace detail {

template <typename T>
NodeState state_of(const Leaf<T>& leaf, unsigned pos) noexcept {
  if (leaf.free.test(pos)) return NodeState::free;
  return leaf.valued.test(pos) ? NodeState::valued : NodeState::allocated;
}

template <typename T>
Range range_of(const Leaf<T>& leaf, unsigned pos) noexcept {
  return unchecked_range(leaf.min[pos], leaf.max[pos]);
}

/// What `->` gives where there is no object to point to: holds it as long as the expression lasts.
template <typename Value>
class Arrow {
 public:
  explicit Arrow(const Value& value) noexcept : value_(value) {}
  [[nodiscard]] const Value* operator->() const noexcept { return std::addressof(value_); }

 private:
  Value value_;
};

/// Visits entries in address order. The end is one past the last entry of the last leaf, so that
/// it can be stepped back from; in an empty tree it is no leaf at all.
template <typename T>
class EntryIterator {
 public:
  using iterator_category = std::bidirectional_iterator_tag;
  using value_type = IntervalEntry<T>;
  using difference_type = std::ptrdiff_t;
  using pointer = Arrow<value_type>;
  using reference = value_type;

  EntryIterator() = default;
  EntryIterator(const Leaf<T>* leaf, unsigned pos) noexcept : leaf_(leaf), pos_(pos) {
    if (leaf_ != nullptr && pos_ == leaf_->count && leaf_->next != nullptr) {
      leaf_ = leaf_->next;
      pos_ = 0;
    }
  }

  [[nodiscard]] IntervalEntry<T> operator*() const noexcept {
    return {detail::range_of(*leaf_, pos_), detail::state_of(*leaf_, pos_),
            leaf_->valued.test(pos_) ? leaf_->values.at(pos_) : nullptr};
  }
  [[nodiscard]] pointer operator->() const noexcept { return pointer(**this); }

  EntryIterator& operator++() noexcept {
    *this = EntryIterator(leaf_, pos_ + 1);
    return *this;
  }
  EntryIterator operator++(int) noexcept {
    EntryIterator before = *this;
    ++*this;
    return before;
  }
  EntryIterator& operator--() noexcept {
    if (pos_ == 0) {
      leaf_ = leaf_->prev;
      pos_ = leaf_->count;
    }
    --pos_;
    return *this;
  }
  EntryIterator operator--(int) noexcept {
    EntryIterator before = *this;
    --*this;
    return before;
  }

  friend bool operator==(const EntryIterator&, const EntryIterator&) = default;

 private:
  const Leaf<T>* leaf_ = nullptr;
  unsigned pos_ = 0;
};

/// Visits the free ranges in address order.
template <typename T>
class FreeIterator {
 public:
  using iterator_category = std::bidirectional_iterator_tag;
  using value_type = Range;
  using difference_type = std::ptrdiff_t;
  using pointer = Arrow<value_type>;
  using reference = value_type;

  FreeIterator() = default;
  /// The first free entry at or after `pos` of the leaf, or the end.
  FreeIterator(const Leaf<T>* leaf, unsigned pos) noexcept : leaf_(leaf), pos_(pos) {
    if (leaf_ == nullptr) return;
    Bits left = leaf_->free.from(pos_);
    while (!left.any() && leaf_->next != nullptr) {
      leaf_ = leaf_->next;
      left = leaf_->free;
    }
    pos_ = left.any() ? left.lowest() : leaf_->count;
  }

  [[nodiscard]] Range operator*() const noexcept { return detail::range_of(*leaf_, pos_); }
  [[nodiscard]] pointer operator->() const noexcept { return pointer(**this); }

  FreeIterator& operator++() noexcept {
    *this = FreeIterator(leaf_, pos_ + 1);
    return *this;
  }
  FreeIterator operator++(int) noexcept {
    FreeIterator before = *this;
    ++*this;
    return before;
  }
  FreeIterator& operator--() noexcept {
    Bits left = leaf_->free.below(pos_);
    while (!left.any()) {
      leaf_ = leaf_->prev;
      left = leaf_->free;
    }
    pos_ = left.highest();
    return *this;
  }
  FreeIterator operator--(int) noexcept {
    FreeIterator before = *this;
    --*this;
    return before;
  }

  friend bool operator==(const FreeIterator&, const FreeIterator&) = default;

 private:
  const Leaf<T>* leaf_ = nullptr;
  unsigned pos_ = 0;
};

/// Two iterators as a view. Like std::ranges::subrange, which clang 14 does not compile with
/// libstdc++ 12.
template <typename I>
class Walk : public std::ranges::view_base {
 public:
  Walk() = default;
  Walk(I first, I last) noexcept : first_(first), last_(last) {}

  [[nodiscard]] I begin() const noexcept { return first_; }
  [[nodiscard]] I end() const noexcept { return last_; }
  [[nodiscard]] bool empty() const noexcept { return first_ == last_; }
  [[nodiscard]] std::iter_value_t<I> front() const noexcept { return *first_; }

 private:
  I first_;
  I last_;
};

}  // namespace detail

}  // namespace vmspace

// Its iterators point into the tree and not into the view.
template <typename I>
inline constexpr bool std::ranges::enable_borrowed_range<vmspace::detail::Walk<I>> = true;
