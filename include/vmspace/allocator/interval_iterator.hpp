// SPDX-License-Identifier: Apache-2.0
//
// Iterators over an IntervalTree: over all entries, or over the free ranges only; and the view that
// two of them make.
//
// The iterators return values, not references: a tree keeps bounds, states and values in separate
// arrays, so there is no entry object to refer to. C++20 calls such an iterator bidirectional. C++17
// demands a reference of anything above an input iterator, yet these say bidirectional there too:
// std::prev, std::advance, std::reverse_iterator and the older algorithms go by that category, and
// all they need is to step back. Given an input iterator, std::prev silently steps forward, past the
// end. std::vector<bool> made the same choice. An entry kept inside the iterator, to refer to, would
// be worse: std::reverse_iterator would return references into a temporary.

#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>

#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/interval_entry.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/detail/address_of.hpp"

namespace vmspace {

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

/// The result of an iterator's `->`: holds the value for as long as the expression lasts.
template <typename Value>
class Arrow {
 public:
  explicit Arrow(const Value& value) noexcept : value_(value) {}
  [[nodiscard]] const Value* operator->() const noexcept { return address_of(value_); }

 private:
  Value value_;
};

}  // namespace detail

/// Visits the entries of a tree in address order. A step is O(1). Valid until the next call that
/// changes the tree; safe to use from any thread until then.
//
// The end is one past the last entry of the last leaf, so that it can be stepped back from; in an
// empty tree there is no leaf.
template <typename T>
class IntervalIterator {
 public:
  using iterator_category = std::bidirectional_iterator_tag;
  using value_type = IntervalEntry<T>;
  using difference_type = std::ptrdiff_t;
  using pointer = detail::Arrow<value_type>;
  using reference = value_type;

  IntervalIterator() = default;
  /// For IntervalTree: the entry at `pos` of the leaf, or the first of the next leaf.
  IntervalIterator(const detail::Leaf<T>* leaf, unsigned pos) noexcept : leaf_(leaf), pos_(pos) {
    if (leaf_ != nullptr && pos_ == leaf_->count && leaf_->next != nullptr) {
      leaf_ = leaf_->next;
      pos_ = 0;
    }
  }

  [[nodiscard]] IntervalEntry<T> operator*() const noexcept {
    return {detail::range_of(*leaf_, pos_), detail::state_of(*leaf_, pos_),
            leaf_->valued.test(pos_) ? leaf_->values.at(pos_) : nullptr};
  }
  /// A member of the entry; the entry is a copy that lives as long as the expression.
  [[nodiscard]] pointer operator->() const noexcept { return pointer(**this); }

  IntervalIterator& operator++() noexcept {
    *this = IntervalIterator(leaf_, pos_ + 1);
    return *this;
  }
  IntervalIterator operator++(int) noexcept {
    IntervalIterator before = *this;
    ++*this;
    return before;
  }
  IntervalIterator& operator--() noexcept {
    if (pos_ == 0) {
      leaf_ = leaf_->prev;
      pos_ = leaf_->count;
    }
    --pos_;
    return *this;
  }
  IntervalIterator operator--(int) noexcept {
    IntervalIterator before = *this;
    --*this;
    return before;
  }

  friend bool operator==(const IntervalIterator&, const IntervalIterator&) = default;

 private:
  const detail::Leaf<T>* leaf_ = nullptr;
  unsigned pos_ = 0;
};

/// Visits the free ranges of a tree in address order. A step skips what is taken, up to a leaf at a
/// time. Valid until the next call that changes the tree; safe to use from any thread until then.
template <typename T>
class FreeRangeIterator {
 public:
  using iterator_category = std::bidirectional_iterator_tag;
  using value_type = Range;
  using difference_type = std::ptrdiff_t;
  using pointer = detail::Arrow<value_type>;
  using reference = value_type;

  FreeRangeIterator() = default;
  /// For IntervalTree: the first free entry at or after `pos` of the leaf, or the end.
  FreeRangeIterator(const detail::Leaf<T>* leaf, unsigned pos) noexcept : leaf_(leaf), pos_(pos) {
    if (leaf_ == nullptr) return;
    detail::Bits left = leaf_->free.from(pos_);
    while (!left.any() && leaf_->next != nullptr) {
      leaf_ = leaf_->next;
      left = leaf_->free;
    }
    pos_ = left.any() ? left.lowest() : leaf_->count;
  }

  [[nodiscard]] Range operator*() const noexcept { return detail::range_of(*leaf_, pos_); }
  /// A member of the range; the range is a copy that lives as long as the expression.
  [[nodiscard]] pointer operator->() const noexcept { return pointer(**this); }

  FreeRangeIterator& operator++() noexcept {
    *this = FreeRangeIterator(leaf_, pos_ + 1);
    return *this;
  }
  FreeRangeIterator operator++(int) noexcept {
    FreeRangeIterator before = *this;
    ++*this;
    return before;
  }
  FreeRangeIterator& operator--() noexcept {
    detail::Bits left = leaf_->free.below(pos_);
    while (!left.any()) {
      leaf_ = leaf_->prev;
      left = leaf_->free;
    }
    pos_ = left.highest();
    return *this;
  }
  FreeRangeIterator operator--(int) noexcept {
    FreeRangeIterator before = *this;
    --*this;
    return before;
  }

  friend bool operator==(const FreeRangeIterator&, const FreeRangeIterator&) = default;

 private:
  const detail::Leaf<T>* leaf_ = nullptr;
  unsigned pos_ = 0;
};

/// The entries or free ranges between two iterators, as a view. Valid for as long as its iterators.
//
// Not std::ranges::subrange, which clang 14 does not compile with libstdc++ 12.
template <typename I>
class IntervalView {
 public:
  IntervalView() = default;
  /// From `first` to before `last`, which belong to one tree.
  IntervalView(I first, I last) noexcept : first_(first), last_(last) {}

  /// The first element.
  [[nodiscard]] I begin() const noexcept { return first_; }
  /// Behind the last element.
  [[nodiscard]] I end() const noexcept { return last_; }
  /// Whether there are no elements. O(1).
  [[nodiscard]] bool empty() const noexcept { return first_ == last_; }
  /// The first element; there must be one.
  [[nodiscard]] std::iter_value_t<I> front() const noexcept { return *first_; }

 private:
  I first_;
  I last_;
};

}  // namespace vmspace

// <ranges> declares these, and so does every header with views of its own, such as <span>, which is a
// tenth as long. A view: it is two iterators. Borrowed: they point into the tree, not into the view.
template <typename I>
inline constexpr bool std::ranges::enable_view<vmspace::IntervalView<I>> = true;
template <typename I>
inline constexpr bool std::ranges::enable_borrowed_range<vmspace::IntervalView<I>> = true;
