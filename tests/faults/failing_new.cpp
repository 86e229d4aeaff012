// SPDX-License-Identifier: Apache-2.0

#include "faults/failing_new.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace vmspace::test {
namespace {

void* get_memory(std::size_t size, std::size_t align) {
  ++asked;
  largest = std::max(largest, size);
  if (granted == 0) throw std::bad_alloc();
  if (granted > 0) --granted;
  const std::size_t whole = (size + align) / align * align;  // never 0, as aligned_alloc wants it
  if (void* const memory = std::aligned_alloc(align, whole)) return memory;
  throw std::bad_alloc();
}

// Out of line, or g++ takes the pair of operator new and free() for a mistake.
[[gnu::noinline]] void put_memory(void* memory) noexcept {
  std::free(memory);
}

}  // namespace
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
