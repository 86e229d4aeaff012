// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_io.hpp"

#include <cerrno>

#include "os/system_calls.hpp"

namespace vmspace::detail {

Result<struct stat> check_snapshot_file(const char* operation, int fd) {
  struct stat file {};
  if (kernel().fstat(fd, &file) != 0) return fail_os(operation, {}, "fstat");
  if (!S_ISREG(file.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the fd must refer to a regular file"});
  }
  return file;
}

Result<void> read_all(const char* operation, int fd, std::byte* to, std::uint64_t size,
                      std::uint64_t offset) {
  while (size != 0) {
    const auto count =
        retry([&] { return kernel().pread(fd, to, size, static_cast<off_t>(offset)); });
    if (count < 0) {
      return fail_os(
          operation, Operand::span(offset, size),
          errno == EFAULT
              ? "out of pages while reading: the hugetlb pool, file system or memory cgroup is full"
              : "pread");
    }
    if (count == 0) {
      return fail({.code = Errc::corrupt,
                   .operation = operation,
                   .first = Operand::span(offset, size),
                   .reason = "the file is truncated"});
    }
    to += count;
    size -= static_cast<std::uint64_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

}  // namespace vmspace::detail
