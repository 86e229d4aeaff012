// SPDX-License-Identifier: Apache-2.0
//
// to_text() of errors and results, and what the texts of all layers are made with. Include
// text.hpp, which has all of them.

#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

#include "vmspace/base/error.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// A type of the library that to_text() knows, found by argument-dependent look-up.
template <typename T>
concept Textual = requires(const T& value) {
  { to_text(value) } -> std::same_as<std::string>;
};

namespace detail {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::string text;
  (text.append(std::string_view(parts)), ...);
  return text;
}

/// `base` and `size` as they are: also where they make no range, being 0 or too large.
inline std::string base_and_size(std::uint64_t base, std::uint64_t size) {
  return concat(hex(base), "+", hex(size));
}

/// How values that the library does not know are printed without anybody's help: strings and
/// numbers; others are left out. Adapters have functions of their own (see ostream.hpp, fmt.hpp).
struct PrintPlain {
  template <typename T>
  void operator()(std::string& out, const T& value) const {
    if constexpr (std::is_convertible_v<const T&, std::string_view>) {
      out.append(std::string_view(value));
    } else if constexpr (std::same_as<T, bool>) {
      out.append(value ? "true" : "false");
    } else if constexpr (std::is_arithmetic_v<T>) {
      out.append(std::to_string(value));
    }
  }
};

/// A value in a container or a result: one of ours as to_text() says, others by `print`.
template <typename T, typename Print>
std::string value_text(const T& value, const Print& print) {
  std::string text;
  if constexpr (Textual<T>) {
    text = to_text(value);
  } else {
    print(text, value);
  }
  return text;
}

/// What a shared pointer points to, or `null`.
template <typename T, typename Print>
std::string value_text(const std::shared_ptr<T>& value, const Print& print) {
  return value == nullptr ? "null" : value_text(*value, print);
}

/// The values of a list: `{0, 1}`.
template <typename Values>
std::string list_text(const Values& values) {
  std::string text = "{";
  for (const auto& value : values) {
    if (text.size() > 1) text.append(", ");
    text.append(value_text(value, PrintPlain{}));
  }
  return text.append("}");
}

}  // namespace detail

/// The enumerator's name: `no_space`.
[[nodiscard]] inline std::string to_text(Errc code) {
  switch (code) {
    case Errc::invalid_range: return "invalid_range";
    case Errc::zero_size: return "zero_size";
    case Errc::overflow: return "overflow";
    case Errc::bad_alignment: return "bad_alignment";
    case Errc::misaligned: return "misaligned";
    case Errc::overlap: return "overlap";
    case Errc::no_space: return "no_space";
    case Errc::not_found: return "not_found";
    case Errc::bad_state: return "bad_state";
    case Errc::out_of_bounds: return "out_of_bounds";
    case Errc::access_denied: return "access_denied";
    case Errc::invalid_argument: return "invalid_argument";
    case Errc::limit_exceeded: return "limit_exceeded";
    case Errc::would_deadlock: return "would_deadlock";
    case Errc::timed_out: return "timed_out";
    case Errc::corrupt: return "corrupt";
    case Errc::unsupported: return "unsupported";
    case Errc::os: return "os";
    case Errc::inconsistent: return "inconsistent";
    case Errc::fault: return "fault";
  }
  return "Errc " + std::to_string(static_cast<int>(code));
}

/// As in a message: `[0x100, 0x1ff]`, `0x1000`, `7`; `none`.
[[nodiscard]] inline std::string to_text(const Operand& operand) {
  return operand.kind == Operand::Kind::none ? "none" : detail::operand_text(operand);
}

/// Its message().
[[nodiscard]] inline std::string to_text(const Error& error) {
  return error.message();
}

/// Its value, printed by `print` where the library does not know its type (`ok` where that prints
/// nothing); or `error: ` and the message.
template <typename T, typename Print = detail::PrintPlain>
[[nodiscard]] std::string to_text(const tl::expected<T, Error>& result, const Print& print = {}) {
  if (!result.has_value()) return "error: " + result.error().message();
  std::string text;
  if constexpr (!std::is_void_v<T>) text = detail::value_text(*result, print);
  return text.empty() ? "ok" : text;
}

}  // namespace vmspace
