// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map.hpp"

#include <algorithm>
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

/// Exact, in the largest unit of which the size is a multiple of a quarter.
std::string size_text(std::uint64_t size) {
  constexpr std::pair<std::uint64_t, std::string_view> units[] = {
      {1024 * 1024_TiB, "EiB"}, {1024_TiB, "PiB"}, {1_TiB, "TiB"},
      {1_GiB, "GiB"},           {1_MiB, "MiB"},    {1_KiB, "KiB"}};
  constexpr std::string_view quarters[] = {"", ".25", ".5", ".75"};
  if (size == 0) return "16 EiB";  // the whole domain: its size is one more than fits
  for (const auto& [unit, name] : units) {
    if (size < unit || size % (unit / 4) != 0) continue;
    return fmt::format("{}{} {}", size / unit, quarters[size % unit / (unit / 4)], name);
  }
  return fmt::format("{} B", size);
}

std::string_view name_of(HoleKind kind) {
  return kind == HoleKind::reserved ? "reserved" : "hole";
}

Line line_of(const AddressSpaceRegion& region) {
  Line line{.range = region.range(),
            .rank = Line::region,
            .name = printable(region.name()),
            .kind = name_of(region.type()),
            .backing = "-",
            .node = "-"};
  const BackingSpec& backing = region.backing();
  if (region.is_mapped()) line.backing = name_of(backing.source);
  if (backing.page_size != 0) line.backing += ' ' + size_text(backing.page_size);
  if (region.numa_node()) line.node = fmt::format("node {}", *region.numa_node());
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

}  // namespace

std::string memory_map(const AddressSpaceBase& space, const MemoryMapOptions& options) {
  std::vector<Line> lines;
  for (const AddressSpaceRegionPtr& region : space)
    lines.push_back(line_of(*region));
  for (const DeviceRange& device : options.devices) {
    lines.push_back({device.range, Line::device, printable(device.name), "device"});
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

  constexpr std::size_t min_digits = 8;
  constexpr std::size_t indent = 2;
  const std::size_t digits =
      std::max(min_digits, fmt::formatted_size("{:x}", space.layout().phys_max()));
  std::size_t name_width = 0;
  std::size_t kind_width = 0;
  std::size_t size_width = 0;
  std::size_t backing_width = 0;
  std::size_t node_width = 0;
  for (const Line& line : lines) {
    name_width = std::max(name_width, line.depth * indent + line.name.size());
    kind_width = std::max(kind_width, line.kind.size());
    size_width = std::max(size_width, size_text(line.range.size()).size());
    backing_width = std::max(backing_width, line.backing.size());
    node_width = std::max(node_width, line.node.size());
  }

  std::string text;
  for (const Line& line : lines) {
    const std::size_t inset = line.depth * indent;
    const std::string where = line.parked ? fmt::format("{:{}}", "parked", 2 * digits + 1)
                                          : fmt::format("{:0{}x}-{:0{}x}", line.range.min(), digits,
                                                        line.range.max(), digits);
    fmt::format_to(std::back_inserter(text), "{:{}}{} : {:{}}  {:{}}  {:>{}}", "", inset, where,
                   line.name, name_width - inset, line.kind, kind_width,
                   size_text(line.range.size()), size_width);
    fmt::format_to(std::back_inserter(text), "  {:{}}  {:{}}  {}", line.backing, backing_width,
                   line.node, node_width, line.remarks);
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

}  // namespace vmspace
