// SPDX-License-Identifier: Apache-2.0
//
// A list of plain values that lies in its owner up to a number of them, and on the heap above: for what
// is nearly always short, is made once a request, and has no bound but one that a guest sets.

#pragma once

#include <cassert>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>

#include "vmspace/base/cxx20.hpp"

namespace vmspace::detail {

/// Up to `inline_count` values without memory of their own. What it has taken on the heap it keeps
/// until the end, so that a list that is filled again and again allocates once.
///
/// Invariant: data_ points to the values, which are in inline_, or in heap_ when there is any.
template <typename T, std::size_t inline_count>
requires(std::is_trivially_copyable_v<T>&& std::is_trivially_destructible_v<T>) class InlineVector {
 public:
  // Not defaulted: the values are left as they are, which are hundreds of bytes.
  InlineVector() noexcept {}  // NOLINT(modernize-use-equals-default)
  InlineVector(InlineVector&& other) noexcept { take(other); }
  InlineVector& operator=(InlineVector&& other) noexcept {
    if (this != &other) take(other);
    return *this;
  }
  ~InlineVector() = default;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] T& operator[](std::size_t index) noexcept { return data_[index]; }
  [[nodiscard]] const T& operator[](std::size_t index) const noexcept { return data_[index]; }
  [[nodiscard]] T& back() noexcept { return data_[size_ - 1]; }
  [[nodiscard]] std::span<T> values() noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<const T> values() const noexcept { return {data_, size_}; }

  /// Amortised O(1). When there is no memory, the list is as it was.
  void push_back(const T& value) {
    if (size_ == capacity_) [[unlikely]]
      grow();
    data_[size_++] = value;
  }
  /// Keeps the first `count`, which are no more than there are.
  void truncate(std::size_t count) noexcept { size_ = count; }

  // Up to inline_count values of a new list may be written here, then counted. For all the compiler
  // knows, pushed values go anywhere, and data_ and size_ would be loaded and stored for each.
  [[nodiscard]] T* inline_values() noexcept { return inline_; }
  void set_inline_size(std::size_t count) noexcept {
    assert(heap_ == nullptr && count <= inline_count);
    size_ = count;
  }

 private:
  [[gnu::noinline]] void grow() {
    assert(capacity_ != 0);
    // Not make_unique_for_overwrite, which libc++ has only from version 16 on.
    std::unique_ptr<T[]> larger(new T[2 * capacity_]);
    for (std::size_t i = 0; i < size_; ++i)
      larger[i] = data_[i];
    heap_ = std::move(larger);
    data_ = heap_.get();
    capacity_ *= 2;
  }
  /// Leaves `other` empty.
  void take(InlineVector& other) noexcept {
    if (other.heap_ != nullptr) {
      heap_ = std::move(other.heap_);
      data_ = heap_.get();
      capacity_ = other.capacity_;
      other.data_ = other.inline_;
      other.capacity_ = inline_count;
    } else {
      for (std::size_t i = 0; i < other.size_; ++i) {
        data_[i] = other.data_[i];
        asm("" ::: "memory");  // or the loop becomes a call of memmove, for one or two values
      }
    }
    size_ = other.size_;
    other.size_ = 0;
  }

  T* data_ = inline_;
  std::size_t size_ = 0;
  std::size_t capacity_ = inline_count;  // never less: a list that is taken fits into any other
  std::unique_ptr<T[]> heap_;
  union {
    T inline_[inline_count];
  };
};

}  // namespace vmspace::detail
