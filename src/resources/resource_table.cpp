// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_table.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "vmspace/address_space/memory_map.hpp"
#include "vmspace/address_space/memory_map_svg.hpp"
#include "vmspace/resources/resource_manager.hpp"

#include "base/size_text.hpp"
#include "base/text_table.hpp"
#include "resources/acquisition.hpp"
#include "resources/resource_state.hpp"

namespace vmspace {

namespace {

using detail::grouped;
using detail::needs_addresses;
using detail::printable;
using detail::rounded;
using detail::SizeUnit;
using detail::TextColumn;
using detail::TextRow;
using detail::unit_of;

/// A range in the notation of its kind: ports in hexadecimal, PCI and MAC addresses in their own
/// forms, everything else in decimal.
std::string range_text(ResourceKind kind, Range range) {
  const auto [min, max] = range;
  if (kind == ResourceKind::pio) return fmt::format("{:#06x}-{:#06x}", min, max);
  if (kind == ResourceKind::pci_device) {
    const PciSlot slot = detail::pci_slot(min);
    return fmt::format("{:04x}:{:02x}:{:02x}", slot.segment, slot.bus, slot.device);
  }
  if (kind == ResourceKind::mac_address) {
    std::string text = fmt::format("{:012x}", min);
    for (std::size_t i = text.size() - 2; i > 0; i -= 2)
      text.insert(i, 1, ':');
    return text;
  }
  return min == max ? fmt::to_string(min) : fmt::format("{}-{}", min, max);
}

std::string held_numbers(const std::vector<ResourceHolder>& holders) {
  const std::vector<TextColumn> columns = {
      {"kind"}, {"range"}, {"count", true}, {"owner"}, {.heading = "remarks", .is_optional = true}};
  std::vector<TextRow> rows;
  for (const ResourceHolder& holder : holders) {
    if (needs_addresses(holder.kind)) continue;
    rows.push_back({std::string(name_of(holder.kind)),
                    holder.parked ? "parked" : range_text(holder.kind, holder.range),
                    grouped(holder.range.size()), printable(holder.owner),
                    holder.shared ? "shared" : ""});
  }
  return rows.empty() ? std::string() : text_table(columns, rows);
}

std::string held_addresses(const std::vector<ResourceHolder>& holders) {
  constexpr std::size_t min_digits = 8;
  std::uint64_t last = 0;
  std::uint64_t sizes = 0;
  for (const ResourceHolder& holder : holders) {
    if (!needs_addresses(holder.kind)) continue;
    if (!holder.parked) last = std::max(last, holder.range.max());
    sizes |= holder.range.size();
  }
  const std::size_t digits = std::max(min_digits, fmt::formatted_size("{:x}", last));
  const SizeUnit& unit = unit_of(sizes);

  const std::vector<TextColumn> columns = {{"kind"},
                                           {"range"},
                                           {fmt::format("size ({})", unit.name), true},
                                           {"owner"},
                                           {.heading = "name", .is_optional = true}};
  std::vector<TextRow> rows;
  for (const ResourceHolder& holder : holders) {
    if (!needs_addresses(holder.kind)) continue;
    rows.push_back({std::string(name_of(holder.kind)),
                    holder.parked ? std::string("parked")
                                  : fmt::format("{:0{}x}-{:0{}x}", holder.range.min(), digits,
                                                holder.range.max(), digits),
                    grouped(holder.range.size() / unit.bytes), printable(holder.owner),
                    holder.name == holder.owner ? "" : printable(holder.name)});
  }
  return rows.empty() ? std::string() : text_table(columns, rows);
}

/// The totals of numbers or, with `of_apertures`, of apertures.
std::string usage_table(const std::vector<ResourceUsage>& usage, bool of_apertures) {
  const auto amount = [&](std::uint64_t count) {
    return of_apertures ? rounded(count) : grouped(count);
  };
  const std::vector<TextColumn> columns = {{of_apertures ? "aperture" : "kind"},
                                           {"total", true},
                                           {"used", true},
                                           {"largest free", true}};
  std::vector<TextRow> rows;
  for (const ResourceUsage& entry : usage) {
    if (entry.is_aperture != of_apertures) continue;
    rows.push_back({printable(entry.name), amount(entry.total), amount(entry.total - entry.free),
                    amount(entry.largest_free)});
  }
  return rows.empty() ? std::string() : text_table(columns, rows);
}

/// The bridge windows that have addresses, as a map draws them.
std::vector<DeviceRange> windows_of(const ResourceManager& manager) {
  std::vector<DeviceRange> windows;
  for (const ResourceHolder& holder : manager.holders()) {
    if (holder.kind != ResourceKind::bridge_window || holder.parked) continue;
    windows.push_back(
        {.name = holder.owner, .range = holder.range, .owner = holder.owner, .is_window = true});
  }
  return windows;
}

}  // namespace

std::string resource_table(const ResourceManager& manager) {
  const std::vector<ResourceHolder> holders = manager.holders();
  const std::vector<ResourceUsage> usage = manager.usage();
  std::string text;
  for (const std::string& part : {held_numbers(holders), held_addresses(holders),
                                  usage_table(usage, false), usage_table(usage, true)}) {
    if (!text.empty() && !part.empty()) text += '\n';
    text += part;
  }
  return text;
}

std::string memory_map(const ResourceManager& manager) {
  return memory_map(*manager.ledger().snapshot(), {.devices = windows_of(manager)});
}

std::string memory_map_svg(const ResourceManager& manager, const MemoryMapSvgOptions& options) {
  std::vector<DeviceRange> devices = windows_of(manager);
  devices.insert(devices.end(), options.devices.begin(), options.devices.end());
  MemoryMapSvgOptions all = options;
  all.devices = devices;
  return memory_map_svg(*manager.ledger().snapshot(), all);
}

}  // namespace vmspace
