// SPDX-License-Identifier: Apache-2.0
//
// Names inside an Error: a region's name, a path.
//
// An Error is trivially copyable and owns no heap memory, so names are copied into a buffer of
// fixed size. They come from configurations, peers and files and end up in logs and terminals:
// whatever could end a line, move a cursor or reorder text is kept as an escape, so that one error
// stays one line that reads as it is.

#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "vmspace/base/cxx20.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace {

namespace detail {

/// Takes printable text apart: one UTF-8 character, or one byte that has to be escaped.
struct TextUnit {
  std::size_t read;     ///< bytes of the source
  std::size_t written;  ///< bytes when printable

  [[nodiscard]] constexpr bool is_escaped() const noexcept { return read != written; }
};

/// Characters that no name may send to a terminal: controls, the quote that ends a name in a
/// message, line and paragraph separators, and what reorders the text around it.
[[nodiscard]] constexpr bool is_hostile(char32_t code) noexcept {
  const auto within = [code](char32_t min, char32_t max) { return code >= min && code <= max; };
  return code < 0x20 || code == '"' || within(0x7f, 0x9f) || code == 0x61c ||
         within(0x200e, 0x200f) || within(0x2028, 0x202e) || within(0x2066, 0x2069);
}

/// The first unit of `text`, which is not empty. What is not UTF-8 (RFC 3629: also overlong forms
/// and surrogates) is escaped byte by byte.
[[nodiscard]] constexpr TextUnit next_unit(std::string_view text) noexcept {
  constexpr TextUnit escaped{1, 4};  // \xNN
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return is_hostile(lead) ? escaped : TextUnit{1, 1};
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return escaped;
  char32_t code = lead & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80) return escaped;
    code = code << 6U | (byte(i) & 0x3fU);
  }
  constexpr char32_t least[] = {0x80, 0x800, 0x10000};
  const bool is_surrogate = code >= 0xd800 && code <= 0xdfff;
  if (code < least[length - 2] || code > 0x10ffff || is_surrogate) return escaped;
  return is_hostile(code) ? escaped : TextUnit{length, length};
}

/// How many bytes `text` takes when it is printable.
[[nodiscard]] constexpr std::size_t printable_size(std::string_view text) noexcept {
  std::size_t size = 0;
  while (!text.empty()) {
    const TextUnit unit = next_unit(text);
    size += unit.written;
    text.remove_prefix(unit.read);
  }
  return size;
}

/// Calls `put(char)` for each byte of the printable form of the first unit of `text`.
template <typename Put>
constexpr void put_unit(std::string_view text, const TextUnit& unit, Put put) {
  if (!unit.is_escaped()) {
    for (const char c : text.substr(0, unit.read))
      put(c);
    return;
  }
  constexpr std::string_view digits = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(text[0]);
  for (const char c : {'\\', 'x', digits[byte / 16], digits[byte % 16]})
    put(c);
}

}  // namespace detail

/// What an error is about, by name: a subject (a region's name), and a detail (a path).
///
/// A value of fixed size, trivially copyable. Texts are copied in a form that can be printed:
/// control characters, quotes, characters that reorder text and bytes that are not UTF-8 become
/// `\xNN`. What is too long loses its middle, which is marked with `...`, so that the end of a path
/// is always there; no character is split.
class ErrorText {
 public:
  /// How many bytes both texts have together, once they can be printed.
  static constexpr std::size_t capacity = 86;

  /// No texts.
  constexpr ErrorText() noexcept = default;

  /// Copies what fits; when not all of it does, each text has at least half of the capacity, or as
  /// much as it needs. Implicit, so that an error is written `.text = region.name()` or
  /// `.text = {region.name(), path}`; a detail alone is `{{}, path}`. Never allocates.
  template <std::convertible_to<std::string_view> Subject = std::string_view>
  requires(!std::same_as<std::remove_cvref_t<Subject>, ErrorText>) constexpr ErrorText(
      const Subject& subject, std::string_view detail = {}) noexcept
      : ErrorText(Both{}, subject, detail) {}

  /// The subject; empty when there is none.
  [[nodiscard]] constexpr std::string_view subject() const noexcept {
    return {text_.data(), subject_size_};
  }
  /// The detail; empty when there is none.
  [[nodiscard]] constexpr std::string_view detail() const noexcept {
    return {text_.data() + subject_size_, detail_size_};
  }
  /// Whether there is neither a subject nor a detail.
  [[nodiscard]] constexpr bool empty() const noexcept { return subject_size_ + detail_size_ == 0; }

  /// These texts with another subject: for a layer that knows the name of what failed below it.
  [[nodiscard]] constexpr ErrorText with_subject(std::string_view subject) const noexcept {
    return {subject, detail()};
  }

  /// Texts are equal when their printable forms are.
  friend constexpr bool operator==(const ErrorText& a, const ErrorText& b) noexcept {
    return a.subject() == b.subject() && a.detail() == b.detail();
  }

 private:
  struct Both {};
  constexpr ErrorText(Both, std::string_view subject, std::string_view detail) noexcept {
    const std::size_t wanted = detail::printable_size(subject);
    const std::size_t other = detail::min_of(detail::printable_size(detail), capacity);
    const std::size_t room = detail::max_of(capacity - other, capacity / 2);
    subject_size_ = copy(subject, 0, detail::min_of(wanted, room));
    detail_size_ = copy(detail, subject_size_, capacity - subject_size_);
  }

  /// Writes the printable form of `from` at `at`, at most `room` bytes; returns how many.
  constexpr std::uint8_t copy(std::string_view from, std::size_t at, std::size_t room) noexcept {
    constexpr std::string_view gap = "...";
    const std::size_t begin = at;
    const auto put = [&](char c) { text_[at++] = c; };
    std::size_t left = detail::printable_size(from);
    const bool fits = left <= room;
    // Of what is too long, a third of the room shows the beginning, and the rest the end.
    const std::size_t head = fits ? room : (room - gap.size()) / 3;
    bool in_head = true;
    while (!from.empty()) {
      const detail::TextUnit unit = detail::next_unit(from);
      if (in_head && at - begin + unit.written > head) {
        in_head = false;
        for (const char c : gap)
          put(c);
      }
      // What is left of the room never grows, and neither does the text: the end begins where the
      // rest of it fits.
      if (in_head || left <= room - (at - begin)) detail::put_unit(from, unit, put);
      left -= unit.written;
      from.remove_prefix(unit.read);
    }
    return static_cast<std::uint8_t>(at - begin);
  }

  std::array<char, capacity> text_{};
  std::uint8_t subject_size_ = 0;
  std::uint8_t detail_size_ = 0;
};
static_assert(std::is_trivially_copyable_v<ErrorText> && sizeof(ErrorText) == 88);

}  // namespace vmspace
