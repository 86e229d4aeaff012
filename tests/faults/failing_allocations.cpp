// SPDX-License-Identifier: Apache-2.0

#include "faults/failing_allocations.hpp"

#include <cstddef>
#include <cstdlib>

namespace vmspace::test {

int allocations_until_failure = -1;

}  // namespace vmspace::test

namespace {

void* allocate_or_fail(std::size_t size, std::size_t align) {
  using vmspace::test::allocations_until_failure;
  if (allocations_until_failure >= 0 && allocations_until_failure-- == 0) throw std::bad_alloc();
  void* const memory = std::aligned_alloc(align, (size + align - 1) / align * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) {
  return allocate_or_fail(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t align) {
  return allocate_or_fail(size, static_cast<std::size_t>(align));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
