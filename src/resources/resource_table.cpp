// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_table.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "vmspace/address_space/memory_map.hpp"
#include "vmspace/base/error_text.hpp"
#include "vmspace/resources/resource_manager.hpp"

namespace vmspace {

namespace {

/// Names are anything that a VMM was configured with; one line stays one line.
std::string printable(std::string_view name) {
  std::string text;
  while (!name.empty()) {
    const detail::TextUnit unit = detail::next_unit(name);
    detail::put_unit(name, unit, [&](char c) { text += c; });
    name.remove_prefix(unit.read);
  }
  return text;
}

/// A range as people know its kind: addresses and ports in hexadecimal, PCI and MAC addresses in
/// their own forms, counted things in decimal.
std::string range_text(ResourceKind kind, Range range) {
  const auto [min, max] = range;
  switch (kind) {
    case ResourceKind::pio: return fmt::format("{:#06x}-{:#06x}", min, max);
    case ResourceKind::mmio:
    case ResourceKind::memory:
    case ResourceKind::bridge_window: return fmt::format("{:#012x}-{:#012x}", min, max);
    case ResourceKind::pci_device: {
      constexpr std::uint64_t devices = 32;
      constexpr std::uint64_t buses = 256;
      return fmt::format("{:04x}:{:02x}:{:02x}", min / devices / buses, min / devices % buses,
                         min % devices);
    }
    case ResourceKind::mac_address: {
      std::string text;
      for (unsigned shift = 48; shift != 0;) {
        shift -= 8;
        fmt::format_to(std::back_inserter(text), "{:02x}{}", min >> shift & 0xffU,
                       shift == 0 ? "" : ":");
      }
      return text;
    }
    case ResourceKind::legacy_irq:
    case ResourceKind::generic_irq:
    case ResourceKind::msi:
    case ResourceKind::msix:
    case ResourceKind::kvm_slot: break;
  }
  return min == max ? fmt::format("{}", min) : fmt::format("{}-{}", min, max);
}

using Row = std::vector<std::string>;

/// The rows under a header, in columns as wide as they need to be; `right` says which are numbers.
std::string table(std::vector<Row> rows, const std::vector<bool>& right) {
  std::vector<std::size_t> widths(right.size(), 0);
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string_view gap = i == 0 ? "" : "  ";
      if (right[i]) {
        fmt::format_to(std::back_inserter(text), "{}{:>{}}", gap, row[i], widths[i]);
      } else {
        fmt::format_to(std::back_inserter(text), "{}{:<{}}", gap, row[i], widths[i]);
      }
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

}  // namespace

std::string resource_table(const ResourceManager& manager) {
  std::vector<Row> held = {{"kind", "range", "count", "owner", "remarks"}};
  for (const ResourceHolder& holder : manager.holders()) {
    std::string remarks;
    if (holder.shared) remarks = "shared";
    if (holder.parked) remarks = "parked";
    held.push_back({std::string(name_of(holder.kind)), range_text(holder.kind, holder.range),
                    fmt::format("{}", holder.range.size()), printable(holder.owner), remarks});
  }
  std::vector<Row> left = {{"what", "total", "free", "largest free"}};
  for (const ResourceUsage& usage : manager.usage()) {
    left.push_back({printable(usage.name), fmt::format("{}", usage.total),
                    fmt::format("{}", usage.free), fmt::format("{}", usage.largest_free)});
  }
  return table(std::move(held), {false, false, true, false, false}) + '\n' +
         table(std::move(left), {false, true, true, true});
}

std::string memory_map(const ResourceManager& manager) {
  std::vector<DeviceRange> windows;
  for (const ResourceHolder& holder : manager.holders()) {
    if (holder.kind != ResourceKind::bridge_window || holder.parked) continue;
    windows.push_back({.name = "bridge window", .range = holder.range});
  }
  return memory_map(*manager.ledger().snapshot(), {.devices = windows});
}

}  // namespace vmspace
