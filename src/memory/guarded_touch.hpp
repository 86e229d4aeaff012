// SPDX-License-Identifier: Apache-2.0
//
// Touching regions that may fault; see vmspace/host/fault_guard.hpp.

#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "vmspace/memory/memory_region.hpp"

#include "host/guarded_access.hpp"

namespace vmspace::detail {

/// Pages are multiples of this size.
inline constexpr std::uint64_t guarded_page = 4096;

/// The error of an access to `range` that has found the page of `at` gone.
[[nodiscard]] inline Error fault_error(const char* operation, GuestRange range, GuestAddress at) {
  return {
      .code = Errc::fault,
      .operation = operation,
      .first = operand(range),
      .second = Operand::address(at.value()),
      .reason = "the page behind this address is gone: its file was truncated, or a hole punched"};
}

/// How much of memory from `begin` lies below the page that was gone at `fault`. An access that copies
/// a page need not begin with its first byte.
[[nodiscard]] inline std::uint64_t bytes_before(const std::byte* fault,
                                                const std::byte* begin) noexcept {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  return std::max(reinterpret_cast<std::uintptr_t>(fault) / guarded_page * guarded_page, first) -
         first;
}

/// Calls `use(offset, size)`, which touches [begin + offset, begin + offset + size), for the parts of
/// memory that may fault, from the lowest to the highest, each within one page. So what was written
/// before a fault is all that lies below its page. Gives how many bytes that are; `size` without one.
template <typename Use>
[[nodiscard]] std::uint64_t touch_guarded(std::byte* begin, std::uint64_t size, Use use) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const std::byte* const fault = run_guarded(begin, size, [&] {
    for (std::uint64_t done = 0; done < size;) {
      const std::uint64_t part =
          std::min(size - done, guarded_page - (first + done) % guarded_page);
      use(done, part);
      done += part;
    }
  });
  return fault == nullptr ? size : bytes_before(fault, begin);
}

/// Calls `use()`, which touches so much of a region. Errors: `fault`.
template <typename Use>
[[nodiscard]] Result<void> touch_region(const char* operation, const MemoryRegion& region,
                                        std::uint64_t offset, std::uint64_t size, Use use) {
  if (!region.may_fault()) {
    use();
    return {};
  }
  std::byte* const begin = region.host_base() + offset;
  const std::byte* const fault = run_guarded(begin, size, use);
  if (fault == nullptr) return {};
  const std::uint64_t base = region.base().value() + offset;
  return fail(fault_error(operation, {GuestAddress(base), size},
                          GuestAddress(base + bytes_before(fault, begin))));
}

/// Whether a system call that was given memory of the region has failed because a page is gone.
[[nodiscard]] inline bool is_fault(const MemoryRegion& region, int error) noexcept {
  return error == EFAULT && region.may_fault();
}

}  // namespace vmspace::detail
