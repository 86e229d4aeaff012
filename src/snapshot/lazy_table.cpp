// SPDX-License-Identifier: Apache-2.0

#include "snapshot/lazy_table.hpp"

#include <sys/mman.h>

#include "os/system_calls.hpp"

namespace vmspace::detail {

LazyTable::~LazyTable() {
  if (data_ != nullptr) kernel().munmap(data_, size_);
}

Result<void> LazyTable::map(const char* operation, std::uint64_t size) {
  void* const data = kernel().mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return fail_os(operation, Operand::size(size), "mmap");
  data_ = data;
  size_ = size;
  return {};
}

}  // namespace vmspace::detail
