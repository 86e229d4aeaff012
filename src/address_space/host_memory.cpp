// SPDX-License-Identifier: Apache-2.0

#include <sys/sysinfo.h>

#include <cerrno>

#include "vmspace/address_space/layout.hpp"

namespace vmspace {

// Not MemTotal of /proc/meminfo, which is the same number: jails have no /proc.
Result<std::uint64_t> host_memory_size() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) {
    return fail({.code = Errc::os,
                 .operation = "host_memory_size",
                 .reason = "sysinfo",
                 .os_errno = errno});
  }
  return std::uint64_t{info.totalram} * info.mem_unit;
}

}  // namespace vmspace
