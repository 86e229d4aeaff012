// SPDX-License-Identifier: Apache-2.0

#include "memory/host.hpp"

#include "memory/system_calls.hpp"

namespace vmspace::detail {

void* reserve_addresses(void* address, std::uint64_t size, int flags) {
  return kernel().mmap(address, size, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

std::string_view read_start(const char* path, char* buffer, std::size_t size) {
  const Descriptor file(retry([&] { return kernel().open(path, O_RDONLY | O_CLOEXEC, 0); }));
  if (file.value() < 0) return {};
  const ssize_t got = retry([&] { return kernel().read(file.value(), buffer, size); });
  return got < 0 ? std::string_view{} : std::string_view(buffer, static_cast<std::size_t>(got));
}

}  // namespace vmspace::detail
