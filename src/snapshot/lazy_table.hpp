// SPDX-License-Identifier: Apache-2.0
//
// Tables with an entry for each page of a guest, of which only what is used takes memory.

#pragma once

#include <algorithm>
#include <cstdint>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// Zeroed memory that is backed when it is touched, whatever its size.
class LazyTable {
 public:
  LazyTable() noexcept = default;
  LazyTable(const LazyTable&) = delete;
  LazyTable& operator=(const LazyTable&) = delete;
  ~LazyTable();
  /// Once. Errors: `os`.
  [[nodiscard]] Result<void> map(const char* operation, std::uint64_t size);
  template <typename T>
  [[nodiscard]] T* as() const noexcept {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::uint64_t size_ = 0;
};

/// Calls `use(word, mask)` for the 64-bit words that hold the bits [first, end).
template <typename Use>
void for_each_bit_word(std::uint64_t first, std::uint64_t end, Use use) {
  for (std::uint64_t at = first; at < end;) {
    const std::uint64_t stop = std::min(end, (at / 64 + 1) * 64);
    const std::uint64_t count = stop - at;
    const std::uint64_t ones = count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
    use(at / 64, ones << at % 64);
    at = stop;
  }
}

}  // namespace vmspace::detail
