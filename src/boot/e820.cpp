// SPDX-License-Identifier: Apache-2.0

#include "vmspace/boot/e820.hpp"

#include <algorithm>
#include <iterator>

#include <boost/icl/interval_set.hpp>

namespace vmspace {

namespace {

using Intervals = boost::icl::interval_set<std::uint64_t, std::less,
                                           boost::icl::right_open_interval<std::uint64_t>>;
using Interval = Intervals::interval_type;

/// No PC has more than 52 bits of address (X86LayoutOptions), whatever a layout says: so that the
/// ends of right-open intervals are 64-bit numbers.
constexpr std::uint64_t max_address = (std::uint64_t{1} << 52U) - 1;

Interval interval(const Range& range) {
  return {range.min(), std::min(range.max(), max_address) + 1};
}

std::vector<E820Entry> table(const AddressSpaceLayout& layout, Intervals ram, Intervals reserved) {
  // The boot CPU's BIOS data and the ROM area: where kernels look for tables, RAM or not.
  reserved += Interval(0x9'fc00, 0x10'0000);
  for (const Aperture& aperture : layout.apertures()) {
    if (aperture.use == ApertureUse::platform) reserved += interval(aperture.range);
  }
  for (const Hole& hole : layout.holes()) {
    if (hole.kind == HoleKind::reserved) reserved += interval(hole.range);
  }
  const Interval addresses = interval(Range::make(0, layout.phys_max()).value());
  reserved &= addresses;
  ram &= addresses;
  ram -= reserved;

  std::vector<E820Entry> entries;
  entries.reserve(ram.iterative_size() + reserved.iterative_size());
  const auto add = [&](const Intervals& set, E820Type type) {
    for (const Interval& part : set) {
      entries.push_back({GuestAddress(part.lower()), part.upper() - part.lower(), type});
    }
  };
  add(ram, E820Type::ram);
  add(reserved, E820Type::reserved);
  std::sort(entries.begin(), entries.end(),
            [](const E820Entry& a, const E820Entry& b) { return a.base < b.base; });
  return entries;
}

}  // namespace

std::vector<E820Entry> e820(const AddressSpaceBase& space) {
  Intervals ram;
  Intervals reserved;
  for (const AddressSpaceRegionPtr& region : space) {
    if (region->type() == RegionType::firmware_memory) reserved += interval(region->range());
    if (region->type() == RegionType::default_memory && !region->is_hotplug()) {
      ram += interval(region->range());
    }
  }
  return table(space.layout(), std::move(ram), std::move(reserved));
}

std::vector<E820Entry> e820(const AddressSpaceLayout& layout, std::span<const RamPiece> plan) {
  Intervals ram;
  for (const RamPiece& piece : plan) {
    const std::uint64_t base = piece.base.value();
    ram += Interval(base, base + piece.size);
  }
  return table(layout, std::move(ram), {});
}

}  // namespace vmspace
