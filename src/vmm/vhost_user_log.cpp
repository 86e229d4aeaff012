// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_log.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/known_values.hpp"
#include "os/argument_checks.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;
using detail::retry;

struct VMSPACE_HIDDEN VhostUserLog::Mapping {
  void* address = MAP_FAILED;
  std::size_t size = 0;

  Mapping() noexcept = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (address != MAP_FAILED) kernel().munmap(address, size);
  }
};

Result<VhostUserLog> VhostUserLog::map(const VhostUserLogArea& area, Unsealed unsealed) {
  constexpr const char* operation = "VhostUserLog::map";
  const Operand which = Operand::span(area.offset, area.size);
  VMSPACE_TRY(detail::require_known(operation, unsealed, "not a value of Unsealed"));
  VMSPACE_TRY(detail::require_nonzero(operation, area.size, Operand::size(area.offset)));

  // The seals before the size: a file that was sealed then has not shrunk since.
  const int seals = retry([&] { return kernel().fcntl(area.fd, F_GET_SEALS, 0); });
  // EINVAL: a file that can't be sealed.
  if (seals < 0 && errno != EINVAL) return fail_os(operation, which, "fcntl(F_GET_SEALS)");
  struct statfs fs {};
  if (retry([&] { return kernel().fstatfs(area.fd, &fs); }) < 0) {
    return fail_os(operation, which, "fstatfs");
  }
  struct stat file {};
  if (retry([&] { return kernel().fstat(area.fd, &file); }) < 0) {
    return fail_os(operation, which, "fstat");
  }
  if (!S_ISREG(file.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = which,
                 .reason = "the log must be a regular file, such as a memfd"});
  }
  // Huge pages can be punched out of a file that is sealed against shrinking alone; and sealed
  // against writing as well, it would be no log.
  const bool huge = fs.f_type == HUGETLBFS_MAGIC;
  const bool keeps_pages = seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && !huge;
  if (unsealed != Unsealed::accept && !keeps_pages) {
    return fail({.code = Errc::access_denied,
                 .operation = operation,
                 .first = which,
                 .reason = "the file's owner could remove pages of it, which would raise SIGBUS "
                           "here: seal it with F_SEAL_SHRINK, or pass Unsealed::accept"});
  }
  const std::uint64_t page =
      huge ? static_cast<std::uint64_t>(fs.f_bsize) : detail::base_page_size();
  VMSPACE_TRY(detail::require_multiple(
      operation, Operand::size(area.offset), page,
      "the offset of the log must be a multiple of the page size of its file"));
  VMSPACE_TRY(detail::require_within(operation, area.offset, area.size,
                                     static_cast<std::uint64_t>(file.st_size),
                                     "the file ends before the log does"));

  auto mapping = std::make_shared<Mapping>();
  // A log need not end with a page, its mapping does.
  mapping->size = (area.size + page - 1) / page * page;
  mapping->address = kernel().mmap(nullptr, mapping->size, PROT_READ | PROT_WRITE, MAP_SHARED,
                                   area.fd, static_cast<off_t>(area.offset));
  if (mapping->address == MAP_FAILED) return fail_os(operation, which, "mmap");
  VhostUserLog log;
  log.bytes_ = static_cast<unsigned char*>(mapping->address);
  log.size_ = area.size;
  log.mapping_ = std::move(mapping);
  return log;
}

Result<void> VhostUserLog::refuse(GuestRange range) noexcept {
  const bool wraps = !range.last();
  return fail({.code = wraps ? Errc::overflow : Errc::out_of_bounds,
               .operation = "VhostUserLog::mark",
               .first = detail::operand(range),
               .reason = wraps ? nullptr : "the range ends beyond the log"});
}

}  // namespace vmspace
