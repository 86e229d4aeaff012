// SPDX-License-Identifier: Apache-2.0
//
// What a VMM needs to know of the host before it plans a guest.

#pragma once

#include <cstdint>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// The host's memory in bytes, without what the kernel reserves for itself (sysinfo(2): totalram).
/// Errors: `os` where a seccomp filter forbids the call. One system call.
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> host_memory_size();

}  // namespace vmspace
