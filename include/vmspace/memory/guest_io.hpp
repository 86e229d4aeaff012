// SPDX-License-Identifier: Apache-2.0
//
// Guest memory to and from file descriptors, without a copy in between: kernels, initrds and disk
// images into the guest, what it has written out of it.
//
// Several buffers at once are a GuestReader or GuestWriter (guest_cursor.hpp); other system calls take
// the iovecs of guest_view.hpp.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// How a transfer between guest memory and a file is made; an aggregate for designated initialisers.
struct GuestIoOptions {
  /// Where in the file, whose own position then stays as it is (pread, pwrite); nothing: at that
  /// position.
  std::optional<std::uint64_t> offset = {};
  /// Whether fewer bytes than the range has are an error. Its second operand is how many there were;
  /// at the end of a file it is `os` with EIO.
  bool exact = false;
  /// Whether a signal that interrupts a system call ends the transfer, as a failure with EINTR.
  /// Otherwise interrupted calls are repeated.
  bool cancellable = false;
};

/// Reads from a descriptor into the guest, until the range is full or the file ends; gives the number
/// of bytes. A failure after some bytes gives their number, unless the transfer is exact; the next
/// call gives the error. Errors: those of every access; `os`; `overflow` when offset + bytes passes
/// 2^63. Any thread may call it. O(bytes).
///
/// What the kernel may have written beyond those bytes, up to all that it was asked for, is
/// undefined and marked dirty: direct I/O writes whole blocks. Nothing is marked at the end of the
/// file, nor by a read that had no data to give (EAGAIN, EINTR) or was refused at once (EBADF, EISDIR).
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> read_into_guest(
    int fd, const GuestMemory& memory, GuestRange range, const GuestIoOptions& options = {});

/// Writes the range to a descriptor, in as many system calls as it takes; gives the number of bytes.
/// Failures, errors, cost and threads: as read_into_guest().
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> write_from_guest(
    int fd, const GuestMemory& memory, GuestRange range, const GuestIoOptions& options = {});

/// Gives bytes, such as those of a decompressor: puts some into the span, which is not empty, and says
/// how many; 0 at the end. The span is guest memory, which the guest may change meanwhile: a source
/// must not rely on what it has put there.
using GuestSource = std::function<Result<std::size_t>(std::span<std::byte> to)>;
/// Takes bytes, at least one of a span that is not empty, and says how many; 0 when it takes no more.
/// The guest may change them meanwhile.
using GuestSink = std::function<Result<std::size_t>(std::span<const std::byte> from)>;

/// Reads from a source into the guest, until the range is full or the source ends; gives the number of
/// bytes. All that the source was given is marked dirty. Errors: `invalid_argument` for an empty source;
/// those of every access; the source's own; `out_of_bounds` when it says that it gave more than it could.
/// What came before an error stays.
/// O(bytes).
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> read_into_guest(const GuestSource& source,
                                                                   const GuestMemory& memory,
                                                                   GuestRange range);
/// Hands the range to a sink, until it takes no more; gives the number of bytes. Errors: as for a
/// source. O(bytes).
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> write_from_guest(const GuestSink& sink,
                                                                    const GuestMemory& memory,
                                                                    GuestRange range);

}  // namespace vmspace
