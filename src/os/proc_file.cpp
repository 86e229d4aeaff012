// SPDX-License-Identifier: Apache-2.0

#include "os/proc_file.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

std::string_view read_start(const char* path, char* buffer, std::size_t size) {
  const Descriptor file(retry([&] { return kernel().open(path, O_RDONLY | O_CLOEXEC, 0); }));
  if (file.value() < 0) return {};
  const ssize_t got = retry([&] { return kernel().read(file.value(), buffer, size); });
  return got < 0 ? std::string_view{} : std::string_view(buffer, static_cast<std::size_t>(got));
}

}  // namespace vmspace::detail
