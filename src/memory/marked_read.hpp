// SPDX-License-Identifier: Apache-2.0
//
// Reading from a descriptor into tracked memory.
//
// What read(2) gives is how much of the data is good, not how much of the memory it has written.
// Direct I/O brings whole blocks from the disk, also where the file ends within one; and it can fail
// after a part (on ext4, a read that begins in a hole and ends within a block writes the zeros of
// the hole and then fails with EINVAL). Nor is O_DIRECT the only way: 9p and network file systems
// let the server fill the caller's pages. So a read that gave data, and one that failed, may have
// written all that was asked for, unless it is known that it came to an end before any data. A guest
// whose device polls an empty descriptor would otherwise have a dirty buffer for ever.

#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "vmspace/memory/dirty_bitmap.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

/// Whether a failed read(2) has written nothing. EAGAIN and EINTR mean that there was no data to
/// give; EBADF and EISDIR are found before the file is asked for any.
constexpr bool is_before_data(int error) noexcept {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == EBADF ||
         error == EISDIR;
}

/// What one read(2) asks for where all of a range is to be filled in the end. Each marks all that it
/// asked for, and a stream of small pieces should not mark the rest of a long range with every one.
constexpr std::uint64_t read_chunk = std::uint64_t{1} << 20;

/// A part of a region, to be filled.
struct ReadTarget {
  std::byte* host;
  std::uint64_t size;
  DirtyBitmap& dirty;
  std::uint64_t offset;  ///< of `host` in the region
};

struct ReadOutcome {
  std::uint64_t bytes;  ///< that are good; fewer than asked for: the end of the file, or an error
  int error;            ///< 0, or the errno of the last read(2)
};

/// Where to read, and what to do about signals: as in GuestIoOptions.
struct ReadPlace {
  std::int64_t offset = -1;  ///< in the file; -1: at the descriptor's own position
  bool cancellable = false;
};

/// A system call, repeated when a signal interrupts it unless the transfer is to end then.
template <typename Call>
auto retry_unless(bool cancellable, Call call) {
  return cancellable ? call() : retry(call);
}

/// Reads until the target is full, the file has ended, or a system call fails; marks what the kernel
/// may have written.
inline ReadOutcome marked_read(int fd, const ReadTarget& target,
                               const ReadPlace& place = {}) noexcept {
  std::uint64_t done = 0;
  while (done < target.size) {
    const std::uint64_t asked = std::min(read_chunk, target.size - done);
    const ssize_t count = retry_unless(place.cancellable, [&]() -> ssize_t {
      if (place.offset < 0) return kernel().read(fd, target.host + done, asked);
      const iovec buffer{.iov_base = target.host + done, .iov_len = asked};
      return kernel().preadv2(fd, &buffer, 1, place.offset + static_cast<std::int64_t>(done), 0);
    });
    const int error = count < 0 ? errno : 0;
    // 0 is the end of the file, which Linux looks for before it transfers anything.
    if (count > 0 || (count < 0 && !is_before_data(error))) {
      target.dirty.mark(target.offset + done, asked);
    }
    if (count <= 0) return {done, error};
    done += static_cast<std::uint64_t>(count);
  }
  return {done, 0};
}

}  // namespace vmspace::detail
