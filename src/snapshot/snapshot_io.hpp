// SPDX-License-Identifier: Apache-2.0
//
// What saving and restoring have in common.

#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>

#include "vmspace/base/result.hpp"
#include "vmspace/snapshot/snapshot.hpp"

namespace vmspace::detail {

/// How much one system call moves at most: enough for its cost not to matter, little enough for a
/// progress bar.
inline constexpr std::uint64_t snapshot_chunk = std::uint64_t{8} << 20;

/// The status of a regular file (fstat(2)); `invalid_argument` for anything else.
[[nodiscard]] Result<struct stat> check_snapshot_file(const char* operation, int fd);

/// Reads all of `size` bytes; `corrupt` where the file is shorter.
[[nodiscard]] Result<void> read_all(const char* operation, int fd, std::byte* to,
                                    std::uint64_t size, std::uint64_t offset);

/// Reports progress at most once a chunk, however small the steps are.
class Progress {
 public:
  Progress(const SnapshotProgress& report, std::uint64_t total) : report_(report), total_(total) {}
  void done(std::uint64_t bytes) {
    done_ += bytes;
    if (!report_ || (done_ - reported_ < snapshot_chunk && done_ != total_)) return;
    reported_ = done_;
    report_(done_, total_);
  }

 private:
  const SnapshotProgress& report_;
  std::uint64_t done_ = 0;
  std::uint64_t reported_ = 0;
  std::uint64_t total_;
};

}  // namespace vmspace::detail
