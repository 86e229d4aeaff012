// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/layout.hpp"

#include <algorithm>
#include <limits>

#include <boost/icl/interval_set.hpp>

#include "vmspace/literals.hpp"

namespace vmspace {

using namespace literals;

namespace {

constexpr std::uint64_t page_size = 4_KiB;
constexpr std::uint64_t min_below_hole = 128_MiB;
constexpr std::uint64_t bytes_per_bus = 1_MiB;  // 32 devices of 8 functions of 4 KiB (PCIe, ECAM)
constexpr unsigned max_buses = 256;

/// [min, end), for windows whose ends are known to be in order.
Range window(std::uint64_t min, std::uint64_t end) {
  return *Range::make(min, end - 1);
}

/// [min, end) as the operand of an error; when it is empty, that it has no size: from 0 on, the
/// bounds would come out as the whole domain.
Operand half_open(std::uint64_t min, std::uint64_t end) {
  if (min == end) return Operand::size(0);
  return Operand::span(min, end - min);
}

template <typename Part>
Result<void> check_parts(std::vector<Part>& parts, std::uint64_t phys_end, const char* operation) {
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.range < b.range; });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Range& range = parts[i].range;
    if (range.max() >= phys_end) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = detail::operand(range),
                   .second = half_open(0, phys_end)});
    }
    if (i > 0 && parts[i - 1].range.overlaps(range)) {
      return fail({.code = Errc::overlap,
                   .operation = operation,
                   .first = detail::operand(range),
                   .second = detail::operand(parts[i - 1].range)});
    }
  }
  return {};
}

/// What both machines check of their options. `least` is the lowest mem_end that leaves room for
/// what the machine puts below it.
Result<void> check_machine(const char* operation, unsigned bits, Range allowed_bits, unsigned buses,
                           std::optional<std::uint64_t> mem_end, std::uint64_t least) {
  const auto invalid = [&](std::uint64_t value, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(value),
                 .reason = reason});
  };
  if (!allowed_bits.contains(bits)) return invalid(bits, "so many address bits no machine has");
  if (buses > max_buses) return invalid(buses, "PCI has at most 256 buses");
  const std::uint64_t phys_end = std::uint64_t{1} << bits;
  if (mem_end && (*mem_end < least || *mem_end > phys_end)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::address(*mem_end),
                 .second = Operand::range(least, phys_end),
                 .reason = "mem_end"});
  }
  if (mem_end && *mem_end % page_size != 0) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = Operand::address(*mem_end),
                 .second = Operand::size(page_size),
                 .reason = "mem_end"});
  }
  return {};
}

}  // namespace

bool Aperture::takes(RegionType type) const noexcept {
  if (type == RegionType::firmware_memory) return true;
  switch (use) {
    case ApertureUse::ram: return type == RegionType::default_memory;
    case ApertureUse::mmio:
      return type == RegionType::device_memory || type == RegionType::dax_memory;
    case ApertureUse::platform: return type == RegionType::device_memory;
  }
  return false;
}

std::string_view name_of(ApertureUse use) noexcept {
  switch (use) {
    case ApertureUse::ram: return "ram window";
    case ApertureUse::mmio: return "mmio window";
    case ApertureUse::platform: return "platform window";
  }
  return "unknown";
}

Result<AddressSpaceLayout> AddressSpaceLayout::make(LayoutOptions options) {
  constexpr const char* operation = "AddressSpaceLayout::make";
  const auto out_of_order = [&](std::uint64_t low, std::uint64_t high, const char* reason) {
    return fail({.code = Errc::invalid_range,
                 .operation = operation,
                 .first = Operand::address(low),
                 .second = Operand::address(high),
                 .reason = reason});
  };
  if (options.mem_start > options.mem_end) {
    return out_of_order(options.mem_start, options.mem_end, "mem_start is above mem_end");
  }
  if (options.mem_end > options.phys_end) {
    return out_of_order(options.mem_end, options.phys_end, "mem_end is above phys_end");
  }
  if (options.phys_end == 0) return out_of_order(0, 0, "phys_end is 0");

  if (auto ok = check_parts(options.apertures, options.phys_end, operation); !ok) {
    return fail(ok.error());
  }
  if (auto ok = check_parts(options.holes, options.phys_end, operation); !ok) {
    return fail(ok.error());
  }
  for (auto aperture = options.apertures.begin(); aperture != options.apertures.end(); ++aperture) {
    const Range& range = aperture->range;
    const auto same_name = [&](const Aperture& other) { return other.name == aperture->name; };
    if (aperture->name.empty() ||
        std::find_if(options.apertures.begin(), aperture, same_name) != aperture) {
      return fail({.code = Errc::invalid_argument,
                   .operation = operation,
                   .first = detail::operand(range),
                   .reason = "the aperture's name is empty or taken"});
    }
    if (aperture->use == ApertureUse::ram &&
        (range.min() < options.mem_start || range.max() >= options.mem_end)) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = detail::operand(range),
                   .second = half_open(options.mem_start, options.mem_end)});
    }
    for (const Hole& hole : options.holes) {
      if (hole.range.overlaps(range) && !range.contains(hole.range)) {
        return fail({.code = Errc::overlap,
                     .operation = operation,
                     .first = detail::operand(hole.range),
                     .second = detail::operand(range),
                     .reason = "a hole crosses the edge of an aperture"});
      }
    }
  }
  return AddressSpaceLayout(std::move(options));
}

Result<AddressSpaceLayout> AddressSpaceLayout::x86_64(const X86LayoutOptions& options) {
  constexpr const char* operation = "AddressSpaceLayout::x86_64";
  constexpr std::uint64_t mmio_begin = 0xc000'0000;
  constexpr std::uint64_t platform_begin = 0xfc00'0000;
  constexpr std::uint64_t high_begin = 4_GiB;
  constexpr Range hypertransport = Range::of(0xfd'0000'0000, 0xff'ffff'ffff);

  if (auto ok = check_machine(operation, options.phys_bits, Range::of(36, 52), options.ecam_buses,
                              options.mem_end, high_begin);
      !ok) {
    return fail(ok.error());
  }
  const std::uint64_t phys_end = std::uint64_t{1} << options.phys_bits;
  const std::uint64_t mem_end = options.mem_end.value_or(phys_end / 2);
  const std::uint64_t ecam_end = mmio_begin + options.ecam_buses * bytes_per_bus;

  LayoutOptions parts{.mem_end = mem_end, .phys_end = phys_end};
  parts.apertures = {{"ram_low", window(0, mmio_begin), ApertureUse::ram},
                     {"mmio_low", window(ecam_end, platform_begin), ApertureUse::mmio},
                     {"platform", window(platform_begin, high_begin), ApertureUse::platform}};
  const auto add = [&](const char* name, std::uint64_t min, std::uint64_t end, ApertureUse use) {
    if (min < end) parts.apertures.push_back({name, window(min, end), use});
  };
  add("ecam", mmio_begin, ecam_end, ApertureUse::platform);
  add("ram_high", high_begin, mem_end, ApertureUse::ram);
  add("mmio_high", mem_end, phys_end, ApertureUse::mmio);
  if (options.amd_hole && phys_end > hypertransport.max()) {
    parts.holes.push_back({"hypertransport", hypertransport, HoleKind::reserved});
  }
  return make(std::move(parts));
}

Result<AddressSpaceLayout> AddressSpaceLayout::aarch64(const Aarch64LayoutOptions& options) {
  constexpr const char* operation = "AddressSpaceLayout::aarch64";
  constexpr std::uint64_t mmio_begin = 256_MiB;
  constexpr std::uint64_t ram_begin = 1_GiB;

  if (auto ok = check_machine(operation, options.ipa_bits, Range::of(32, 52), options.ecam_buses,
                              options.mem_end, ram_begin + page_size);
      !ok) {
    return fail(ok.error());
  }
  const std::uint64_t phys_end = std::uint64_t{1} << options.ipa_bits;
  const std::uint64_t mem_end = options.mem_end.value_or(phys_end / 2);
  const std::uint64_t ecam_end = mmio_begin + options.ecam_buses * bytes_per_bus;

  LayoutOptions parts{.mem_start = ram_begin, .mem_end = mem_end, .phys_end = phys_end};
  parts.apertures = {{"platform", window(0, mmio_begin), ApertureUse::platform},
                     {"mmio_low", window(ecam_end, ram_begin), ApertureUse::mmio},
                     {"ram", window(ram_begin, mem_end), ApertureUse::ram}};
  const auto add = [&](const char* name, std::uint64_t min, std::uint64_t end, ApertureUse use) {
    if (min < end) parts.apertures.push_back({name, window(min, end), use});
  };
  add("ecam", mmio_begin, ecam_end, ApertureUse::platform);
  add("mmio_high", mem_end, phys_end, ApertureUse::mmio);
  return make(std::move(parts));
}

const Aperture* AddressSpaceLayout::find_aperture(std::string_view name) const noexcept {
  const auto found = std::find_if(apertures_.begin(), apertures_.end(),
                                  [&](const Aperture& aperture) { return aperture.name == name; });
  return found == apertures_.end() ? nullptr : &*found;
}

Result<void> AddressSpaceLayout::check_place(RegionType type, const Range& range) const {
  constexpr const char* operation = "AddressSpaceLayout::check_place";
  const auto outside = [&](Operand bounds, const char* reason) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = bounds,
                 .reason = reason});
  };
  const auto meets = [&](const Range& other, const char* reason) {
    return fail({.code = Errc::overlap,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = detail::operand(other),
                 .reason = reason});
  };
  if (range.max() >= phys_end_)
    return outside(half_open(0, phys_end_), "the guest's address space");
  for (const Hole& hole : holes_) {
    if (hole.range.overlaps(range)) return meets(hole.range, "a hole");
  }
  bool inside_an_aperture = false;
  for (const Aperture& aperture : apertures_) {
    if (!aperture.range.overlaps(range)) continue;
    if (!aperture.takes(type)) return meets(aperture.range, "an aperture for something else");
    // RAM apertures only name parts of [mem_start, mem_end): RAM may reach past their edges.
    if (type != RegionType::default_memory && !aperture.range.contains(range)) {
      return outside(detail::operand(aperture.range), "crosses the edge of an aperture");
    }
    inside_an_aperture = true;
  }
  if (type == RegionType::default_memory) {
    if (range.min() < mem_start_ || range.max() >= mem_end_) {
      return outside(half_open(mem_start_, mem_end_), "where RAM may lie");
    }
  } else if (type != RegionType::firmware_memory && !inside_an_aperture && range.min() < mem_end_) {
    return outside(half_open(mem_end_, phys_end_), "where devices may lie");
  }
  return {};
}

Result<std::vector<RamPiece>> AddressSpaceLayout::plan_ram(
    std::span<const std::uint64_t> sizes) const {
  constexpr const char* operation = "AddressSpaceLayout::plan_ram";
  if (sizes.empty()) {
    return fail(
        {.code = Errc::invalid_argument, .operation = operation, .reason = "no node is given"});
  }

  // Right-open intervals are safe here: phys_end, the largest bound, is a 64-bit number.
  using Intervals = boost::icl::interval_set<std::uint64_t, std::less,
                                             boost::icl::right_open_interval<std::uint64_t>>;
  using Interval = Intervals::interval_type;
  Intervals available;
  if (mem_start_ < mem_end_) available += Interval(mem_start_, mem_end_);
  for (const Hole& hole : holes_)
    available -= Interval(hole.range.min(), hole.range.max() + 1);
  for (const Aperture& aperture : apertures_) {
    if (aperture.use == ApertureUse::ram) continue;
    available -= Interval(aperture.range.min(), aperture.range.max() + 1);
  }

  // RAM is mapped in pages, so a bound that cuts one leaves the rest of that page unused.
  Intervals whole_pages;
  for (const Interval& part : available) {
    const auto first = GuestAddress(part.lower()).align_up(page_size);
    const GuestAddress end = GuestAddress(part.upper()).align_down(page_size);
    if (first && *first < end) whole_pages += Interval(first->value(), end.value());
  }

  std::vector<RamPiece> pieces;
  auto area = whole_pages.begin();
  std::uint64_t next = area == whole_pages.end() ? 0 : area->lower();
  for (std::size_t node = 0; node < sizes.size(); ++node) {
    const std::uint64_t size = sizes[node];
    if (size == 0) {
      return fail({.code = Errc::zero_size,
                   .operation = operation,
                   .first = Operand::number(node),
                   .reason = "the node's number"});
    }
    if (size % page_size != 0) {
      return fail({.code = Errc::misaligned,
                   .operation = operation,
                   .first = Operand::size(size),
                   .second = Operand::size(page_size)});
    }
    std::uint64_t missing = size;
    while (missing != 0) {
      if (area == whole_pages.end()) {
        return fail({.code = Errc::no_space,
                     .operation = operation,
                     .first = Operand::size(size),
                     .second = half_open(mem_start_, mem_end_)});
      }
      const std::uint64_t left = area->upper() - next;
      const bool splits = missing > left;
      const std::uint64_t taken = !splits ? missing : left < min_below_hole ? 0 : left;
      if (taken != 0) {
        pieces.push_back({GuestAddress(next), taken, static_cast<std::uint32_t>(node)});
        next += taken;
        missing -= taken;
      }
      if (splits || next == area->upper()) {
        if (++area != whole_pages.end()) next = area->lower();
      }
    }
  }
  return pieces;
}

}  // namespace vmspace
