// SPDX-License-Identifier: Apache-2.0
//
// The types of vmspace on streams, and so in the messages of GoogleTest and other libraries for
// tests: `std::cerr << region`, `EXPECT_EQ(range, expected)`. What they print is in text.hpp.
//
// Found by argument-dependent look-up, also for a Result. Width and fill apply to the whole text.

#pragma once

#include <ostream>
#include <sstream>
#include <string>

#include "vmspace/text.hpp"

namespace vmspace {

namespace detail {

/// How values that the library does not know go to a stream: by their own operator<<.
struct PrintToStream {
  template <typename T>
  void operator()(std::string& out, const T& value) const {
    if constexpr (requires(std::ostream & stream) { stream << value; }) {
      std::ostringstream stream;
      stream << value;
      out.append(stream.str());
    }
  }
};

}  // namespace detail

/// Prints what to_text() gives.
template <Textual T>
std::ostream& operator<<(std::ostream& out, const T& value) {
  if constexpr (requires { to_text(value, detail::PrintToStream{}); }) {
    return out << to_text(value, detail::PrintToStream{});
  } else {
    return out << to_text(value);
  }
}

}  // namespace vmspace
