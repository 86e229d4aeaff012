// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the address space. Include text.hpp, which has all of them.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/address_space.hpp"
#include "vmspace/text/allocator.hpp"
#include "vmspace/text/spec.hpp"

namespace vmspace {

/// `0xfee00000`.
[[nodiscard]] inline std::string to_text(GuestAddress address) {
  return detail::hex(address.value());
}

/// Base and size, which need not be valid: `0x1000+0x200`.
[[nodiscard]] inline std::string to_text(const GuestRange& range) {
  return detail::base_and_size(range.base.value(), range.size);
}

/// Its name_of(): `ram`, `device`, `dax`, `firmware`.
[[nodiscard]] inline std::string to_text(RegionType type) {
  return std::string(name_of(type));
}

namespace detail {

inline std::string region_text(const RegionOptions& options, const std::string& where) {
  std::string text = concat(options.name, options.name.empty() ? "" : " ", to_text(options.type),
                            " ", where, " ", to_text(options.backing));
  if (options.protection != Protection::read_write) {
    text.append(" ").append(to_text(options.protection));
  }
  if (options.numa_node) text.append(" node ").append(std::to_string(*options.numa_node));
  if (options.huge_pages) text.append(" huge_pages");
  if (options.hotplug) text.append(" hotplug");
  if (options.populate) text.append(" populate");
  if (!options.owner.empty()) text.append(" owner ").append(options.owner);
  return text;
}

}  // namespace detail

/// Like the text of a region, but with base and size, which need not be valid: `ram device
/// 0xc0000000+0x4000 none`.
[[nodiscard]] inline std::string to_text(const RegionOptions& options) {
  return detail::region_text(options, detail::base_and_size(options.base.value(), options.size));
}

/// Name, type, range, backing, and what is not as it is by default:
/// `BAR0 device [0xc0000000-0xc0003fff] none r-- node 1 huge_pages hotplug populate owner nic0`.
[[nodiscard]] inline std::string to_text(const AddressSpaceRegion& region) {
  return detail::region_text(region.options(), to_text(region.range()));
}

/// The region as it is, and where it goes: `nic0 BAR0 device [0xc0000000-0xc0003fff] none to
/// 0xd0000000`, or `... to be parked`.
[[nodiscard]] inline std::string to_text(const RegionMove& move) {
  return detail::concat(move.region == nullptr ? std::string("null") : to_text(*move.region),
                        " to ", move.to ? to_text(*move.to) : std::string("be parked"));
}

/// Its name_of(): `ram window`.
[[nodiscard]] inline std::string to_text(ApertureUse use) {
  return std::string(name_of(use));
}

/// `mmio_low mmio window [0xc0000000-0xfbffffff]`.
[[nodiscard]] inline std::string to_text(const Aperture& aperture) {
  return detail::concat(aperture.name, " ", to_text(aperture.use), " ", to_text(aperture.range));
}

/// The enumerator's name: `unused`, `reserved`.
[[nodiscard]] inline std::string to_text(HoleKind kind) {
  switch (kind) {
    case HoleKind::unused: return "unused";
    case HoleKind::reserved: return "reserved";
  }
  return "?";
}

/// `hypertransport reserved hole [0xfd00000000-0xffffffffff]`.
[[nodiscard]] inline std::string to_text(const Hole& hole) {
  return detail::concat(hole.name, " ", to_text(hole.kind), " hole ", to_text(hole.range));
}

namespace detail {

template <typename Apertures, typename Holes>
std::string layout_text(const std::optional<Range>& ram, std::uint64_t phys_max,
                        const Apertures& apertures, const Holes& holes) {
  return concat(ram ? "RAM in " + to_text(*ram) : std::string("no RAM"), " of ",
                to_text(unchecked_range(0, phys_max)), " ", list_text(apertures), " ",
                list_text(holes));
}

}  // namespace detail

/// Where RAM may lie and the whole space, apertures and holes:
/// `RAM in [0x0-0x3fffffff] of [0x0-0x7fffffff] {ram ram window [0x0-0x3fffffff]} {}`.
[[nodiscard]] inline std::string to_text(const LayoutOptions& options) {
  return detail::layout_text(options.ram, options.phys_max, options.apertures, options.holes);
}

/// Like the text of LayoutOptions.
[[nodiscard]] inline std::string to_text(const AddressSpaceLayout& layout) {
  return detail::layout_text(layout.ram_range(), layout.phys_max(), layout.apertures(),
                             layout.holes());
}

/// `0x0+0xc0000000 node 0`.
[[nodiscard]] inline std::string to_text(const RamPiece& piece) {
  return detail::concat(detail::base_and_size(piece.base.value(), piece.size), " node ",
                        std::to_string(piece.node));
}

/// `uart [0x3f8-0x3ff]`, or with its owner: `uart [0x3f8-0x3ff] owner isa`.
[[nodiscard]] inline std::string to_text(const DeviceRange& device) {
  std::string text = detail::concat(device.name, " ", to_text(device.range));
  if (!device.owner.empty()) text.append(" owner ").append(device.owner);
  return text;
}

/// `[0x0-0xfff] 0.500000`.
[[nodiscard]] inline std::string to_text(const PageHeat& heat) {
  return detail::concat(to_text(heat.range), " ", std::to_string(heat.density));
}

/// `removed {ram ...}, added {}`.
[[nodiscard]] inline std::string to_text(const RegionDiff& diff) {
  return detail::concat("removed ", detail::list_text(diff.removed), ", added ",
                        detail::list_text(diff.added));
}

/// Its memory_map(), of several lines.
[[nodiscard]] inline std::string to_text(const AddressSpaceBase& space) {
  return memory_map(space);
}

/// Its name_of(): `mmio32`.
[[nodiscard]] inline std::string to_text(PlacementKind kind) {
  return std::string(name_of(kind));
}

/// Name, kind, base where it has one, size, and what is not as it is by default:
/// `rom fixed 0xffe00000+0x200000`, `ram1 ram 0x40000000 node 1`,
/// `bars mmio64 0x4000 aligned to 0x4000`.
[[nodiscard]] inline std::string to_text(const PlacementRequest& request) {
  const bool has_base =
      request.kind == PlacementKind::reserve || request.kind == PlacementKind::fixed;
  std::string text =
      detail::concat(request.name, " ", to_text(request.kind), " ",
                     has_base ? detail::base_and_size(request.base.value(), request.size)
                              : detail::hex(request.size));
  if (request.align != 0) text.append(" aligned to ").append(detail::hex(request.align));
  if (request.node != 0) text.append(" node ").append(std::to_string(request.node));
  return text;
}

/// `ram0 ram {0x0+0xc0000000, 0x100000000+0x40000000} node 0`; only RAM has a node.
[[nodiscard]] inline std::string to_text(const Placement& placement) {
  std::string text = detail::concat(placement.name, " ", to_text(placement.kind), " ",
                                    detail::list_text(placement.pieces));
  if (placement.kind == PlacementKind::ram) {
    text.append(" node ").append(std::to_string(placement.node));
  }
  return text;
}

/// `0x0+0xc0000000 of placement 0`.
[[nodiscard]] inline std::string to_text(const PlannedPiece& piece) {
  return detail::concat(to_text(piece.range), " of placement ", std::to_string(piece.placement));
}

/// Its placements: `{ram0 ram {0x0+0x8000000} node 0, nic mmio32 {0xc0000000+0x1000}}`.
[[nodiscard]] inline std::string to_text(const LayoutPlan& plan) {
  return detail::list_text(plan.placements);
}

}  // namespace vmspace
