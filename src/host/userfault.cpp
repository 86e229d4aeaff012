// SPDX-License-Identifier: Apache-2.0

#include "host/userfault.hpp"

#include <array>
#include <cerrno>
#include <cstdint>

#include "vmspace/base/try.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

// linux/userfaultfd.h of Linux 6.1, 6.4 and 6.6.
constexpr unsigned long new_userfaultfd = _IO(UFFDIO, 0x00);
constexpr std::uint64_t continue_protected = 1 << 1;  // UFFDIO_CONTINUE_MODE_WP
struct PoisonArgument {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
constexpr unsigned long poison_pages = _IOWR(UFFDIO, 0x08, PoisonArgument);

struct FeatureName {
  std::uint64_t feature;
  const char* reason;
};
constexpr std::array feature_names{
    FeatureName{userfault_feature::write_protect,
                "userfaultfd of this kernel can't write-protect pages (Linux 5.7 and later can)"},
    FeatureName{userfault_feature::missing_hugetlb,
                "userfaultfd of this kernel can't resolve faults of hugetlb memory"},
    FeatureName{userfault_feature::missing_shmem,
                "userfaultfd of this kernel can't resolve faults of shared memory"},
    FeatureName{userfault_feature::minor_hugetlb,
                "userfaultfd of this kernel has no minor faults of hugetlb memory (Linux 5.13 and "
                "later has)"},
    FeatureName{userfault_feature::minor_shmem,
                "userfaultfd of this kernel has no minor faults of shared memory (Linux 5.14 and "
                "later has)"},
    FeatureName{userfault_feature::exact_address,
                "userfaultfd of this kernel does not give exact addresses (Linux 5.18 and later "
                "does)"},
    FeatureName{userfault_feature::write_protect_files,
                "userfaultfd of this kernel can't write-protect shared and hugetlb memory (Linux "
                "5.19 and later can)"},
    FeatureName{userfault_feature::write_protect_absent,
                "userfaultfd of this kernel can't write-protect absent pages (Linux 6.4 and later "
                "can)"},
    FeatureName{userfault_feature::poison,
                "userfaultfd of this kernel can't poison pages (Linux 6.6 and later can)"},
    FeatureName{userfault_feature::write_protect_async,
                "userfaultfd of this kernel can't track writes by itself (UFFD_FEATURE_WP_ASYNC, "
                "Linux 6.7 and later can)"},
};

/// A userfaultfd before its handshake. The device's permissions say who may use it; the system call,
/// which wants CAP_SYS_PTRACE or the sysctl, is there since Linux 4.3, the device since 6.1.
Result<Descriptor> open_descriptor(const char* operation) {
  constexpr int flags = O_CLOEXEC | O_NONBLOCK;
  const Descriptor device(
      retry([] { return kernel().open("/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0); }));
  if (device.value() >= 0) {
    Descriptor made(retry([&] {
      return kernel().ioctl(device.value(), new_userfaultfd, reinterpret_cast<void*>(flags));
    }));
    if (made.value() >= 0) return made;
  }
  Descriptor made(retry([] { return kernel().userfaultfd(flags); }));
  if (made.value() >= 0) return made;
  if (errno == ENOSYS) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .reason = "this kernel has no userfaultfd",
                 .os_errno = errno});
  }
  if (errno == EPERM) {
    return fail({.code = Errc::access_denied,
                 .operation = operation,
                 .reason =
                     "userfaultfd needs access to /dev/userfaultfd, or CAP_SYS_PTRACE, or "
                     "sysctl vm.unprivileged_userfaultfd=1: KVM's faults come from the kernel",
                 .os_errno = errno});
  }
  return fail_os(operation, {}, "userfaultfd");
}

/// UFFDIO_API, which can be done once; gives all features that the kernel has.
Result<std::uint64_t> shake_hands(const char* operation, const Descriptor& fd,
                                  std::uint64_t features) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (retry([&] { return kernel().ioctl(fd.value(), UFFDIO_API, &api); }) != 0) {
    return fail_os(operation, {}, "ioctl(UFFDIO_API)");
  }
  return api.features;
}

/// Makes a call whose argument tells in `done` how far it came: above 0 before an error, which then is
/// EAGAIN, or less, and the error negated.
template <typename Argument, typename Count>
Userfault::Done call(int fd, unsigned long request, Argument& argument,
                     Count Argument::*done) noexcept {
  const int failed = retry([&] { return kernel().ioctl(fd, request, &argument); });
  const int error = failed == 0 ? 0 : errno;
  return {argument.*done > 0 ? static_cast<std::uint64_t>(argument.*done) : 0, error};
}

uffdio_range range_of(const std::byte* begin, std::uint64_t size) noexcept {
  return {.start = reinterpret_cast<std::uintptr_t>(begin), .len = size};
}

}  // namespace

Result<std::uint64_t> Userfault::available(const char* operation) {
  const Descriptor fd = VMSPACE_TRY(open_descriptor(operation));
  return shake_hands(operation, fd, 0);
}

Result<Userfault> Userfault::open(const char* operation, std::uint64_t features) {
  // With a feature that it lacks, the kernel says EINVAL, and not which one it is.
  const std::uint64_t present = VMSPACE_TRY(available(operation));
  const std::uint64_t lacking = features & ~present;
  for (const FeatureName& known : feature_names) {
    if ((lacking & known.feature) != 0) {
      return fail({.code = Errc::unsupported, .operation = operation, .reason = known.reason});
    }
  }
  Descriptor fd = VMSPACE_TRY(open_descriptor(operation));
  VMSPACE_TRY(shake_hands(operation, fd, features));
  return Userfault(std::move(fd));
}

Result<bool> Userfault::next(const char* operation, uffd_msg& message) const {
  const ssize_t got = retry([&] { return kernel().read(fd_.value(), &message, sizeof message); });
  if (got == static_cast<ssize_t>(sizeof message)) return true;
  if (got < 0 && errno == EAGAIN) return false;
  return fail_os(operation, {}, "read of a userfaultfd", got < 0 ? errno : EIO);
}

Result<void> Userfault::add(const char* operation, std::byte* begin, std::uint64_t size,
                            FaultModes modes) const {
  uffdio_register argument{};
  argument.range = range_of(begin, size);
  argument.mode = static_cast<std::uint64_t>(modes);
  if (retry([&] { return kernel().ioctl(fd_.value(), UFFDIO_REGISTER, &argument); }) == 0) {
    return {};
  }
  if (errno == EBUSY) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = Operand::size(size),
                 .reason = "another userfaultfd handles the faults of this memory",
                 .os_errno = EBUSY});
  }
  if (errno == EINVAL) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = Operand::size(size),
                 .reason = "userfaultfd of this kernel can't handle faults of memory of this kind",
                 .os_errno = EINVAL});
  }
  return fail_os(operation, Operand::size(size), "ioctl(UFFDIO_REGISTER)");
}

Result<void> Userfault::remove(const char* operation, std::byte* begin, std::uint64_t size) const {
  uffdio_range argument = range_of(begin, size);
  const bool done =
      retry([&] { return kernel().ioctl(fd_.value(), UFFDIO_UNREGISTER, &argument); }) == 0;
  const int error = errno;
  // The kernel wakes who waits before it lets go of the range, and only where that is registered for
  // missing pages: who comes in between would wait for ever.
  wake(begin, size);
  if (done) return {};
  return fail_os(operation, Operand::size(size), "ioctl(UFFDIO_UNREGISTER)", error);
}

Userfault::Done Userfault::copy(std::byte* to, const std::byte* from, std::uint64_t size, bool wake,
                                bool protect) const noexcept {
  uffdio_copy argument{};
  argument.dst = reinterpret_cast<std::uintptr_t>(to);
  argument.src = reinterpret_cast<std::uintptr_t>(from);
  argument.len = size;
  argument.mode = (wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE) | (protect ? UFFDIO_COPY_MODE_WP : 0);
  return call(fd_.value(), UFFDIO_COPY, argument, &uffdio_copy::copy);
}

Userfault::Done Userfault::zero(std::byte* to, std::uint64_t size, bool wake) const noexcept {
  uffdio_zeropage argument{};
  argument.range = range_of(to, size);
  argument.mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE;
  return call(fd_.value(), UFFDIO_ZEROPAGE, argument, &uffdio_zeropage::zeropage);
}

Userfault::Done Userfault::map_minor(std::byte* to, std::uint64_t size, bool wake,
                                     bool protect) const noexcept {
  uffdio_continue argument{};
  argument.range = range_of(to, size);
  argument.mode = (wake ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE) |
                  (protect ? continue_protected : std::uint64_t{0});
  return call(fd_.value(), UFFDIO_CONTINUE, argument, &uffdio_continue::mapped);
}

Userfault::Done Userfault::poison(std::byte* to, std::uint64_t size) const noexcept {
  PoisonArgument argument{.range = range_of(to, size), .mode = 0, .updated = 0};
  return call(fd_.value(), poison_pages, argument, &PoisonArgument::updated);
}

int Userfault::protect(std::byte* begin, std::uint64_t size, bool on) const noexcept {
  uffdio_writeprotect argument{};
  argument.range = range_of(begin, size);
  argument.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  const int failed =
      retry([&] { return kernel().ioctl(fd_.value(), UFFDIO_WRITEPROTECT, &argument); });
  return failed == 0 ? 0 : errno;
}

int Userfault::wake(std::byte* begin, std::uint64_t size) const noexcept {
  uffdio_range argument = range_of(begin, size);
  return retry([&] { return kernel().ioctl(fd_.value(), UFFDIO_WAKE, &argument); }) == 0 ? 0
                                                                                         : errno;
}

}  // namespace vmspace::detail
