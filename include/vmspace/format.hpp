// SPDX-License-Identifier: Apache-2.0
//
// The types of vmspace in std::format: `std::format("{} {:>24}", error, range)`. What they print is
// in text.hpp; formats have fill, align and width, as for a string.
//
// Does nothing where the standard library has no `<format>` (before GCC 13, Clang 17).

#pragma once

#include <version>

#include "vmspace/base/cxx20.hpp"

#ifdef __cpp_lib_format

#include <format>
#include <string>
#include <string_view>
#include <utility>

#include "vmspace/text.hpp"

namespace vmspace::detail {

/// How values that the library does not know are printed: by their own formatter.
struct PrintByFormat {
  template <typename T>
  void operator()(std::string& out, const T& value) const {
    if constexpr (requires {
                    std::formatter<T>().format(value, std::declval<std::format_context&>());
                  }) {
      out.append(std::format("{}", value));
    }
  }
};

}  // namespace vmspace::detail

template <vmspace::Textual T>
struct std::formatter<T, char> {
  template <typename Context>
  constexpr auto parse(Context& context) {
    return padding_.parse(context);
  }
  template <typename Context>
  auto format(const T& value, Context& context) const {
    if constexpr (requires { to_text(value, vmspace::detail::PrintByFormat{}); }) {
      return padding_.format(to_text(value, vmspace::detail::PrintByFormat{}), context);
    } else {
      return padding_.format(to_text(value), context);
    }
  }

 private:
  // A member and no base: as an element of a range the text would get quotes, as strings do.
  std::formatter<std::string_view, char> padding_;
};

#endif
