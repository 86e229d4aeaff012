// SPDX-License-Identifier: Apache-2.0
//
// What every fallible call of the library reports: a code to branch on, and the operands, so that
// one line tells a person what to change.
//
// An Error is trivially copyable and holds no heap memory: making, returning and dropping one costs
// a few stores, whatever went wrong (running out of memory included); names are copied into it, see
// ErrorText. The message is built only when somebody asks for it.

#pragma once

#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>

#include "vmspace/base/error_text.hpp"

namespace vmspace {

/// The kind of an error: what a program branches on. Values are stable.
enum class Errc : int {
  invalid_range = 1,  ///< inverted bounds, or a range that can't be represented
  zero_size,          ///< a size of 0 where at least 1 is needed
  overflow,           ///< base + size passes 2^64
  bad_alignment,      ///< an alignment that is not a power of two, or too small
  misaligned,         ///< an address or size that is not a multiple of what is needed
  overlap,            ///< meets something that is there already
  no_space,           ///< nothing free satisfies the request
  not_found,          ///< nothing is there
  bad_state,          ///< is there, in a state that forbids the call
  out_of_bounds,      ///< lies outside of what the object covers
  access_denied,      ///< forbidden by the protection of the region
  invalid_argument,   ///< another argument that makes no sense; `reason` says which
  limit_exceeded,     ///< more than the object, or the kernel, can hold
  would_deadlock,     ///< the calling thread would wait for itself
  timed_out,          ///< the time allowed is over
  corrupt,            ///< stored data fails its own checks
  unsupported,        ///< this kernel, machine or build can't do it
  os,                 ///< a system call failed; `os_errno` says how
  inconsistent,       ///< undoing a failed change failed as well; `reason` says what is left
  fault,  ///< memory whose page is gone: its file was truncated, or a hole punched in it
};

/// One operand of a failed operation: a number, an address, a size in bytes, or a range.
struct Operand {
  /// How the two numbers are to be read. A `range` has inclusive bounds; a `span` is a base and a
  /// size that make no range.
  enum class Kind : std::uint8_t { none, number, address, size, range, span };

  Kind kind = Kind::none;    ///< how the numbers are to be read
  std::uint64_t first = 0;   ///< the number, address or size; or the lowest member of the range
  std::uint64_t second = 0;  ///< the range's highest member (inclusive), or the span's size

  /// A plain count or index, printed in decimal.
  static constexpr Operand number(std::uint64_t value) { return {Kind::number, value, 0}; }
  /// An address, printed in hexadecimal.
  static constexpr Operand address(std::uint64_t value) { return {Kind::address, value, 0}; }
  /// A size or an alignment in bytes, printed in hexadecimal.
  static constexpr Operand size(std::uint64_t value) { return {Kind::size, value, 0}; }
  /// Both bounds are inclusive; printed as `[0x100, 0x1ff]`. Inverted bounds, which are what is
  /// wrong then, are printed as such: `min 0x200 above max 0x1ff`.
  static constexpr Operand range(std::uint64_t min, std::uint64_t max) {
    return {Kind::range, min, max};
  }
  /// `size` bytes from `base`, for calls that take this form: a range, or, where it is none (size
  /// 0, or past 2^64), base and size as they were given, printed as `0x1000 + 0x0`.
  static constexpr Operand span(std::uint64_t base, std::uint64_t size) {
    if (size == 0 || size - 1 > std::numeric_limits<std::uint64_t>::max() - base) {
      return {Kind::span, base, size};
    }
    return {Kind::range, base, base + (size - 1)};
  }

  friend bool operator==(const Operand&, const Operand&) = default;
};

/// A failure, complete enough to act on.
///
/// An aggregate, made with designated initialisers:
///
///   Error{.code = Errc::overlap, .operation = "IntervalTree::insert",
///         .first = Operand::range(0x200, 0x2ff)}
struct Error {
  Errc code;                     ///< what to branch on
  const char* operation = "";    ///< the function that failed, as in `in`; a string literal
  Operand first = {};            ///< what the caller asked for
  Operand second = {};           ///< what stood in the way
  Operand available = {};        ///< what there is instead: for `no_space`, the largest free piece
  const char* reason = nullptr;  ///< why, where the code alone is too coarse; literal
  int os_errno = 0;              ///< errno(3) of the system call that failed, if one did; else 0
  ErrorText text = {};           ///< names of what it is about; `reason` introduces the detail

  /// One line for a person, operands in hexadecimal and names in quotes:
  /// `IntervalTree::insert: [0x200, 0x2ff] overlaps [0x100, 0x20f]`,
  /// `MemoryRegion::map: "ram0 [0x0, 0xfff]": failed (opening the file: "/srv/ram"): No such file or
  /// directory`.
  /// Allocates; the only call here that does.
  [[nodiscard]] std::string message() const;

  /// What it is as a std::error_code: errno in the generic category for Errc::os, so that it compares
  /// equal to std::errc values; in the library's own category otherwise.
  [[nodiscard]] std::error_code error_code() const noexcept;

  /// This error with `outer`, a string literal, as its operation; all else stays.
  ///
  /// One rule for operations, throughout the library: an error names the public function that the
  /// user called, qualified by its class. A public function that passes on the error of another one
  /// therefore relabels it (VMSPACE_TRY_IN does both). Errors that a user's own callback returned
  /// are passed on as they are. GuestPtr and IommuView alone pass on those of GuestMemory, whose
  /// accesses they spell, so that the inlined access stays as short.
  [[nodiscard]] constexpr Error in(const char* outer) const noexcept {
    Error relabelled = *this;
    relabelled.operation = outer;
    return relabelled;
  }

  /// Errors are equal when they say the same; texts are compared by content.
  friend bool operator==(const Error& a, const Error& b) noexcept {
    const auto words = [](const char* s) { return s == nullptr ? std::string_view{} : s; };
    return a.code == b.code && a.os_errno == b.os_errno && a.first == b.first &&
           a.second == b.second && a.available == b.available &&
           words(a.operation) == words(b.operation) && words(a.reason) == words(b.reason) &&
           a.text == b.text;
  }
};
static_assert(std::is_trivially_copyable_v<Error> && sizeof(Error) <= 192);

namespace detail {

/// How an Errc reads: `before` the first operand, `between` the two, and before what is available.
struct ErrcPhrase {
  const char* before;
  const char* between;
  const char* available = "available is";
};

constexpr ErrcPhrase phrase(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_range: return {"invalid range:", "for"};
    case Errc::zero_size: return {"size is zero:", "at"};
    case Errc::overflow: return {"overflow:", "plus"};
    case Errc::bad_alignment: return {"invalid alignment:", "for"};
    case Errc::misaligned: return {"misaligned:", "is not a multiple of"};
    case Errc::overlap: return {"", "overlaps"};
    case Errc::no_space: return {"no space for", "in", "the largest free piece is"};
    case Errc::not_found: return {"not found:", "in"};
    case Errc::bad_state: return {"wrong state:", "conflicts with"};
    case Errc::out_of_bounds: return {"out of bounds:", "is not within"};
    case Errc::access_denied: return {"access denied:", "in"};
    case Errc::invalid_argument: return {"invalid argument:", "for"};
    case Errc::limit_exceeded: return {"limit exceeded:", "exceeds"};
    case Errc::would_deadlock: return {"would deadlock:", "for"};
    case Errc::timed_out: return {"timed out:", "after"};
    case Errc::corrupt: return {"corrupt data:", "against"};
    case Errc::unsupported: return {"unsupported:", "for"};
    case Errc::os: return {"failed:", "at"};
    case Errc::inconsistent: return {"left inconsistent:", "at"};
    case Errc::fault: return {"memory fault:", "at"};
  }
  return {"unknown error", "and"};
}

/// A phrase that no operand follows.
constexpr std::string_view alone(std::string_view words) noexcept {
  for (const std::string_view tail : {":", " for"}) {
    if (words.ends_with(tail)) words.remove_suffix(tail.size());
  }
  return words;
}

/// The phrase alone, for an error without operands and for std::error_code.
constexpr std::string_view describe(Errc code) noexcept {
  const ErrcPhrase words = phrase(code);
  return alone(*words.before != '\0' ? words.before : words.between);
}

inline std::string hex(std::uint64_t value) {
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, 16).ptr;
  return std::string("0x").append(digits, end);
}

inline std::string operand_text(const Operand& operand) {
  switch (operand.kind) {
    case Operand::Kind::none: break;
    case Operand::Kind::number: return std::to_string(operand.first);
    case Operand::Kind::address:
    case Operand::Kind::size: return hex(operand.first);
    // Not operator+: there g++ 12 warns of an overlap that can't be (-Wrestrict, its bug 105651).
    case Operand::Kind::range:
      if (operand.first > operand.second) {
        return std::string("min ").append(hex(operand.first)).append(" above max ") +
               hex(operand.second);
      }
      return std::string("[").append(hex(operand.first)).append(", ").append(hex(operand.second)) +
             "]";
    case Operand::Kind::span: return hex(operand.first).append(" + ").append(hex(operand.second));
  }
  return {};
}

class ErrorCategory final : public std::error_category {
 public:
  [[nodiscard]] const char* name() const noexcept override { return "vmspace"; }
  [[nodiscard]] std::string message(int code) const override {
    return std::string(describe(static_cast<Errc>(code)));
  }
};

}  // namespace detail

/// The std::error_category of Errc; its name is "vmspace".
// Categories are compared by their addresses: it is visible even where all else is hidden, so that a
// program and the libraries that it is linked to have one.
[[gnu::visibility("default")]] inline const std::error_category& error_category() noexcept {
  static const detail::ErrorCategory category;
  return category;
}

/// Found by std::error_code's converting constructor.
inline std::error_code make_error_code(Errc code) noexcept {
  return {static_cast<int>(code), error_category()};
}

inline std::error_code Error::error_code() const noexcept {
  if (code == Errc::os) return {os_errno, std::generic_category()};
  return make_error_code(code);
}

inline std::string Error::message() const {
  std::string out;
  const auto add = [&out](std::string_view words) {
    if (words.empty()) return;
    if (!out.empty()) out += ' ';
    out += words;
  };
  if (operation != nullptr && *operation != '\0') out.append(operation).append(":");
  if (!text.subject().empty()) {
    add("\"");
    out.append(text.subject()).append("\":");
  }
  const std::string subject = detail::operand_text(first);
  const std::string obstacle = detail::operand_text(second);
  const std::string instead = detail::operand_text(available);
  const detail::ErrcPhrase words = detail::phrase(code);
  if (subject.empty() && obstacle.empty()) {
    add(detail::describe(code));
  } else {
    add(subject.empty() ? detail::alone(words.before) : words.before);
    add(subject);
    if (!obstacle.empty()) add(words.between);
    add(obstacle);
  }
  if (!instead.empty()) out.append("; ").append(words.available).append(" ").append(instead);
  std::string why(reason == nullptr ? "" : reason);
  if (!text.detail().empty()) {
    if (!why.empty()) why += ": ";
    why.append("\"").append(text.detail()).append("\"");
  }
  if (!why.empty()) out.append(" (").append(why).append(")");
  if (os_errno != 0) out.append(": ").append(std::generic_category().message(os_errno));
  return out;
}

}  // namespace vmspace

template <>
struct std::is_error_code_enum<vmspace::Errc> : std::true_type {};
