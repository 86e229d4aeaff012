// SPDX-License-Identifier: Apache-2.0
//
// The types of vmspace in fmt, for programs that use it (link vmspace::fmt):
// `fmt::print("{} {:>24}", error, range)`. What they print is in text.hpp; formats have fill, align
// and width, as for a string. No other header includes this one.

#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>

#include "vmspace/text.hpp"

namespace vmspace::detail {

/// How values that the library does not know are printed: by their own formatter.
struct PrintByFmt {
  template <typename T>
  void operator()(std::string& out, const T& value) const {
    if constexpr (fmt::is_formattable<T>::value) out.append(fmt::format("{}", value));
  }
};

}  // namespace vmspace::detail

// Trees and spaces have begin() and end(), and a Range has structured bindings. To fmt/ranges.h they
// are neither lists nor tuples, whether it is included or not.
FMT_BEGIN_NAMESPACE
template <typename T, typename Char>
struct is_range;
template <typename T>
struct is_tuple_like;
FMT_END_NAMESPACE
template <vmspace::Textual T>
struct fmt::is_range<T, char> : std::false_type {};
template <vmspace::Textual T>
struct fmt::is_tuple_like<T> : std::false_type {};

/// A type's text is made whole, then padded as a string is.
template <vmspace::Textual T>
struct fmt::formatter<T, char> {
  template <typename Context>
  constexpr auto parse(Context& context) {
    return padding_.parse(context);
  }
  template <typename Context>
  auto format(const T& value, Context& context) const {
    if constexpr (requires { to_text(value, vmspace::detail::PrintByFmt{}); }) {
      return padding_.format(to_text(value, vmspace::detail::PrintByFmt{}), context);
    } else {
      return padding_.format(to_text(value), context);
    }
  }

 private:
  // A member and no base: as an element of a range the text would get quotes, as strings do.
  fmt::formatter<std::string_view, char> padding_;
};
