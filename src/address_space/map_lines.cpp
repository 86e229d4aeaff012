// SPDX-License-Identifier: Apache-2.0

#include "address_space/map_lines.hpp"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>

#include "base/size_text.hpp"
#include "base/text_table.hpp"

namespace vmspace::detail {

namespace {

std::string page_text(std::uint64_t size) {
  const SizeUnit& unit = unit_of(size);
  return fmt::format("{} {}", size / unit.bytes, unit.name);
}

std::string_view name_of(HoleKind kind) {
  return kind == HoleKind::reserved ? "reserved" : "hole";
}

MapLine line_of(const AddressSpaceRegion& region) {
  MapLine line{.range = region.range(),
               .rank = MapLine::region,
               .name = printable(region.name()),
               .kind = name_of(region.type()),
               .owner = printable(region.owner())};
  const BackingSpec& backing = region.backing();
  if (region.is_mapped()) line.backing = name_of(backing.source);
  if (backing.page_size != 0) line.backing += ' ' + page_text(backing.page_size);
  line.node = region.numa_node();
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
void nest(std::vector<MapLine>& lines) {
  std::stable_sort(lines.begin(), lines.end(), [](const MapLine& a, const MapLine& b) {
    if (a.range.min() != b.range.min()) return a.range.min() < b.range.min();
    if (a.range.max() != b.range.max()) return a.range.max() > b.range.max();
    return a.rank < b.rank;
  });
  std::vector<Range> around;
  for (MapLine& line : lines) {
    while (!around.empty() && !around.back().contains(line.range))
      around.pop_back();
    line.depth = around.size();
    around.push_back(line.range);
  }
}

}  // namespace

std::vector<MapLine> map_lines(const AddressSpaceBase& space, const MemoryMapOptions& options) {
  std::vector<MapLine> lines;
  for (const AddressSpaceRegionPtr& region : space)
    lines.push_back(line_of(*region));
  for (const DeviceRange& device : options.devices) {
    lines.push_back({.range = device.range,
                     .rank = device.is_window ? MapLine::window : MapLine::device,
                     .name = printable(device.name),
                     .kind = device.is_window ? "bridge window" : "device",
                     .owner = printable(device.owner)});
  }
  const auto used = [&, count = lines.size()](const Range& range) {
    return std::any_of(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(count),
                       [&](const MapLine& line) { return line.range.overlaps(range); });
  };
  for (const Aperture& aperture : space.layout().apertures()) {
    if (!options.empty_apertures && !used(aperture.range)) continue;
    lines.push_back(
        {aperture.range, MapLine::aperture, printable(aperture.name), name_of(aperture.use)});
  }
  for (const Hole& hole : space.layout().holes()) {
    lines.push_back({hole.range, MapLine::hole, printable(hole.name), name_of(hole.kind)});
  }
  nest(lines);
  for (const AddressSpaceRegionPtr& region : space.parked()) {
    lines.push_back(line_of(*region));
    lines.back().parked = true;
  }
  return lines;
}

}  // namespace vmspace::detail
