// SPDX-License-Identifier: Apache-2.0
//
// Memory that is a part of a file at two guest addresses.

#pragma once

#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace::detail {

/// Refuses regions that share a part of a file, through whatever descriptors, if the guest may write one
/// of them: the kernel tells of accesses by address, so that of a write by one address nothing is known
/// by the other. Firmware may be seen at two. Errors: `overlap`, naming both; `os`. O(n log n) and the
/// pairs that are only read, and a system call for each region of shared memory.
[[nodiscard]] Result<void> refuse_file_aliases(const char* operation, const GuestMemory& memory);

}  // namespace vmspace::detail
