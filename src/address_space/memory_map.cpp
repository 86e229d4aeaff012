// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/size_text.hpp"
#include "base/text_table.hpp"

namespace vmspace {

namespace {

using detail::grouped;
using detail::printable;
using detail::SizeUnit;
using detail::TextColumn;
using detail::TextRow;
using detail::unit_of;

/// One line to be. Among equal ranges, the one of the lower rank is around the other.
struct Line {
  enum Rank { aperture, hole, window, region, device };

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

// -- sizes -------------------------------------------------------------------------------------

/// The size of the range in this unit, of which it is a whole number: `3,145,728`.
std::string size_in(const SizeUnit& unit, const Range& range) {
  // Counted from the last byte: the 2^64 bytes of the whole domain are one more than fits.
  const std::uint64_t count = (range.max() - range.min()) / unit.bytes + 1;
  return count == 0 ? grouped("18446744073709551616") : grouped(count);
}

std::string page_text(std::uint64_t size) {
  const SizeUnit& unit = unit_of(size);
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
                     .rank = device.is_window ? Line::window : Line::device,
                     .name = printable(device.name),
                     .kind = device.is_window ? "bridge window" : "device",
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
  for (Line& line : lines) {
    rows.push_back({line.parked ? std::string("parked")
                                : fmt::format("{:0{}x}-{:0{}x}", line.range.min(), digits,
                                              line.range.max(), digits),
                    std::string(line.depth * indent, ' ') + line.name, std::string(line.kind),
                    size_in(unit, line.range), std::move(line.owner), std::move(line.backing),
                    std::move(line.node), std::move(line.remarks)});
  }
  return detail::text_table(columns, rows);
}

}  // namespace vmspace
