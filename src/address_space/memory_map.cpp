// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "vmspace/base/error_text.hpp"
#include "vmspace/base/literals.hpp"

namespace vmspace {

using namespace literals;

namespace {

/// One line to be. Among equal ranges, the one of the lower rank is around the other.
struct Line {
  enum Rank { aperture, hole, region, device };

  Range range;
  Rank rank;
  std::string name;
  std::string_view kind;
  std::string owner = {};
  std::string backing = {};
  std::string node = {};
  std::string remarks = {};
  std::size_t depth = 0;
  bool parked = false;  ///< and then not in its range
};

/// Names are anything a VMM was configured with; one line stays one line.
std::string printable(std::string_view name) {
  std::string text;
  while (!name.empty()) {
    const detail::TextUnit unit = detail::next_unit(name);
    detail::put_unit(name, unit, [&](char c) { text += c; });
    name.remove_prefix(unit.read);
  }
  return text;
}

// -- sizes -------------------------------------------------------------------------------------

struct Unit {
  std::uint64_t bytes;
  std::string_view name;
};

/// The largest unit of which a size is a whole number; of several sizes, when they are or-ed,
/// because units are powers of two.
const Unit& unit_of(std::uint64_t size) {
  static constexpr Unit units[] = {
      {1024 * 1024_TiB, "EiB"}, {1024_TiB, "PiB"}, {1_TiB, "TiB"}, {1_GiB, "GiB"},
      {1_MiB, "MiB"},           {1_KiB, "KiB"},    {1, "B"}};
  return *std::ranges::find_if(units, [&](const Unit& unit) { return size % unit.bytes == 0; });
}

/// The size of the range in this unit, of which it is a whole number: `3,145,728`.
std::string size_in(const Unit& unit, const Range& range) {
  // Counted from the last byte: the 2^64 bytes of the whole domain are one more than fits.
  const std::uint64_t count = (range.max() - range.min()) / unit.bytes + 1;
  std::string digits = count == 0 ? "18446744073709551616" : fmt::to_string(count);
  for (std::size_t i = digits.size(); i > 3;)
    digits.insert(i -= 3, 1, ',');
  return digits;
}

std::string page_text(std::uint64_t size) {
  const Unit& unit = unit_of(size);
  return fmt::format("{} {}", size / unit.bytes, unit.name);
}

// -- lines -------------------------------------------------------------------------------------

std::string_view name_of(HoleKind kind) {
  return kind == HoleKind::reserved ? "reserved" : "hole";
}

Line line_of(const AddressSpaceRegion& region) {
  Line line{.range = region.range(),
            .rank = Line::region,
            .name = printable(region.name()),
            .kind = name_of(region.type()),
            .owner = printable(region.owner())};
  const BackingSpec& backing = region.backing();
  if (region.is_mapped()) line.backing = name_of(backing.source);
  if (backing.page_size != 0) line.backing += ' ' + page_text(backing.page_size);
  if (region.numa_node()) line.node = fmt::to_string(*region.numa_node());
  const auto remark = [&](bool holds, std::string_view text) {
    if (!holds) return;
    if (!line.remarks.empty()) line.remarks += ", ";
    line.remarks += text;
  };
  const bool readable = allows(region.protection(), Protection::read);
  const bool writable = allows(region.protection(), Protection::write);
  remark(readable && !writable, "read-only");
  remark(!readable, "no read access");
  remark(region.wants_huge_pages(), "huge pages");
  remark(region.is_hotplug(), "hotplug");
  return line;
}

/// Sorted, and each as deep as there are ranges around it.
void nest(std::vector<Line>& lines) {
  std::stable_sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) {
    if (a.range.min() != b.range.min()) return a.range.min() < b.range.min();
    if (a.range.max() != b.range.max()) return a.range.max() > b.range.max();
    return a.rank < b.rank;
  });
  std::vector<Range> around;
  for (Line& line : lines) {
    while (!around.empty() && !around.back().contains(line.range))
      around.pop_back();
    line.depth = around.size();
    around.push_back(line.range);
  }
}

std::vector<Line> lines_of(const AddressSpaceBase& space, const MemoryMapOptions& options) {
  std::vector<Line> lines;
  for (const AddressSpaceRegionPtr& region : space)
    lines.push_back(line_of(*region));
  for (const DeviceRange& device : options.devices) {
    lines.push_back({.range = device.range,
                     .rank = Line::device,
                     .name = printable(device.name),
                     .kind = "device",
                     .owner = printable(device.owner)});
  }
  const auto used = [&, count = lines.size()](const Range& range) {
    return std::any_of(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(count),
                       [&](const Line& line) { return line.range.overlaps(range); });
  };
  for (const Aperture& aperture : space.layout().apertures()) {
    if (!options.empty_apertures && !used(aperture.range)) continue;
    lines.push_back(
        {aperture.range, Line::aperture, printable(aperture.name), name_of(aperture.use)});
  }
  for (const Hole& hole : space.layout().holes()) {
    lines.push_back({hole.range, Line::hole, printable(hole.name), name_of(hole.kind)});
  }
  nest(lines);
  for (const AddressSpaceRegionPtr& region : space.parked()) {
    lines.push_back(line_of(*region));
    lines.back().parked = true;
  }
  return lines;
}

// -- the table ---------------------------------------------------------------------------------

struct Column {
  enum : std::size_t { range, name, kind, size, owner, backing, node, remarks, count };
};
using Row = std::array<std::string, Column::count>;

/// How many characters of UTF-8 there are.
std::size_t length_of(std::string_view text) {
  const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80; };
  return static_cast<std::size_t>(std::ranges::count_if(text, begins));
}

/// The rows as lines of text. The first has the headings; from `owner` on, a column with nothing
/// below its heading is left out.
std::string table(const std::vector<Row>& rows) {
  constexpr std::size_t max_width = 40;  // a longer cell moves the rest of its own row aside
  std::array<std::size_t, Column::count> widths{};
  for (std::size_t column = 0; column < widths.size(); ++column) {
    const auto is_used = [&](const Row& row) { return !row[column].empty(); };
    if (column >= Column::owner && std::none_of(rows.begin() + 1, rows.end(), is_used)) continue;
    for (const Row& row : rows) {
      const std::size_t length = length_of(row[column]);
      if (length <= max_width) widths[column] = std::max(widths[column], length);
    }
  }
  std::string text;
  for (const Row& row : rows) {
    for (std::size_t column = 0; column < widths.size(); ++column) {
      if (widths[column] == 0) continue;
      const std::string& cell = row[column];
      const std::string padding(widths[column] - std::min(length_of(cell), widths[column]), ' ');
      if (column != 0) text += "  ";
      text += column == Column::size ? padding + cell : cell + padding;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

}  // namespace

std::string memory_map(const AddressSpaceBase& space, const MemoryMapOptions& options) {
  std::vector<Line> lines = lines_of(space, options);

  constexpr std::size_t min_digits = 8;
  constexpr std::size_t indent = 2;
  std::uint64_t last = space.layout().phys_max();
  std::uint64_t sizes = 0;
  for (const Line& line : lines) {
    last = std::max(last, line.range.max());
    sizes |= line.range.size();
  }
  const std::size_t digits = std::max(min_digits, fmt::formatted_size("{:x}", last));
  const Unit& unit = unit_of(sizes);

  std::vector<Row> rows;
  rows.push_back({"range", "name", "kind",
                  lines.empty() ? std::string("size") : fmt::format("size ({})", unit.name),
                  "owner", "backing", "host node", "remarks"});
  for (Line& line : lines) {
    rows.push_back({line.parked ? std::string("parked")
                                : fmt::format("{:0{}x}-{:0{}x}", line.range.min(), digits,
                                              line.range.max(), digits),
                    std::string(line.depth * indent, ' ') + line.name, std::string(line.kind),
                    size_in(unit, line.range), std::move(line.owner), std::move(line.backing),
                    std::move(line.node), std::move(line.remarks)});
  }
  return table(rows);
}

}  // namespace vmspace
