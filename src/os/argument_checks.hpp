// SPDX-License-Identifier: Apache-2.0
//
// Checks of arguments that many functions make, each with its one error.
//
// `operation` is the public function that was called; `rule`, a literal, is what a correct argument
// would satisfy.

#pragma once

#include <bit>
#include <cstdint>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// `invalid_argument`, for a rule that has no check below.
[[nodiscard]] inline tl::unexpected<Error> invalid(const char* operation, const char* rule) {
  return fail({.code = Errc::invalid_argument, .operation = operation, .reason = rule});
}

/// `zero_size` for a size of 0; `at` is where something of this size was wanted.
[[nodiscard]] inline Result<void> require_nonzero(const char* operation, std::uint64_t size,
                                                  Operand at) {
  if (size != 0) return {};
  return fail({.code = Errc::zero_size, .operation = operation, .second = at});
}

/// `misaligned` for an address or a size that is not a multiple of `unit`.
[[nodiscard]] inline Result<void> require_multiple(const char* operation, Operand value,
                                                   std::uint64_t unit, const char* rule) {
  if (value.first % unit == 0) return {};
  return fail({.code = Errc::misaligned,
               .operation = operation,
               .first = value,
               .second = Operand::size(unit),
               .reason = rule});
}

/// `bad_alignment` for a size that is not a power of two.
[[nodiscard]] inline Result<void> require_power_of_two(const char* operation, std::uint64_t size) {
  if (std::has_single_bit(size)) return {};
  return fail({.code = Errc::bad_alignment, .operation = operation, .first = Operand::size(size)});
}

/// `limit_exceeded` for a size above `limit`.
[[nodiscard]] inline Result<void> require_at_most(const char* operation, std::uint64_t size,
                                                  std::uint64_t limit, const char* rule) {
  if (size <= limit) return {};
  return fail({.code = Errc::limit_exceeded,
               .operation = operation,
               .first = Operand::size(size),
               .second = Operand::size(limit),
               .reason = rule});
}

/// `out_of_bounds` for a part that does not lie within [0, whole).
[[nodiscard]] inline Result<void> require_within(const char* operation, std::uint64_t offset,
                                                 std::uint64_t size, std::uint64_t whole,
                                                 const char* rule) {
  if (offset <= whole && size <= whole - offset) return {};
  return fail({.code = Errc::out_of_bounds,
               .operation = operation,
               .first = Operand::span(offset, size),
               .second = Operand::span(0, whole),
               .reason = rule});
}

/// `invalid_argument` for a value of an enumeration that is not one of its enumerators; is_known()
/// is in the known_values.hpp of its layer.
template <typename Enumeration>
[[nodiscard]] Result<void> require_known(const char* operation, Enumeration value,
                                         const char* rule) {
  if (is_known(value)) return {};
  return fail({.code = Errc::invalid_argument,
               .operation = operation,
               .first = Operand::number(static_cast<unsigned>(value)),
               .reason = rule});
}

}  // namespace vmspace::detail
