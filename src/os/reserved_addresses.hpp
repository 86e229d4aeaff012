// SPDX-License-Identifier: Apache-2.0
//
// Host addresses that are taken and lead to no memory.

#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

/// Below it no sum of a size, an alignment and guard pages passes 64 bits. The kernel's limit is
/// lower.
inline constexpr std::uint64_t size_limit = std::uint64_t{1} << 62;

/// `limit_exceeded` for a size or an alignment that no address space has room for.
[[nodiscard]] inline Result<void> check_reservation(const char* operation, std::uint64_t size,
                                                    std::uint64_t align) {
  constexpr const char* rule = "larger than any address space";
  VMSPACE_TRY(require_at_most(operation, size, size_limit, rule));
  return require_at_most(operation, align, size_limit, rule);
}

/// Takes addresses that nobody may access and that cost no memory: mmap(2) with these flags added,
/// and what it returns.
inline void* reserve_addresses(void* address, std::uint64_t size, int flags) {
  return kernel().mmap(address, size, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

}  // namespace vmspace::detail
