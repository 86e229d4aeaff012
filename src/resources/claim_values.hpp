// SPDX-License-Identifier: Apache-2.0
//
// The values of a claim as text. The format is described in vmspace/resources/resource_claim.hpp.
//
// append_value() formats a value and read_value() parses a whole string as one. Parsing returns
// null, or the reason for an error and an unspecified value.

#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/error.hpp"
#include "vmspace/resources/resource_request.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace::detail {

/// 64-bit members (addresses, sizes, ports) are written in hexadecimal, narrower ones in decimal.
template <std::unsigned_integral Number>
void append_value(std::string& out, Number value) {
  out += sizeof value == 8 ? hex(value) : std::to_string(value);
}
void append_value(std::string& out, GuestAddress value);
void append_value(std::string& out, const Range& value);
void append_value(std::string& out, std::string_view value);
void append_value(std::string& out, MmioReach value);
void append_value(std::string& out, RegionType value);
void append_value(std::string& out, Protection value);
/// A MAC address that is set.
void append_value(std::string& out, const MacAddress& value);

/// Parses a number up to `max`; empty if the text is not one.
[[nodiscard]] std::optional<std::uint64_t> read_number(std::string_view text, std::uint64_t max);

template <std::unsigned_integral Number>
[[nodiscard]] const char* read_value(std::string_view text, Number& value) {
  constexpr Number max = std::numeric_limits<Number>::max();
  const std::optional<std::uint64_t> number = read_number(text, max);
  if (number) {
    value = static_cast<Number>(*number);
    return nullptr;
  }
  switch (sizeof value) {
    case 1: return "expected a number up to 255, in decimal or 0x hexadecimal";
    case 2: return "expected a number up to 65535, in decimal or 0x hexadecimal";
    case 4: return "expected a number up to 2^32 - 1, in decimal or 0x hexadecimal";
    default: return "expected a number up to 2^64 - 1, in decimal or 0x hexadecimal";
  }
}

[[nodiscard]] const char* read_value(std::string_view text, GuestAddress& value);
[[nodiscard]] const char* read_value(std::string_view text, std::string& value);
[[nodiscard]] const char* read_value(std::string_view text, MmioReach& value);
[[nodiscard]] const char* read_value(std::string_view text, RegionType& value);
[[nodiscard]] const char* read_value(std::string_view text, Protection& value);
[[nodiscard]] const char* read_value(std::string_view text, MacAddress& value);
[[nodiscard]] const char* read_value(std::string_view text, std::optional<Range>& value);

/// An optional value that is set.
template <typename T>
void append_value(std::string& out, const std::optional<T>& value) {
  append_value(out, *value);
}
template <std::default_initializable T>
[[nodiscard]] const char* read_value(std::string_view text, std::optional<T>& value) {
  return read_value(text, value.emplace());
}

}  // namespace vmspace::detail
