// SPDX-License-Identifier: Apache-2.0
//
// What a VMM asks of the host before it plans a guest.

#pragma once

#include <cstdint>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// The host's memory in bytes, without what the kernel keeps for itself (sysinfo(2): totalram).
/// Errors: `os` where a filter forbids the call. A system call; not for hot paths.
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> host_memory_size();

}  // namespace vmspace
