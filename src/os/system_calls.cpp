// SPDX-License-Identifier: Apache-2.0

#include "os/system_calls.hpp"

#include <linux/membarrier.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vmspace::detail {

// Lambdas where the C library's function is variadic or missing (membarrier, and the calls for
// NUMA, which are in libnuma), for mlock, which the sanitizers replace with a stub, and for CPU masks
// of any size (sched_getaffinity(2) gives how many bytes the kernel's mask has).
constinit const SystemCalls real_system_calls{
    .mmap = ::mmap,
    .munmap = ::munmap,
    .mremap = [](void* from, std::size_t size, std::size_t new_size, int flags,
                 void* to) { return ::mremap(from, size, new_size, flags, to); },
    .mprotect = ::mprotect,
    .madvise = ::madvise,
    .msync = ::msync,
    .mlock = [](const void* address,
                std::size_t size) { return static_cast<int>(::syscall(SYS_mlock, address, size)); },
    .munlock =
        [](const void* address, std::size_t size) {
          return static_cast<int>(::syscall(SYS_munlock, address, size));
        },
    .mincore = ::mincore,
    .mbind =
        [](void* address, unsigned long size, int mode, const unsigned long* nodes,
           unsigned long node_bits, unsigned flags) {
          return static_cast<int>(
              ::syscall(SYS_mbind, address, size, mode, nodes, node_bits, flags));
        },
    .get_mempolicy =
        [](int* mode, unsigned long* nodes, unsigned long node_bits, void* address,
           unsigned long flags) {
          return static_cast<int>(
              ::syscall(SYS_get_mempolicy, mode, nodes, node_bits, address, flags));
        },
    .prctl = [](int option, unsigned long a, unsigned long b, unsigned long c,
                unsigned long d) { return ::prctl(option, a, b, c, d); },
    .sched_getaffinity =
        [](pid_t thread, std::size_t size, unsigned long* cpus) {
          return static_cast<int>(::syscall(SYS_sched_getaffinity, thread, size, cpus));
        },
    .sched_setaffinity =
        [](pid_t thread, std::size_t size, const unsigned long* cpus) {
          return static_cast<int>(::syscall(SYS_sched_setaffinity, thread, size, cpus));
        },
    .memfd_create = ::memfd_create,
    .open = [](const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); },
    .getentropy = ::getentropy,
    .unlink = ::unlink,
    .close = ::close,
    .fcntl = [](int fd, int command, int argument) { return ::fcntl(fd, command, argument); },
    .fstat = ::fstat,
    .fstatfs = ::fstatfs,
    .ftruncate = ::ftruncate,
    .fallocate = ::fallocate,
    .lseek = ::lseek,
    .read = ::read,
    .write = ::write,
    .pread = ::pread,
    .pwrite = ::pwrite,
    .preadv2 = ::preadv2,
    .pwritev2 = ::pwritev2,
    .userfaultfd = [](int flags) { return static_cast<int>(::syscall(SYS_userfaultfd, flags)); },
    .eventfd = ::eventfd,
    .membarrier =
        [](int command, unsigned flags) {
          // A process registers once, and its children have it with its memory.
          static std::atomic<bool> is_registered{false};
          const bool registers = command == MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
          if (registers && is_registered.load(std::memory_order_relaxed)) return 0;
          const auto result = static_cast<int>(::syscall(SYS_membarrier, command, flags, 0));
          if (registers && result == 0) is_registered.store(true, std::memory_order_relaxed);
          return result;
        },
    .ioctl = [](int fd, unsigned long request,
                void* argument) { return ::ioctl(fd, request, argument); },
    .sendmsg = ::sendmsg,
    .recvmsg = ::recvmsg,
    .poll = ::poll,
    .shutdown = ::shutdown,
    .sysinfo = ::sysinfo,
    .sigaction = ::sigaction,
    .pthread_create = ::pthread_create,
};

constinit std::atomic<const SystemCalls*> current_system_calls{&real_system_calls};

}  // namespace vmspace::detail
