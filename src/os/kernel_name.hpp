// SPDX-License-Identifier: Apache-2.0
//
// Names that the kernel shows for memory, as in /proc/self/maps.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

namespace vmspace::detail {

/// The first `limit` bytes of a name, null-terminated, in the characters that the kernel takes for
/// anonymous memory (PR_SET_VMA_ANON_NAME, prctl(2)): printable ASCII but for \ ` $ [ ]. All others
/// become underscores. The name of a memfd could have any, and a newline in it would only be seen as
/// \012.
template <std::size_t limit>
class KernelName {
 public:
  explicit KernelName(std::string_view name) noexcept {
    *std::ranges::transform(name.substr(0, limit), chars_.begin(), accepted).out = '\0';
  }

  [[nodiscard]] const char* c_str() const noexcept { return chars_.data(); }

 private:
  static char accepted(char c) noexcept {
    constexpr std::string_view refused = "\\`$[]";
    return c >= ' ' && c <= '~' && refused.find(c) == refused.npos ? c : '_';
  }

  std::array<char, limit + 1> chars_;
};

}  // namespace vmspace::detail
