// SPDX-License-Identifier: Apache-2.0

#include "base/text_table.hpp"

#include <algorithm>
#include <cstddef>

#include "vmspace/base/error_text.hpp"

namespace vmspace::detail {

namespace {

constexpr std::size_t max_width = 40;

/// How many characters of UTF-8 there are.
std::size_t length_of(std::string_view text) {
  const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80; };
  return static_cast<std::size_t>(std::ranges::count_if(text, begins));
}

/// 0 for a column that is left out.
std::size_t width_of(std::size_t index, const TextColumn& column,
                     const std::vector<TextRow>& rows) {
  const auto is_used = [&](const TextRow& row) { return !row[index].empty(); };
  if (column.is_optional && std::ranges::none_of(rows, is_used)) return 0;
  std::size_t width = length_of(column.heading);
  for (const TextRow& row : rows) {
    const std::size_t length = length_of(row[index]);
    if (length <= max_width) width = std::max(width, length);
  }
  return width;
}

}  // namespace

std::string text_table(const std::vector<TextColumn>& columns, const std::vector<TextRow>& rows) {
  TextRow headings;
  std::vector<std::size_t> widths;
  for (std::size_t i = 0; i < columns.size(); ++i) {
    headings.push_back(columns[i].heading);
    widths.push_back(width_of(i, columns[i], rows));
  }
  std::string text;
  const auto add_line = [&](const TextRow& row) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (widths[i] == 0) continue;
      const std::string padding(widths[i] - std::min(length_of(row[i]), widths[i]), ' ');
      if (i != 0) text += "  ";
      text += columns[i].is_number ? padding + row[i] : row[i] + padding;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  };
  add_line(headings);
  std::ranges::for_each(rows, add_line);
  return text;
}

std::string printable(std::string_view name) {
  std::string text;
  while (!name.empty()) {
    const TextUnit unit = next_unit(name);
    put_unit(name, unit, [&](char c) { text += c; });
    name.remove_prefix(unit.read);
  }
  return text;
}

}  // namespace vmspace::detail
