// SPDX-License-Identifier: Apache-2.0
//
// The one place where the library enters the kernel.
//
// Every system call is a member of a table, and the sources call `kernel().mmap(...)`. A test
// installs a table of its own to make any call fail with any errno. A new call is one member here
// and one initialiser in system_calls.cpp. Signatures are those of the man pages; a variadic call
// has the fixed form in which it is used.

#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

struct SystemCalls {
  void* (*mmap)(void* address, std::size_t size, int protection, int flags, int fd, off_t offset);
  int (*munmap)(void* address, std::size_t size);
  void* (*mremap)(void* from, std::size_t size, std::size_t new_size, int flags, void* to);
  int (*mprotect)(void* address, std::size_t size, int protection);
  int (*madvise)(void* address, std::size_t size, int advice);
  int (*msync)(void* address, std::size_t size, int flags);
  int (*mlock)(const void* address, std::size_t size);
  int (*munlock)(const void* address, std::size_t size);
  int (*mincore)(void* address, std::size_t size, unsigned char* pages);
  int (*mbind)(void* address, unsigned long size, int mode, const unsigned long* nodes,
               unsigned long node_bits, unsigned flags);
  int (*get_mempolicy)(int* mode, unsigned long* nodes, unsigned long node_bits, void* address,
                       unsigned long flags);

  int (*prctl)(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
  int (*sched_getaffinity)(pid_t thread, std::size_t size, unsigned long* cpus);
  int (*sched_setaffinity)(pid_t thread, std::size_t size, const unsigned long* cpus);

  int (*memfd_create)(const char* name, unsigned flags);
  int (*open)(const char* path, int flags, mode_t mode);
  int (*getentropy)(void* buffer, std::size_t size);
  int (*unlink)(const char* path);
  int (*close)(int fd);
  int (*fcntl)(int fd, int command, int argument);
  int (*fstat)(int fd, struct stat* out);
  int (*fstatfs)(int fd, struct statfs* out);
  int (*ftruncate)(int fd, off_t size);
  int (*fallocate)(int fd, int mode, off_t offset, off_t size);
  off_t (*lseek)(int fd, off_t offset, int whence);
  ssize_t (*read)(int fd, void* buffer, std::size_t size);
  ssize_t (*write)(int fd, const void* buffer, std::size_t size);
  ssize_t (*pread)(int fd, void* buffer, std::size_t size, off_t offset);
  ssize_t (*pwrite)(int fd, const void* buffer, std::size_t size, off_t offset);
  ssize_t (*preadv2)(int fd, const struct iovec* pieces, int count, off_t offset, int flags);
  ssize_t (*pwritev2)(int fd, const struct iovec* pieces, int count, off_t offset, int flags);
  int (*userfaultfd)(int flags);
  int (*eventfd)(unsigned count, int flags);
  int (*membarrier)(int command, unsigned flags);
  int (*ioctl)(int fd, unsigned long request, void* argument);
  ssize_t (*sendmsg)(int fd, const struct msghdr* message, int flags);
  ssize_t (*recvmsg)(int fd, struct msghdr* message, int flags);
  int (*poll)(struct pollfd* fds, nfds_t count, int timeout);
  int (*shutdown)(int fd, int how);
  int (*sysinfo)(struct sysinfo* out);
  int (*sigaction)(int signal, const struct sigaction* action, struct sigaction* before);

  /// Returns the error instead of setting errno, as its man page says.
  int (*pthread_create)(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*),
                        void* argument);
};

/// The calls themselves.
extern const SystemCalls real_system_calls;

/// What kernel() returns; tests store a table of their own, which outlives its use. Never null.
extern std::atomic<const SystemCalls*> current_system_calls;

inline const SystemCalls& kernel() noexcept {
  return *current_system_calls.load(std::memory_order_acquire);
}

/// Repeats a call for as long as signals interrupt it. Not for close(2): Linux closes the
/// descriptor even then.
template <typename Call>
auto retry(Call call) {
  for (;;) {
    const auto result = call();
    if (result != -1 || errno != EINTR) return result;
  }
}

/// Whether the kernel knows an advice of madvise(2): it looks at that before it finds nothing to do.
inline bool kernel_knows_advice(int advice) {
  return retry([&] { return kernel().madvise(nullptr, 0, advice); }) == 0;
}

/// The error of a system call that has just failed. `reason` is a literal: the name of the call, or
/// what the errno means here. ENOSYS becomes `unsupported`.
[[nodiscard]] inline tl::unexpected<Error> fail_os(const char* operation, Operand first,
                                                   const char* reason, int error = errno) {
  return fail({.code = error == ENOSYS ? Errc::unsupported : Errc::os,
               .operation = operation,
               .first = first,
               .reason = reason,
               .os_errno = error});
}

}  // namespace vmspace::detail
