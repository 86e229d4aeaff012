// SPDX-License-Identifier: Apache-2.0
//
// Loads, stores and copies of memory that somebody else changes meanwhile.
//
// A guest writes to its memory whenever it likes. To the compiler, plain loads of it are loads of
// ordinary memory: it may do one twice instead of keeping the value, and then a length that was
// checked is not the length that is used (a "double fetch"; XSA-155 is the known example). Here
// every small load and store is volatile, and a bulk copy ends in a barrier across which the
// compiler may not read the source again: what the caller gets is a private copy that was read
// once.
//
// An aligned load or store of 1, 2, 4 or 8 bytes is one access of the machine, never torn. A larger
// object is several, split where aligned integers begin and end: by address, since a packed
// structure has its aligned integers at odd offsets when it lies at an odd address.
//
// ThreadSanitizer takes volatile accesses for ordinary ones and would report every race with the
// guest, or with another thread that acts for it. Such races are meant, so under it the same
// accesses are made with relaxed atomics, as small as the alignment asks.

#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#include "vmspace/base/cxx20.hpp"
#include "vmspace/base/export.hpp"

#if defined(__SANITIZE_THREAD__)
#define VMSPACE_DETAIL_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VMSPACE_DETAIL_TSAN 1
#endif
#endif
#ifndef VMSPACE_DETAIL_TSAN
#define VMSPACE_DETAIL_TSAN 0
#endif

namespace vmspace::detail {

/// For all the compiler knows, all memory has changed.
[[gnu::always_inline]] inline void compiler_barrier() noexcept {
  asm volatile("" ::: "memory");
}

/// memmove and memset in relaxed atomic bytes, for ThreadSanitizer.
VMSPACE_EXPORT void move_atomically(std::byte* to, const std::byte* from,
                                    std::size_t bytes) noexcept;
VMSPACE_EXPORT void fill_atomically(std::byte* to, std::byte value, std::size_t bytes) noexcept;

/// Up to this size an object or a slice is copied in line: a call would cost more.
inline constexpr std::size_t inline_copy_limit = 64;

/// A number of bytes that the compiler doesn't know. For one that it knows, g++ expands memcpy to rep
/// movs, which takes longer than the C library's: for 512 bytes 3.1 times (g++ 12, Intel Sapphire
/// Rapids), for 4 KiB 3 times (AMD Zen 3).
[[nodiscard, gnu::always_inline]] inline std::size_t unknown(std::size_t bytes) noexcept {
  asm("" : "+r"(bytes));
  return bytes;
}

/// From memory that others write to private memory. Any alignment; no overlap.
inline void copy_from_shared(void* to, const std::byte* from, std::size_t bytes) noexcept {
#if VMSPACE_DETAIL_TSAN
  move_atomically(static_cast<std::byte*>(to), from, bytes);
#else
  std::memcpy(to, from, unknown(bytes));
#endif
  compiler_barrier();
}

/// From private memory to memory that others read and write. Any alignment; no overlap.
inline void copy_to_shared(std::byte* to, const void* from, std::size_t bytes) noexcept {
#if VMSPACE_DETAIL_TSAN
  move_atomically(to, static_cast<const std::byte*>(from), bytes);
#else
  std::memcpy(to, from, unknown(bytes));
#endif
  compiler_barrier();
}

/// Within shared memory; the ranges may overlap.
inline void move_shared(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
#if VMSPACE_DETAIL_TSAN
  move_atomically(to, from, bytes);
#else
  std::memmove(to, from, bytes);
#endif
}

inline void fill_shared(std::byte* to, std::byte value, std::size_t bytes) noexcept {
#if VMSPACE_DETAIL_TSAN
  fill_atomically(to, value, bytes);
#else
  std::memset(to, static_cast<int>(value), bytes);
#endif
}

template <typename Word>
[[gnu::always_inline]] inline Word load_word(const std::byte* from) noexcept {
#if VMSPACE_DETAIL_TSAN
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(Word) == 0) {
    return __atomic_load_n(reinterpret_cast<const Word*>(from), __ATOMIC_RELAXED);
  }
  unsigned char bytes[sizeof(Word)];
  for (std::size_t i = 0; i < sizeof(Word); ++i) {
    bytes[i] = __atomic_load_n(reinterpret_cast<const unsigned char*>(from) + i, __ATOMIC_RELAXED);
  }
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
#else
  // One load on x86-64 and aarch64 wherever it lies; the attributes tell the compiler that it may
  // lie anywhere and overlay any type.
  using Anywhere [[gnu::may_alias, gnu::aligned(1)]] = Word;
  const Word word = *reinterpret_cast<const volatile Anywhere*>(from);
  return word;
#endif
}

template <typename Word>
[[gnu::always_inline]] inline void store_word(std::byte* to, Word word) noexcept {
#if VMSPACE_DETAIL_TSAN
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(Word) == 0) {
    return __atomic_store_n(reinterpret_cast<Word*>(to), word, __ATOMIC_RELAXED);
  }
  unsigned char bytes[sizeof(Word)];
  std::memcpy(bytes, &word, sizeof word);
  for (std::size_t i = 0; i < sizeof(Word); ++i) {
    __atomic_store_n(reinterpret_cast<unsigned char*>(to) + i, bytes[i], __ATOMIC_RELAXED);
  }
#else
  using Anywhere [[gnu::may_alias, gnu::aligned(1)]] = Word;
  *reinterpret_cast<volatile Anywhere*>(to) = word;
#endif
}

/// Whether copy_short() takes so many bytes: the size of a descriptor or a header.
[[nodiscard]] constexpr bool is_short(std::size_t bytes) noexcept {
  return bytes >= 16 && bytes <= inline_copy_limit;
}

/// Copies an is_short() number of bytes in line, as blocks of 16 bytes from both ends, which overlap
/// in the middle.
[[gnu::always_inline]] inline void copy_short(std::byte* to, const std::byte* from,
                                              std::size_t bytes) noexcept {
#if VMSPACE_DETAIL_TSAN
  move_atomically(to, from, bytes);
#else
  struct Block {
    unsigned char bytes[16];
  };
  const auto load = [from](std::size_t at) {
    Block block;
    std::memcpy(&block, from + at, sizeof block);
    return block;
  };
  const auto store = [to](std::size_t at, const Block& block) {
    std::memcpy(to + at, &block, sizeof block);
  };
  const std::size_t last = bytes - sizeof(Block);
  const Block head = load(0);
  const Block tail = load(last);
  if (bytes > 2 * sizeof(Block)) {
    const Block second = load(sizeof(Block));
    const Block third = load(last - sizeof(Block));
    store(sizeof(Block), second);
    store(last - sizeof(Block), third);
  }
  store(0, head);
  store(last, tail);
#endif
  compiler_barrier();
}

/// Calls `use(offset, Word{})` for words of 8, 4, 2 and 1 bytes that make up `bytes` bytes from
/// `address`, from the lowest to the highest: each as large as its own address and the end allow.
/// So every integer that lies there at a multiple of its size is within one word.
template <typename Use>
void for_each_word(std::uintptr_t address, std::size_t bytes, Use use) {
  std::size_t at = 0;
  const auto one = [&]<typename Word>(Word word) {
    use(at, word);
    at += sizeof(Word);
  };
  const auto lead = [&]<typename Word>(Word word) {
    if (bytes - at >= sizeof(Word) && (address + at) % (2 * sizeof(Word)) != 0) one(word);
  };
  const auto tail = [&]<typename Word>(Word word) {
    if (bytes - at >= sizeof(Word)) one(word);
  };
  lead(std::uint8_t{});
  lead(std::uint16_t{});
  lead(std::uint32_t{});
  for (; bytes - at >= sizeof(std::uint64_t); at += sizeof(std::uint64_t))
    use(at, std::uint64_t{});
  tail(std::uint32_t{});
  tail(std::uint16_t{});
  tail(std::uint8_t{});
}

/// Copies an object of up to inline_copy_limit bytes in the words of for_each_word().
VMSPACE_EXPORT void load_words(void* to, const std::byte* from, std::size_t bytes) noexcept;
VMSPACE_EXPORT void store_words(std::byte* to, const void* from, std::size_t bytes) noexcept;

// Out of line, and by value, so that the object of the common case stays in registers.
template <typename T>
[[gnu::noinline]] T load_by_address(const std::byte* from) noexcept {
  T value;
  load_words(std::addressof(value), from, sizeof value);
  return value;
}
template <typename T>
[[gnu::noinline]] void store_by_address(std::byte* to, T value) noexcept {
  store_words(to, std::addressof(value), sizeof value);
}

/// An object of the size of a word is one access wherever it lies: the machines that we run on divide
/// one that is not aligned at multiples of 8 bytes, so in no integer that is aligned.
template <typename T>
concept OneWord = sizeof(T) <= sizeof(std::uint64_t) && std::has_single_bit(sizeof(T));

/// Whether a larger object's words may be split by offset, which is known when it is compiled,
/// instead of by address.
[[gnu::always_inline]] inline bool is_word_aligned(const std::byte* at) noexcept {
  return reinterpret_cast<std::uintptr_t>(at) % sizeof(std::uint64_t) == 0;
}

/// An object of T's bytes, read once, and every aligned integer in it in one access.
template <typename T>
requires(std::is_trivially_copyable_v<T> && sizeof(T) <= inline_copy_limit)
    [[gnu::always_inline]] inline void load_once(T& to, const std::byte* from) noexcept {
  if constexpr (!OneWord<T>) {
    if (!is_word_aligned(from)) [[unlikely]] {
      to = load_by_address<T>(from);
      return;
    }
  }
  auto* out = reinterpret_cast<unsigned char*>(std::addressof(to));
  std::size_t at = 0;
  const auto words = [&]<typename Word>(Word) {
    for (; sizeof(T) - at >= sizeof(Word); at += sizeof(Word)) {
      const Word word = load_word<Word>(from + at);
      std::memcpy(out + at, &word, sizeof word);
    }
  };
  words(std::uint64_t{});
  words(std::uint32_t{});
  words(std::uint16_t{});
  words(std::uint8_t{});
}

/// An object of T's bytes, each written once, and every aligned integer in it in one access.
template <typename T>
requires(std::is_trivially_copyable_v<T> && sizeof(T) <= inline_copy_limit)
    [[gnu::always_inline]] inline void store_once(std::byte* to, const T& from) noexcept {
  if constexpr (!OneWord<T>) {
    if (!is_word_aligned(to)) [[unlikely]]
      return store_by_address<T>(to, from);
  }
  const auto* in = reinterpret_cast<const unsigned char*>(std::addressof(from));
  std::size_t at = 0;
  const auto words = [&]<typename Word>(Word) {
    for (; sizeof(T) - at >= sizeof(Word); at += sizeof(Word)) {
      Word word;
      std::memcpy(&word, in + at, sizeof word);
      store_word<Word>(to + at, word);
    }
  };
  words(std::uint64_t{});
  words(std::uint32_t{});
  words(std::uint16_t{});
  words(std::uint8_t{});
}

}  // namespace vmspace::detail
