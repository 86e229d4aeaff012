// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/host_info.hpp"

#include "os/system_calls.hpp"

namespace vmspace {

// Not MemTotal of /proc/meminfo, which is the same number: jails have no /proc.
Result<std::uint64_t> host_memory_size() {
  struct sysinfo info {};
  if (detail::kernel().sysinfo(&info) != 0) {
    return detail::fail_os("host_memory_size", {}, "sysinfo");
  }
  return std::uint64_t{info.totalram} * info.mem_unit;
}

}  // namespace vmspace
