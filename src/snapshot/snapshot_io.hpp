// SPDX-License-Identifier: Apache-2.0
//
// What writing and reading snapshots have in common.

#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// How much one system call moves at most: enough for its cost not to matter, little enough for a
/// progress bar.
inline constexpr std::uint64_t snapshot_chunk = std::uint64_t{8} << 20;

/// The status of a regular file (fstat(2)); `invalid_argument` for anything else.
[[nodiscard]] Result<struct stat> check_snapshot_file(const char* operation, int fd);

/// Whether a file is a pipe or a socket.
[[nodiscard]] inline bool is_stream(const struct stat& file) noexcept {
  return S_ISFIFO(file.st_mode) || S_ISSOCK(file.st_mode);
}

/// Reads all of `size` bytes; `corrupt` where the file is shorter.
[[nodiscard]] Result<void> read_all(const char* operation, int fd, std::byte* to,
                                    std::uint64_t size, std::uint64_t offset);
/// Writes all of the bytes.
[[nodiscard]] Result<void> write_all(const char* operation, int fd,
                                     std::span<const std::byte> bytes, std::uint64_t offset);

/// Reads exactly so many bytes from where a descriptor stands, and waits for them where it does not
/// block; `corrupt` where it ends before.
[[nodiscard]] Result<void> receive_all(const char* operation, int fd, std::span<std::byte> to);
/// Writes all of the bytes to where a descriptor stands, and waits until there is space. A socket whose
/// peer is gone gives EPIPE without a SIGPIPE.
[[nodiscard]] Result<void> send_all(const char* operation, int fd, bool is_socket,
                                    std::span<const std::byte> bytes);

/// Reports progress at most once a chunk, however small the steps are.
class Progress {
 public:
  using Report = std::function<void(std::uint64_t done, std::uint64_t total)>;

  Progress(const Report& report, std::uint64_t total) : report_(report), total_(total) {}
  void done(std::uint64_t bytes) {
    done_ += bytes;
    if (!report_ || (done_ - reported_ < snapshot_chunk && done_ != total_)) return;
    reported_ = done_;
    report_(done_, total_);
  }

 private:
  const Report& report_;
  std::uint64_t done_ = 0;
  std::uint64_t reported_ = 0;
  std::uint64_t total_;
};

}  // namespace vmspace::detail
