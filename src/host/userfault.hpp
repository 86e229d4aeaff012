// SPDX-License-Identifier: Apache-2.0
//
// userfaultfd(2): page faults that this process resolves itself.
//
// One class for its descriptor, one member for each of its ioctls (ioctl_userfaultfd(2)), and the
// constants that the kernel's headers of older distributions lack. What the calls mean for memory is
// for their users to say.

#pragma once

// It uses _IOR and its like without including what has them.
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>

#include "vmspace/base/result.hpp"

#include "os/descriptor.hpp"

namespace vmspace::detail {

/// UFFD_FEATURE_*: what must be asked for when it is opened.
namespace userfault_feature {
inline constexpr std::uint64_t missing_hugetlb = 1 << 4;
inline constexpr std::uint64_t missing_shmem = 1 << 5;
inline constexpr std::uint64_t thread_id = 1 << 8;
inline constexpr std::uint64_t minor_hugetlb = 1 << 9;   ///< Linux 5.13
inline constexpr std::uint64_t minor_shmem = 1 << 10;    ///< Linux 5.14
inline constexpr std::uint64_t exact_address = 1 << 11;  ///< Linux 5.18
/// Write-protection of hugetlb and shared memory; Linux 5.19.
inline constexpr std::uint64_t write_protect_files = 1 << 12;
/// Absent pages of anonymous memory are write-protected too; Linux 6.4.
inline constexpr std::uint64_t write_protect_absent = 1 << 13;
inline constexpr std::uint64_t poison = 1 << 14;  ///< Linux 6.6
/// The kernel itself resolves faults of write-protected pages; Linux 6.7.
inline constexpr std::uint64_t write_protect_async = 1 << 15;
inline constexpr std::uint64_t write_protect = 1 << 0;  ///< Linux 5.7
}  // namespace userfault_feature

/// What a range is registered for; UFFDIO_REGISTER_MODE_*.
enum class FaultModes : std::uint64_t {
  missing = 1 << 0,        ///< there is no page
  write_protect = 1 << 1,  ///< there is one that may not be written
  minor = 1 << 2,          ///< there is one in the file, and it is not mapped here
};
constexpr FaultModes operator|(FaultModes a, FaultModes b) noexcept {
  return static_cast<FaultModes>(static_cast<std::uint64_t>(a) | static_cast<std::uint64_t>(b));
}

/// A userfaultfd, open for the faults of kernel code too (KVM's among them); does not block.
///
/// Threads: all calls may be made at the same time.
class Userfault {
 public:
  /// Has none.
  Userfault() noexcept = default;

  /// Which of the features the kernel has. Errors: those of open(). A few system calls.
  [[nodiscard]] static Result<std::uint64_t> available(const char* operation);
  /// Opens one with these features, by /dev/userfaultfd or else by the system call. Errors:
  /// `unsupported` for a kernel without userfaultfd, or without one of the features, which the error
  /// names; `access_denied` where this process may not, with what would allow it; `os`. A few
  /// system calls.
  [[nodiscard]] static Result<Userfault> open(const char* operation, std::uint64_t features);

  [[nodiscard]] bool is_open() const noexcept { return fd_.value() >= 0; }
  /// For poll(2).
  [[nodiscard]] int fd() const noexcept { return fd_.value(); }
  /// The next fault or event; false when there is none. Errors: `os`.
  [[nodiscard]] Result<bool> next(const char* operation, uffd_msg& message) const;

  /// Registers whole pages (UFFDIO_REGISTER). Errors: `bad_state` for a range that another userfaultfd
  /// has; `unsupported` for memory of a kind that the kernel can't do this for; `os`.
  [[nodiscard]] Result<void> add(const char* operation, std::byte* begin, std::uint64_t size,
                                 FaultModes modes) const;
  /// Undoes add(), and wakes all that wait there (UFFDIO_UNREGISTER). Errors: `os`.
  [[nodiscard]] Result<void> remove(const char* operation, std::byte* begin,
                                    std::uint64_t size) const;

  /// What a call on pages has come to: how many bytes from the beginning are done, and why not all of
  /// them (an errno), or 0. It may be EEXIST for a page that is there, ENOENT and ESRCH for memory
  /// that has been unmapped, EAGAIN where mappings change at the moment, ENOMEM or ENOSPC without
  /// free pages, EFAULT for UFFDIO_CONTINUE of a page that the file lacks.
  struct Done {
    std::uint64_t bytes;
    int error;
  };
  /// Puts copies of these bytes in place of missing pages (UFFDIO_COPY), write-protected if asked, and
  /// wakes who waits for them unless `wake` is false.
  [[nodiscard]] Done copy(std::byte* to, const std::byte* from, std::uint64_t size,
                          bool wake = true, bool protect = false) const noexcept;
  /// Puts zeros in place of missing pages (UFFDIO_ZEROPAGE); not of hugetlb memory.
  [[nodiscard]] Done zero(std::byte* to, std::uint64_t size, bool wake = true) const noexcept;
  /// Maps pages that are in the file (UFFDIO_CONTINUE), write-protected if asked.
  [[nodiscard]] Done map_minor(std::byte* to, std::uint64_t size, bool wake = true,
                               bool protect = false) const noexcept;
  /// Makes accesses to missing pages raise SIGBUS (UFFDIO_POISON). An absent page that is
  /// write-protected is in the way (EEXIST).
  [[nodiscard]] Done poison(std::byte* to, std::uint64_t size) const noexcept;
  /// Write-protects the pages that are there, or ends that and wakes writers (UFFDIO_WRITEPROTECT).
  /// Gives an errno, or 0.
  [[nodiscard]] int protect(std::byte* begin, std::uint64_t size, bool on) const noexcept;
  /// Lets all who wait there try again (UFFDIO_WAKE). Gives an errno, or 0.
  int wake(std::byte* begin, std::uint64_t size) const noexcept;

 private:
  explicit Userfault(Descriptor fd) noexcept : fd_(std::move(fd)) {}

  Descriptor fd_;
};

}  // namespace vmspace::detail
