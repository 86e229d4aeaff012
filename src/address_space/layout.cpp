// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/layout.hpp"

#include <algorithm>
#include <string>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

#include "address_space/guest_page_size.hpp"
#include "address_space/known_values.hpp"

namespace vmspace {

using namespace literals;

namespace {

using detail::guest_page_size;

constexpr std::uint64_t bytes_per_bus = 1_MiB;  // 32 devices of 8 functions of 4 KiB (PCIe, ECAM)
constexpr unsigned max_buses = 256;

/// [min, end), for windows whose ends are known to be in order.
Range window(std::uint64_t min, std::uint64_t end) {
  return *Range::make(min, end - 1);
}

template <typename Part>
Result<void> check_parts(std::vector<Part>& parts, std::uint64_t phys_max, const char* operation) {
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.range < b.range; });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Range& range = parts[i].range;
    if (range.max() > phys_max) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = detail::operand(range),
                   .second = Operand::range(0, phys_max),
                   .reason = "apertures and holes must end at or below phys_max",
                   .text = parts[i].name});
    }
    if (i > 0 && parts[i - 1].range.overlaps(range)) {
      return fail({.code = Errc::overlap,
                   .operation = operation,
                   .first = detail::operand(range),
                   .second = detail::operand(parts[i - 1].range),
                   .reason = "two apertures, or two holes, must not overlap",
                   .text = {parts[i].name, parts[i - 1].name}});
    }
  }
  return {};
}

/// What both machines check of their options. `least` is the lowest mem_end that leaves room for
/// what the machine puts below it.
Result<void> check_machine(const char* operation, unsigned bits, Range allowed_bits,
                           const char* bits_rule, unsigned buses,
                           std::optional<std::uint64_t> mem_end, std::uint64_t least) {
  const auto invalid = [&](std::uint64_t value, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(value),
                 .reason = reason});
  };
  if (!allowed_bits.contains(bits)) return invalid(bits, bits_rule);
  if (buses > max_buses) return invalid(buses, "ecam_buses must be at most 256");
  const std::uint64_t phys_end = std::uint64_t{1} << bits;
  if (mem_end && (*mem_end < least || *mem_end > phys_end)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::address(*mem_end),
                 .second = Operand::range(least, phys_end),
                 .reason = "mem_end must lie within this range"});
  }
  if (mem_end && *mem_end % guest_page_size != 0) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = Operand::address(*mem_end),
                 .second = Operand::size(guest_page_size),
                 .reason = "mem_end must be a multiple of 4 KiB"});
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
  if (options.ram && options.ram->max() > options.phys_max) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(*options.ram),
                 .second = Operand::range(0, options.phys_max),
                 .reason = "the range for RAM must end at or below phys_max"});
  }
  VMSPACE_TRY(check_parts(options.apertures, options.phys_max, operation));
  VMSPACE_TRY(check_parts(options.holes, options.phys_max, operation));
  for (auto aperture = options.apertures.begin(); aperture != options.apertures.end(); ++aperture) {
    const Range& range = aperture->range;
    if (!is_known(aperture->use)) {
      return fail({.code = Errc::invalid_argument,
                   .operation = operation,
                   .first = Operand::number(static_cast<std::uint64_t>(aperture->use)),
                   .reason = "not a value of ApertureUse",
                   .text = aperture->name});
    }
    const auto same_name = [&](const Aperture& other) { return other.name == aperture->name; };
    if (aperture->name.empty() ||
        std::find_if(options.apertures.begin(), aperture, same_name) != aperture) {
      return fail({.code = Errc::invalid_argument,
                   .operation = operation,
                   .first = detail::operand(range),
                   .reason = "aperture names must be unique and not empty",
                   .text = aperture->name});
    }
    if (aperture->use == ApertureUse::ram && (!options.ram || !options.ram->contains(range))) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = detail::operand(range),
                   .second = options.ram ? detail::operand(*options.ram) : Operand{},
                   .reason = "an aperture for RAM must lie within the range for RAM",
                   .text = aperture->name});
    }
    for (const Hole& hole : options.holes) {
      if (hole.range.overlaps(range) && !range.contains(hole.range)) {
        return fail({.code = Errc::overlap,
                     .operation = operation,
                     .first = detail::operand(hole.range),
                     .second = detail::operand(range),
                     .reason = "a hole must lie inside one aperture or outside all of them",
                     .text = {hole.name, aperture->name}});
      }
    }
  }
  for (const Hole& hole : options.holes) {
    if (is_known(hole.kind)) continue;
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(static_cast<std::uint64_t>(hole.kind)),
                 .reason = "not a value of HoleKind",
                 .text = hole.name});
  }
  return AddressSpaceLayout(std::move(options));
}

Result<AddressSpaceLayout> AddressSpaceLayout::x86_64(const X86LayoutOptions& options) {
  constexpr const char* operation = "AddressSpaceLayout::x86_64";
  constexpr std::uint64_t mmio_begin = 0xc000'0000;
  constexpr std::uint64_t platform_begin = 0xfc00'0000;
  constexpr std::uint64_t high_begin = 4_GiB;
  constexpr Range hypertransport = Range::of(0xfd'0000'0000, 0xff'ffff'ffff);

  VMSPACE_TRY(check_machine(operation, options.phys_bits, Range::of(36, 52),
                            "phys_bits must be 36 to 52", options.ecam_buses, options.mem_end,
                            high_begin));
  const std::uint64_t phys_end = std::uint64_t{1} << options.phys_bits;
  const std::uint64_t mem_end = options.mem_end.value_or(phys_end / 2);
  const std::uint64_t ecam_end = mmio_begin + options.ecam_buses * bytes_per_bus;

  LayoutOptions parts{.phys_max = phys_end - 1, .ram = window(0, mem_end)};
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
  return VMSPACE_TRY_IN(operation, make(std::move(parts)));
}

Result<AddressSpaceLayout> AddressSpaceLayout::aarch64(const Aarch64LayoutOptions& options) {
  constexpr const char* operation = "AddressSpaceLayout::aarch64";
  constexpr std::uint64_t mmio_begin = 256_MiB;
  constexpr std::uint64_t ram_begin = 1_GiB;

  VMSPACE_TRY(check_machine(operation, options.ipa_bits, Range::of(32, 52),
                            "ipa_bits must be 32 to 52", options.ecam_buses, options.mem_end,
                            ram_begin + guest_page_size));
  const std::uint64_t phys_end = std::uint64_t{1} << options.ipa_bits;
  const std::uint64_t mem_end = options.mem_end.value_or(phys_end / 2);
  const std::uint64_t ecam_end = mmio_begin + options.ecam_buses * bytes_per_bus;

  LayoutOptions parts{.phys_max = phys_end - 1, .ram = window(ram_begin, mem_end)};
  parts.apertures = {{"platform", window(0, mmio_begin), ApertureUse::platform},
                     {"mmio_low", window(ecam_end, ram_begin), ApertureUse::mmio},
                     {"ram", window(ram_begin, mem_end), ApertureUse::ram}};
  const auto add = [&](const char* name, std::uint64_t min, std::uint64_t end, ApertureUse use) {
    if (min < end) parts.apertures.push_back({name, window(min, end), use});
  };
  add("ecam", mmio_begin, ecam_end, ApertureUse::platform);
  add("mmio_high", mem_end, phys_end, ApertureUse::mmio);
  return VMSPACE_TRY_IN(operation, make(std::move(parts)));
}

const Aperture* AddressSpaceLayout::find_aperture(std::string_view name) const noexcept {
  const auto found = std::find_if(apertures_.begin(), apertures_.end(),
                                  [&](const Aperture& aperture) { return aperture.name == name; });
  return found == apertures_.end() ? nullptr : &*found;
}

Result<void> AddressSpaceLayout::check_place(RegionType type, const Range& range) const {
  constexpr const char* operation = "AddressSpaceLayout::check_place";
  const auto outside = [&](const Range& bounds, const char* reason, const ErrorText& text = {}) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = detail::operand(bounds),
                 .reason = reason,
                 .text = text});
  };
  const auto meets = [&](const Range& other, const char* reason, const std::string& name) {
    return fail({.code = Errc::overlap,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = detail::operand(other),
                 .reason = reason,
                 .text = {{}, name}});
  };
  if (!is_known(type)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(static_cast<std::uint64_t>(type)),
                 .reason = "not a value of RegionType"});
  }
  if (range.max() > phys_max_) {
    return outside(detail::unchecked_range(0, phys_max_),
                   "the region must end at or below phys_max");
  }
  for (const Hole& hole : holes_) {
    if (hole.range.overlaps(range))
      return meets(hole.range, "the layout allows nothing in this hole", hole.name);
  }
  bool inside_an_aperture = false;
  for (const Aperture& aperture : apertures_) {
    if (!aperture.range.overlaps(range)) continue;
    if (!aperture.takes(type)) {
      return meets(aperture.range, "this aperture does not take regions of this type",
                   aperture.name);
    }
    // RAM apertures only name parts of the range for RAM: RAM may reach past their edges.
    if (type != RegionType::default_memory && !aperture.range.contains(range)) {
      return outside(aperture.range, "the region must not cross the edge of this aperture",
                     {{}, aperture.name});
    }
    inside_an_aperture = true;
  }
  if (type == RegionType::default_memory) {
    if (!ram_) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = detail::operand(range),
                   .reason = "the layout has no RAM"});
    }
    if (!ram_->contains(range))
      return outside(*ram_, "RAM must lie within the layout's range for RAM");
  } else if (type != RegionType::firmware_memory && !inside_an_aperture && ram_ &&
             range.min() <= ram_->max()) {
    // RAM that ends with the address space leaves no place for devices, and no range to name.
    const std::uint64_t first = std::min(ram_->max(), phys_max_ - 1) + 1;
    return outside(
        detail::unchecked_range(first, phys_max_),
        "device regions must lie inside an MMIO or platform aperture, or above the range for RAM");
  }
  return {};
}

}  // namespace vmspace
