// SPDX-License-Identifier: Apache-2.0

#include "resources/claim_values.hpp"

#include <charconv>
#include <cstddef>
#include <iterator>
#include <system_error>

#include "vmspace/base/error.hpp"
#include "vmspace/base/error_text.hpp"

#include "spec/known_values.hpp"

namespace vmspace::detail {

namespace {

/// The name_of() of an unnamed value; never parsed.
constexpr std::string_view unnamed_value = "unknown";

/// The whole text as a number; empty if it is not one or is too large.
std::optional<std::uint64_t> read_digits(std::string_view digits, int base) {
  std::uint64_t number = 0;
  const char* const end = digits.data() + digits.size();
  const auto [read, error] = std::from_chars(digits.data(), end, number, base);
  if (error != std::errc{} || read != end) return std::nullopt;
  return number;
}

/// Finds the enumerator with this name. Enumerators are consecutive from 0; the first unnamed value
/// ends the search.
template <typename Enum>
bool read_name(std::string_view name, Enum& value) {
  for (unsigned i = 0; name_of(static_cast<Enum>(i)) != unnamed_value; ++i) {
    value = static_cast<Enum>(i);
    if (name == name_of(value)) return true;
  }
  return false;
}

struct ProtectionLetter {
  Protection bit;
  char letter;
};
constexpr ProtectionLetter protection_letters[] = {
    {Protection::read, 'r'}, {Protection::write, 'w'}, {Protection::execute, 'x'}};

}  // namespace

void append_value(std::string& out, GuestAddress value) {
  out += hex(value.value());
}

void append_value(std::string& out, const Range& value) {
  out.append(hex(value.min())).append("-").append(hex(value.max()));
}

void append_value(std::string& out, std::string_view value) {
  out += '"';
  while (!value.empty()) {
    constexpr TextUnit escaped{1, 4};
    const TextUnit unit = value.front() == '\\' ? escaped : next_unit(value);
    put_unit(value, unit, [&](char c) { out += c; });
    value.remove_prefix(unit.read);
  }
  out += '"';
}

void append_value(std::string& out, MmioReach value) {
  out += name_of(value);
}

void append_value(std::string& out, RegionType value) {
  out += name_of(value);
}

void append_value(std::string& out, Protection value) {
  if (!is_known(value)) {  // never a text that reads as other bits
    out += unnamed_value;
    return;
  }
  for (const auto& [bit, letter] : protection_letters)
    out += allows(value, bit) ? letter : '-';
}

void append_value(std::string& out, const MacAddress& value) {
  constexpr std::string_view digits = "0123456789abcdef";
  const std::uint64_t number = value.fixed.value_or(0);
  // A number above 48 bits, which is not a MAC address, is written as eight bytes so that it reads
  // back unchanged.
  for (int shift = number >> 48 != 0 ? 56 : 40; shift >= 0; shift -= 8) {
    out += digits[number >> (shift + 4) & 0xf];
    out += digits[number >> shift & 0xf];
    if (shift != 0) out += ':';
  }
}

std::optional<std::uint64_t> read_number(std::string_view text, std::uint64_t max) {
  constexpr std::string_view prefix = "0x";
  const auto number = text.starts_with(prefix) ? read_digits(text.substr(prefix.size()), 16)
                                               : read_digits(text, 10);
  return number && *number <= max ? number : std::nullopt;
}

const char* read_value(std::string_view text, GuestAddress& value) {
  std::uint64_t number = 0;
  const char* const wrong = read_value(text, number);
  value = GuestAddress(number);
  return wrong;
}

const char* read_value(std::string_view text, std::string& value) {
  value.clear();
  if (text.size() < 2 || !text.starts_with('"') || !text.ends_with('"')) {
    return "expected a string in double quotes";
  }
  text = text.substr(1, text.size() - 2);
  while (!text.empty()) {
    if (text.front() == '\\') {
      const auto byte = text.starts_with("\\x") && text.size() >= 4
                            ? read_digits(text.substr(2, 2), 16)
                            : std::nullopt;
      if (!byte) return "a backslash must start an escape \\xNN";
      value += static_cast<char>(*byte);
      text.remove_prefix(4);
      continue;
    }
    const TextUnit unit = next_unit(text);
    if (unit.is_escaped()) return "unprintable bytes must be escaped as \\xNN";
    value += text.substr(0, unit.read);
    text.remove_prefix(unit.read);
  }
  return nullptr;
}

const char* read_value(std::string_view text, MmioReach& value) {
  if (read_name(text, value)) return nullptr;
  return "expected any, below_4g or high";
}

const char* read_value(std::string_view text, RegionType& value) {
  if (read_name(text, value)) return nullptr;
  return "expected ram, device, dax or firmware";
}

const char* read_value(std::string_view text, Protection& value) {
  constexpr const char* wrong = "expected a protection such as rw-";
  if (text.size() != std::size(protection_letters)) return wrong;
  value = Protection::none;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto& [bit, letter] = protection_letters[i];
    if (text[i] == letter) {
      value = value | bit;
    } else if (text[i] != '-') {
      return wrong;
    }
  }
  return nullptr;
}

const char* read_value(std::string_view text, MacAddress& value) {
  constexpr const char* wrong = "expected a MAC address such as 52:54:00:12:34:56";
  constexpr std::size_t six_bytes = 17;
  constexpr std::size_t eight_bytes = 23;
  if (text.size() != six_bytes && text.size() != eight_bytes) return wrong;
  std::uint64_t number = 0;
  for (std::size_t at = 0; at < text.size(); at += 3) {
    const auto byte = read_digits(text.substr(at, 2), 16);
    if (!byte || (at + 2 < text.size() && text[at + 2] != ':')) return wrong;
    number = number << 8 | *byte;
  }
  value.fixed = number;
  return nullptr;
}

const char* read_value(std::string_view text, std::optional<Range>& value) {
  constexpr const char* wrong = "expected a range such as 0x100-0x1ff";
  const std::size_t dash = text.find('-');
  if (dash == std::string_view::npos) return wrong;
  std::uint64_t min = 0;
  std::uint64_t max = 0;
  if (const char* number = read_value(text.substr(0, dash), min)) return number;
  if (const char* number = read_value(text.substr(dash + 1), max)) return number;
  const auto range = Range::make(min, max);
  if (!range) return wrong;
  value = *range;
  return nullptr;
}

}  // namespace vmspace::detail
