// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/guest_access.hpp"

namespace vmspace::detail {

namespace {

void copy_byte(std::byte* to, const std::byte* from) noexcept {
  std::byte value;
  __atomic_load(from, &value, __ATOMIC_RELAXED);
  __atomic_store(to, &value, __ATOMIC_RELAXED);
}

}  // namespace

void move_atomically(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  if (to <= from) {
    for (std::size_t i = 0; i < bytes; ++i) copy_byte(to + i, from + i);
  } else {
    while (bytes-- > 0) copy_byte(to + bytes, from + bytes);
  }
}

void fill_atomically(std::byte* to, std::byte value, std::size_t bytes) noexcept {
  for (std::size_t i = 0; i < bytes; ++i) __atomic_store(to + i, &value, __ATOMIC_RELAXED);
}

}  // namespace vmspace::detail
