// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/guest_access.hpp"

#include <cstring>

namespace vmspace::detail {

#if VMSPACE_DETAIL_TSAN

namespace {

std::byte load_byte(const std::byte* from) noexcept {
  return static_cast<std::byte>(load_word<unsigned char>(from));
}
void store_byte(std::byte* to, std::byte value) noexcept {
  store_word<unsigned char>(to, static_cast<unsigned char>(value));
}

/// Words where both ends allow it, bytes elsewhere; upwards.
template <typename Load, typename Store>
void copy_up(std::byte* to, const std::byte* from, std::size_t bytes, Load load, Store store) {
  for (std::size_t i = 0; i < bytes; ++i)
    store(to + i, load(from + i));
}

}  // namespace

void copy_from_shared(void* to, const std::byte* from, std::size_t bytes) noexcept {
  copy_up(static_cast<std::byte*>(to), from, bytes, load_byte,
          [](std::byte* at, std::byte value) { *at = value; });
}

void copy_to_shared(std::byte* to, const void* from, std::size_t bytes) noexcept {
  copy_up(
      to, static_cast<const std::byte*>(from), bytes, [](const std::byte* at) { return *at; },
      store_byte);
}

void move_shared(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  if (to <= from) return copy_up(to, from, bytes, load_byte, store_byte);
  while (bytes-- > 0)
    store_byte(to + bytes, load_byte(from + bytes));
}

void fill_shared(std::byte* to, std::byte value, std::size_t bytes) noexcept {
  for (std::size_t i = 0; i < bytes; ++i)
    store_byte(to + i, value);
}

#else

void copy_from_shared(void* to, const std::byte* from, std::size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}

void copy_to_shared(std::byte* to, const void* from, std::size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}

void move_shared(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  std::memmove(to, from, bytes);
}

void fill_shared(std::byte* to, std::byte value, std::size_t bytes) noexcept {
  std::memset(to, static_cast<int>(value), bytes);
}

#endif

}  // namespace vmspace::detail
