// SPDX-License-Identifier: Apache-2.0
//
// The map of a handover to bytes.

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "vmspace/base/try.hpp"

#include "snapshot/handover_fields.hpp"
#include "snapshot/handover_format.hpp"

namespace vmspace::detail {

namespace {

class Writer {
 public:
  void u8(std::uint8_t value) { bytes_.push_back(std::byte{value}); }
  template <typename Enum>
  void value(Enum value) {
    u8(static_cast<std::uint8_t>(value));
  }
  void u32(std::uint32_t value) { put(Le32(value)); }
  void u64(std::uint64_t value) { put(Le64(value)); }
  void range(const Range& value) {
    u64(value.min());
    u64(value.max());
  }
  void count(std::size_t value) { u32(static_cast<std::uint32_t>(value)); }

  [[nodiscard]] Result<void> name(std::string_view text) {
    if (text.size() > handover_max_name) {
      return exceeds(send_operation, text.size(), handover_max_name,
                     "a name or an owner has at most 1,024 bytes", text);
    }
    if (!is_printable(text)) {
      return fail({.code = Errc::invalid_argument,
                   .operation = send_operation,
                   .reason = "names and owners must consist of printable characters, in UTF-8",
                   .text = text});
    }
    put_text(text);
    return {};
  }
  [[nodiscard]] Result<void> path(std::string_view text) {
    if (text.size() > handover_max_path) {
      return exceeds(send_operation, text.size(), handover_max_path,
                     "a path has at most 4,095 bytes", text);
    }
    if (text.find('\0') != std::string_view::npos) {
      return fail({.code = Errc::invalid_argument,
                   .operation = send_operation,
                   .reason = "a path must not contain a null character",
                   .text = text});
    }
    put_text(text);
    return {};
  }

  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }

 private:
  template <typename T>
  void put(const T& value) {
    append(&value, sizeof value);
  }
  void put_text(std::string_view text) {
    count(text.size());
    if (!text.empty()) append(text.data(), text.size());
  }
  // Not vector::insert: optimised, g++ 12 warns of an overflow that can't be (-Wstringop-overflow).
  void append(const void* from, std::size_t size) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + size);
    std::memcpy(bytes_.data() + at, from, size);
  }

  std::vector<std::byte> bytes_;
};

Result<void> write_layout(Writer& out, const LayoutOptions& layout) {
  const std::size_t windows = layout.apertures.size() + layout.holes.size();
  if (windows > handover_max_windows) {
    return exceeds(send_operation, windows, handover_max_windows, too_many_windows);
  }
  out.u64(layout.phys_max);
  out.u8(layout.ram ? 1 : 0);
  out.range(layout.ram.value_or(Range::point(0)));
  out.count(layout.apertures.size());
  for (const Aperture& aperture : layout.apertures) {
    VMSPACE_TRY(out.name(aperture.name));
    out.range(aperture.range);
    out.value(aperture.use);
  }
  out.count(layout.holes.size());
  for (const Hole& hole : layout.holes) {
    VMSPACE_TRY(out.name(hole.name));
    out.range(hole.range);
    out.value(hole.kind);
  }
  return {};
}

void write_place(Writer& out, const HandoverPlace& place) {
  out.u32(place.file);
  out.u64(place.offset);
  out.value(place.numa_mode);
  out.u64(place.block_size);
  out.u64(place.slot_size);
  out.count(place.present.size());
  for (const PresentBlocks::Run& run : place.present) {
    out.u64(run.offset);
    out.u64(run.size);
  }
}

std::uint32_t flags_of(const HandoverRegion& region) {
  using namespace handover_flag;
  const RegionOptions& options = region.options;
  const auto flag = [](bool set, std::uint32_t bit) { return set ? bit : 0; };
  return flag(options.numa_node.has_value(), has_node) | flag(options.huge_pages, huge_pages) |
         flag(options.hotplug, hotplug) | flag(options.populate, populate) |
         flag(options.backing.discardable, discardable) |
         flag(options.backing.fd.has_value(), by_descriptor) | flag(region.parked, parked) |
         flag(region.place.has_value(), mapped) |
         flag(region.place && region.place->guarded, guarded);
}

Result<void> write_region(Writer& out, const HandoverRegion& region) {
  const RegionOptions& options = region.options;
  VMSPACE_TRY(out.name(options.name));
  VMSPACE_TRY(out.name(options.owner));
  out.value(options.type);
  out.u64(options.base.value());
  out.u64(options.size);
  out.value(options.protection);
  out.value(options.backing.source);
  VMSPACE_TRY(out.path(options.backing.path));
  out.u64(options.backing.offset);
  out.u64(options.backing.page_size);
  out.value(options.backing.sharing);
  out.u32(options.numa_node.value_or(0));
  out.u32(flags_of(region));
  if (!region.place) return {};
  if (region.place->present.size() > handover_max_runs) {
    return exceeds(send_operation, region.place->present.size(), handover_max_runs, too_many_runs,
                   options.name);
  }
  write_place(out, *region.place);
  return {};
}

}  // namespace

Result<std::vector<std::byte>> encode_handover(const HandoverMap& map) {
  Writer out;
  VMSPACE_TRY(write_layout(out, map.layout));
  for (const HandoverFile& file : map.files) {
    out.u64(file.offset);
    out.u64(file.size);
    out.u64(file.page_size);
    out.u8(file.discardable ? 1 : 0);
  }
  if (map.regions.size() > handover_max_regions) {
    return exceeds(send_operation, map.regions.size(), handover_max_regions, too_many_regions);
  }
  const auto parked_regions =
      static_cast<std::uint64_t>(std::ranges::count(map.regions, true, &HandoverRegion::parked));
  if (parked_regions > handover_max_parked) {
    return exceeds(send_operation, parked_regions, handover_max_parked, too_many_parked);
  }
  out.count(map.regions.size());
  BlockBudget blocks;
  for (const HandoverRegion& region : map.regions) {
    VMSPACE_TRY(write_region(out, region));
    if (!blocks.take(region)) {
      return exceeds(send_operation, region.place->present.size(), handover_max_runs,
                     too_many_blocks, region.options.name);
    }
  }
  if (out.size() > handover_max_map) {
    return exceeds(send_operation, out.size(), handover_max_map,
                   "the map of a handover has at most 16 MiB");
  }
  return out.take();
}

}  // namespace vmspace::detail
