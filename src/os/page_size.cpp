// SPDX-License-Identifier: Apache-2.0

#include "os/page_size.hpp"

#include <unistd.h>

namespace vmspace::detail {

std::uint64_t base_page_size() noexcept {
  static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace vmspace::detail
