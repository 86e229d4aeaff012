// SPDX-License-Identifier: Apache-2.0

#include "base/size_text.hpp"

#include <algorithm>
#include <cstddef>

#include "vmspace/base/literals.hpp"

namespace vmspace::detail {

using namespace literals;

const SizeUnit& unit_of(std::uint64_t size) noexcept {
  static constexpr SizeUnit units[] = {
      {1024 * 1024_TiB, "EiB"}, {1024_TiB, "PiB"}, {1_TiB, "TiB"}, {1_GiB, "GiB"},
      {1_MiB, "MiB"},           {1_KiB, "KiB"},    {1, "B"}};
  return *std::ranges::find_if(units, [&](const SizeUnit& unit) { return size % unit.bytes == 0; });
}

std::string grouped(std::string digits) {
  for (std::size_t i = digits.size(); i > 3;)
    digits.insert(i -= 3, 1, ',');
  return digits;
}

std::string grouped(std::uint64_t number) {
  return grouped(std::to_string(number));
}

}  // namespace vmspace::detail
