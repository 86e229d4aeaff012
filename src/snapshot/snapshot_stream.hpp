// SPDX-License-Identifier: Apache-2.0
//
// Guest memory from a pipe or a socket.

#pragma once

#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot.hpp"

namespace vmspace::detail {

/// restore_snapshot() from a descriptor that can only be read from its beginning to its end. Takes
/// the bytes of the snapshot and no more.
[[nodiscard]] Result<void> restore_stream(const GuestMemory& memory, int fd,
                                          const SnapshotProgress& report);

}  // namespace vmspace::detail
