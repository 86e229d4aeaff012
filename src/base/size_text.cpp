// SPDX-License-Identifier: Apache-2.0

#include "base/size_text.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

#include <fmt/format.h>

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

std::string rounded(std::uint64_t size) {
  if (size == 0) return "0";
  const SizeUnit& unit = unit_of(std::bit_floor(size));
  // A digit at a time: ten times what is left of an EiB is still a number of 64 bits.
  const std::uint64_t rest = 10 * (size % unit.bytes);
  const std::uint64_t tenths = rest / unit.bytes;
  const std::uint64_t hundredths = 10 * (rest % unit.bytes) / unit.bytes;
  std::string text = grouped(size / unit.bytes);
  if (tenths + hundredths != 0) text += fmt::format(".{}{}", tenths, hundredths);
  return fmt::format("{} {}", text, unit.name);
}

}  // namespace vmspace::detail
