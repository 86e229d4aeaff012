// SPDX-License-Identifier: Apache-2.0

#include "memory/region_error.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

namespace vmspace::detail {

Error name_region(Error error, std::string_view name, Operand range, std::string_view path) {
  // On the stack: heap memory may be what ran out. A longer name would lose its middle anyway.
  std::array<char, 2 * ErrorText::capacity> subject;
  const auto written =
      fmt::format_to_n(subject.data(), subject.size(), "{:.{}}{}[{:#x}, {:#x}]", name,
                       ErrorText::capacity, name.empty() ? "" : " ", range.first, range.second);
  const std::string_view known = error.text.detail();
  error.text = {std::string_view(subject.data(), std::min(written.size, subject.size())),
                known.empty() ? path : known};
  return error;
}

Error name_region(const Error& error, const AddressSpaceRegion& region) {
  return name_region(error, region.name(), operand(region.guest_range()), region.backing().path);
}

}  // namespace vmspace::detail
