// SPDX-License-Identifier: Apache-2.0

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <limits>
#include <string_view>

#include "vmspace/address_space/layout.hpp"

namespace vmspace {

Result<std::uint64_t> detail::parse_meminfo(std::string_view text) {
  constexpr std::string_view key = "MemTotal:";
  constexpr std::uint64_t bytes_per_unit = 1024;  // the file says kB and means KiB
  const auto corrupt = [](const char* reason) {
    return fail({.code = Errc::corrupt, .operation = "host_memory_size", .reason = reason});
  };
  const std::size_t line = text.starts_with(key) ? 0 : text.find("\nMemTotal:");
  if (line == std::string_view::npos) return corrupt("/proc/meminfo has no MemTotal");
  text.remove_prefix(text.find(key, line) + key.size());
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  std::uint64_t units = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), units);
  const std::string_view rest = text.substr(static_cast<std::size_t>(end - text.data()));
  if (error != std::errc{} || !rest.starts_with(" kB") ||
      units > std::numeric_limits<std::uint64_t>::max() / bytes_per_unit) {
    return corrupt("MemTotal in /proc/meminfo is no number of kB");
  }
  return units * bytes_per_unit;
}

Result<std::uint64_t> host_memory_size() {
  const auto failed = [](const char* reason) {
    return fail(
        {.code = Errc::os, .operation = "host_memory_size", .reason = reason, .os_errno = errno});
  };
  const int descriptor = ::open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return failed("opening /proc/meminfo");
  // MemTotal is the first line: one read of some bytes has it.
  std::array<char, 1024> text;
  ssize_t size = 0;
  do {
    size = ::read(descriptor, text.data(), text.size());
  } while (size < 0 && errno == EINTR);
  auto result = size < 0 ? Result<std::uint64_t>(failed("reading /proc/meminfo"))
                         : detail::parse_meminfo({text.data(), static_cast<std::size_t>(size)});
  ::close(descriptor);
  return result;
}

}  // namespace vmspace
