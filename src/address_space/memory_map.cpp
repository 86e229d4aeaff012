// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "address_space/map_lines.hpp"
#include "base/size_text.hpp"
#include "base/text_table.hpp"

namespace vmspace {

namespace {

using detail::grouped;
using detail::MapLine;
using detail::SizeUnit;
using detail::TextColumn;
using detail::TextRow;
using detail::unit_of;

/// The size of the range in this unit, of which it is a whole number: `3,145,728`.
std::string size_in(const SizeUnit& unit, const Range& range) {
  // Counted from the last byte: the 2^64 bytes of the whole domain are one more than fits.
  const std::uint64_t count = (range.max() - range.min()) / unit.bytes + 1;
  return count == 0 ? grouped("18446744073709551616") : grouped(count);
}

}  // namespace

std::string memory_map(const AddressSpaceBase& space, const MemoryMapOptions& options) {
  std::vector<MapLine> lines = detail::map_lines(space, options);

  constexpr std::size_t min_digits = 8;
  constexpr std::size_t indent = 2;
  std::uint64_t last = space.layout().phys_max();
  std::uint64_t sizes = 0;
  for (const MapLine& line : lines) {
    last = std::max(last, line.range.max());
    sizes |= line.range.size();
  }
  const std::size_t digits = std::max(min_digits, fmt::formatted_size("{:x}", last));
  const SizeUnit& unit = unit_of(sizes);

  const std::vector<TextColumn> columns = {
      {"range"},
      {"name"},
      {"kind"},
      {lines.empty() ? std::string("size") : fmt::format("size ({})", unit.name), true},
      {.heading = "owner", .is_optional = true},
      {.heading = "backing", .is_optional = true},
      {.heading = "host node", .is_optional = true},
      {.heading = "remarks", .is_optional = true}};
  std::vector<TextRow> rows;
  rows.reserve(lines.size());
  for (MapLine& line : lines) {
    rows.push_back(
        {line.parked
             ? std::string("parked")
             : fmt::format("{:0{}x}-{:0{}x}", line.range.min(), digits, line.range.max(), digits),
         std::string(line.depth * indent, ' ') + line.name, std::string(line.kind),
         size_in(unit, line.range), std::move(line.owner), std::move(line.backing),
         line.node ? fmt::to_string(*line.node) : std::string(), std::move(line.remarks)});
  }
  return detail::text_table(columns, rows);
}

}  // namespace vmspace
