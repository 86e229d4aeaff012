// SPDX-License-Identifier: Apache-2.0
//
// Guest memory to and from file descriptors, without a copy in between: kernels, initrds and disk
// images into the guest, what it has written out of it.
//
// Several buffers at once, or a call other than read(2) and write(2), take the iovecs of
// guest_view.hpp.

#pragma once

#include <cstdint>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Reads from a descriptor into the guest, with read(2), until the range is full or the file ends;
/// gives the number of bytes. A failure after some bytes gives their number; the next call gives
/// the error. Errors: those of every access; `os`. Any thread may call it. O(bytes).
///
/// What the kernel may have written beyond those bytes, up to all that it was asked for, is
/// undefined and marked dirty: direct I/O writes whole blocks. Nothing is marked at the end of the
/// file, nor by a read that had no data to give (EAGAIN) or was refused at once (EBADF, EISDIR).
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> read_into_guest(int fd,
                                                                   const GuestMemory& memory,
                                                                   GuestRange range);

/// Writes the range to a descriptor, in as many write(2) as it takes; gives the number of bytes. A
/// failure after some bytes gives their number. Errors: those of every access; `os`. Any thread may
/// call it. O(bytes).
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> write_from_guest(int fd,
                                                                    const GuestMemory& memory,
                                                                    GuestRange range);

}  // namespace vmspace
