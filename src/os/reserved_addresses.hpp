// SPDX-License-Identifier: Apache-2.0
//
// Host addresses that are reserved without memory behind them.

#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

/// Up to this limit, sums of a size, an alignment and guard pages fit in 64 bits. The kernel's own
/// limit is lower.
inline constexpr std::uint64_t size_limit = std::uint64_t{1} << 62;

/// `limit_exceeded` for a size or an alignment that no address space has room for.
[[nodiscard]] inline Result<void> check_reservation(const char* operation, std::uint64_t size,
                                                    std::uint64_t align) {
  constexpr const char* rule = "size and align must be at most 2^62";
  VMSPACE_TRY(require_at_most(operation, size, size_limit, rule));
  return require_at_most(operation, align, size_limit, rule);
}

/// Reserves addresses, inaccessible and costing no memory: mmap(2) with these flags added, and its
/// result.
inline void* reserve_addresses(void* address, std::uint64_t size, int flags) {
  return kernel().mmap(address, size, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

}  // namespace vmspace::detail
