// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/guest_access.hpp"

namespace vmspace::detail {

namespace {

template <typename Word>
void copy_word(std::byte* to, const std::byte* from) noexcept {
  const Word word = __atomic_load_n(reinterpret_cast<const Word*>(from), __ATOMIC_RELAXED);
  __atomic_store_n(reinterpret_cast<Word*>(to), word, __ATOMIC_RELAXED);
}

bool is_aligned(const std::byte* at) {
  return reinterpret_cast<std::uintptr_t>(at) % sizeof(std::uint64_t) == 0;
}

}  // namespace

void move_atomically(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  if (to <= from) {
    std::size_t i = 0;
    if (is_aligned(to) && is_aligned(from)) {
      for (; bytes - i >= sizeof(std::uint64_t); i += sizeof(std::uint64_t)) {
        copy_word<std::uint64_t>(to + i, from + i);
      }
    }
    for (; i < bytes; ++i)
      copy_word<std::uint8_t>(to + i, from + i);
  } else {
    // The source may overlap the target from below: downwards.
    while (bytes-- > 0)
      copy_word<std::uint8_t>(to + bytes, from + bytes);
  }
}

void fill_atomically(std::byte* to, std::byte value, std::size_t bytes) noexcept {
  for (std::size_t i = 0; i < bytes; ++i)
    __atomic_store(to + i, &value, __ATOMIC_RELAXED);
}

void load_words(void* to, const std::byte* from, std::size_t bytes) noexcept {
  auto* const out = static_cast<std::byte*>(to);
  for_each_word(reinterpret_cast<std::uintptr_t>(from), bytes,
                [&]<typename Word>(std::size_t at, Word) {
                  const Word word = load_word<Word>(from + at);
                  std::memcpy(out + at, &word, sizeof word);
                });
}

void store_words(std::byte* to, const void* from, std::size_t bytes) noexcept {
  const auto* const in = static_cast<const std::byte*>(from);
  for_each_word(reinterpret_cast<std::uintptr_t>(to), bytes,
                [&]<typename Word>(std::size_t at, Word word) {
                  std::memcpy(&word, in + at, sizeof word);
                  store_word<Word>(to + at, word);
                });
}

}  // namespace vmspace::detail
