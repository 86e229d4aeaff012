// SPDX-License-Identifier: Apache-2.0
//
// Tables of text for people: what memory_map() and resource_table() are made with.

#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace vmspace::detail {

/// A column; `heading` is the first row's.
struct TextColumn {
  std::string heading;
  bool is_number = false;    ///< flush right
  bool is_optional = false;  ///< left out when no row has anything in it
};

/// The cells of a row, one for each column.
using TextRow = std::vector<std::string>;

/// The rows below their headings, a line each, in columns that are as wide as they need to be. A cell
/// of more than 40 characters moves the rest of its own row aside only. Ends with a newline.
[[nodiscard]] std::string text_table(const std::vector<TextColumn>& columns,
                                     const std::vector<TextRow>& rows);

/// A name in a form that can be printed, as in error messages. Names are anything that a VMM was
/// configured with: a row stays on its line.
[[nodiscard]] std::string printable(std::string_view name);

}  // namespace vmspace::detail
