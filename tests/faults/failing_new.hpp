// SPDX-License-Identifier: Apache-2.0
//
// Makes memory run out at will: replaces operator new of the program that includes it, in one file.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace vmspace::test {

/// How many more allocations this thread is granted; below 0, all.
inline thread_local int granted = -1;
/// How many this thread has asked for.
inline thread_local int asked = 0;
/// The bytes of the largest that it has asked for.
inline thread_local std::size_t largest = 0;

inline void* get_memory(std::size_t size, std::size_t align) {
  ++asked;
  largest = std::max(largest, size);
  if (granted == 0) throw std::bad_alloc();
  if (granted > 0) --granted;
  const std::size_t whole = (size + align) / align * align;  // never 0, as aligned_alloc wants it
  if (void* const memory = std::aligned_alloc(align, whole)) return memory;
  throw std::bad_alloc();
}

// Out of line, or g++ takes the pair of operator new and free() for a mistake.
[[gnu::noinline]] inline void put_memory(void* memory) noexcept {
  std::free(memory);
}

/// Calls `attempt` with no allocation granted, then with one, and so on, until it gets through;
/// after each failure calls `check`. Returns how often it failed.
template <typename Attempt, typename Check>
int fail_each_allocation(Attempt attempt, Check check) {
  for (int n = 0;; ++n) {
    granted = n;
    try {
      attempt();
      granted = -1;
      return n;
    } catch (const std::bad_alloc&) {
      granted = -1;
      check();
    }
  }
}

}  // namespace vmspace::test

void* operator new(std::size_t size) {
  return vmspace::test::get_memory(size, alignof(std::max_align_t));
}
// The C++ library's calls the one above, but AddressSanitizer's does not.
void* operator new[](std::size_t size) {
  return vmspace::test::get_memory(size, alignof(std::max_align_t));
}
void operator delete[](void* memory) noexcept {
  vmspace::test::put_memory(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  vmspace::test::put_memory(memory);
}
void* operator new(std::size_t size, std::align_val_t align) {
  return vmspace::test::get_memory(size, static_cast<std::size_t>(align));
}
// For the buffers of std::stable_sort and its like, which do without when there is none.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return vmspace::test::get_memory(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept {
  vmspace::test::put_memory(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  vmspace::test::put_memory(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  vmspace::test::put_memory(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  vmspace::test::put_memory(memory);
}
