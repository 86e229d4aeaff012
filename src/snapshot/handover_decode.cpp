// SPDX-License-Identifier: Apache-2.0
//
// The map of a handover from bytes, none of which is trusted.

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "base/corrupt.hpp"
#include "host/known_values.hpp"
#include "snapshot/handover_fields.hpp"
#include "snapshot/handover_format.hpp"

namespace vmspace::detail {

namespace {

/// Reads fields one after another. Once something is wrong it stays so, and all else reads as 0: the
/// caller asks in every turn of a loop, and at the end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  [[nodiscard]] std::uint8_t u8() {
    std::uint8_t value = 0;
    get(value);
    return value;
  }
  /// Whoever uses the value checks that it is a named one, unless this does.
  template <typename Enum>
  [[nodiscard]] Enum value() {
    return static_cast<Enum>(u8());
  }
  [[nodiscard]] bool flag() {
    const std::uint8_t value = u8();
    if (value > 1) refuse("a flag must be 0 or 1");
    return value == 1;
  }
  [[nodiscard]] std::uint32_t u32() {
    Le32 value = 0;
    get(value);
    return value;
  }
  [[nodiscard]] std::uint64_t u64() {
    Le64 value = 0;
    get(value);
    return value;
  }
  [[nodiscard]] Range range() {
    const std::uint64_t first = u64();
    const std::uint64_t last = u64();
    const auto range = Range::make(first, last);
    if (!range) refuse("the bounds of a range are inverted");
    return range.value_or(Range::point(0));
  }
  [[nodiscard]] std::uint32_t count(std::uint32_t limit, const char* reason) {
    const std::uint32_t value = u32();
    if (value <= limit) return value;
    refuse(reason);
    return 0;
  }
  [[nodiscard]] std::string name() {
    std::string text = get_text(handover_max_name);
    if (!is_printable(text)) refuse("a name or an owner has unprintable characters");
    return text;
  }
  [[nodiscard]] std::string path() {
    std::string text = get_text(handover_max_path);
    if (text.find('\0') != std::string::npos) refuse("a path contains a null character");
    return text;
  }

  void refuse(const char* reason) {
    if (wrong_ == nullptr) wrong_ = reason;
    left_ = {};
  }
  [[nodiscard]] bool ok() const { return wrong_ == nullptr; }
  /// The first thing that was wrong, or that something is left.
  [[nodiscard]] const char* wrong() const {
    if (wrong_ != nullptr) return wrong_;
    return left_.empty() ? nullptr : "the map is longer than what it says";
  }

 private:
  template <typename T>
  void get(T& value) {
    if (left_.size() < sizeof value) return refuse("the map is truncated");
    std::memcpy(&value, left_.data(), sizeof value);
    left_ = left_.subspan(sizeof value);
  }
  [[nodiscard]] std::string get_text(std::uint32_t limit) {
    const std::uint32_t size = count(limit, "a text is too long");
    if (left_.size() < size) refuse("the map is truncated");
    if (!ok()) return {};
    std::string text(reinterpret_cast<const char*>(left_.data()), size);
    left_ = left_.subspan(size);
    return text;
  }

  std::span<const std::byte> left_;
  const char* wrong_ = nullptr;
};

LayoutOptions read_layout(Reader& in) {
  LayoutOptions layout{.phys_max = in.u64()};
  const bool has_ram = in.flag();
  const Range ram = in.range();
  if (has_ram) {
    layout.ram = ram;
  } else if (ram != Range::point(0)) {
    in.refuse("without RAM, its range must be 0");
  }
  const std::uint32_t apertures = in.count(handover_max_windows, too_many_windows);
  for (std::uint32_t i = 0; i < apertures && in.ok(); ++i) {
    std::string name = in.name();
    const Range range = in.range();
    layout.apertures.push_back({std::move(name), range, in.value<ApertureUse>()});
  }
  const std::uint32_t holes = in.count(handover_max_windows - apertures, too_many_windows);
  for (std::uint32_t i = 0; i < holes && in.ok(); ++i) {
    std::string name = in.name();
    const Range range = in.range();
    layout.holes.push_back({std::move(name), range, in.value<HoleKind>()});
  }
  return layout;
}

HandoverPlace read_place(Reader& in, std::uint32_t files) {
  HandoverPlace place{.file = in.u32(), .offset = in.u64(), .numa_mode = in.value<NumaMode>()};
  if (place.file >= files) in.refuse("a region must name one of the files");
  if (!is_known(place.numa_mode)) in.refuse("not a value of NumaMode");
  place.block_size = in.u64();
  place.slot_size = in.u64();
  const std::uint32_t runs = in.count(handover_max_runs, too_many_runs);
  if (place.block_size == 0 && (place.slot_size != 0 || runs != 0)) {
    in.refuse("a region that is not in blocks has neither slots nor runs");
  }
  for (std::uint32_t i = 0; i < runs && in.ok(); ++i) {
    const std::uint64_t offset = in.u64();
    place.present.push_back({offset, in.u64()});
  }
  return place;
}

HandoverRegion read_region(Reader& in, std::uint32_t files) {
  using namespace handover_flag;
  HandoverRegion region;
  RegionOptions& options = region.options;
  options.name = in.name();
  options.owner = in.name();
  options.type = in.value<RegionType>();
  options.base = GuestAddress(in.u64());
  options.size = in.u64();
  options.protection = in.value<Protection>();
  options.backing.source = in.value<MemorySource>();
  options.backing.path = in.path();
  options.backing.offset = in.u64();
  options.backing.page_size = in.u64();
  options.backing.sharing = in.value<Sharing>();
  const std::uint32_t node = in.u32();
  const std::uint32_t flags = in.u32();
  if ((flags & ~all_flags) != 0) in.refuse("a region has unknown flags");
  const auto has = [flags](std::uint32_t bit) { return (flags & bit) != 0; };
  if (has(has_node)) options.numa_node = node;
  if (!has(has_node) && node != 0) in.refuse("without a node, its number must be 0");
  options.huge_pages = has(huge_pages);
  options.hotplug = has(hotplug);
  options.populate = has(populate);
  options.backing.discardable = has(discardable);
  if (has(by_descriptor)) options.backing.fd = 0;
  region.parked = has(parked);
  if (has(mapped)) {
    region.place = read_place(in, files);
    region.place->guarded = has(guarded);
    if (region.parked) in.refuse("a parked region is not mapped");
    if (options.backing.source == MemorySource::none ||
        options.backing.source == MemorySource::device ||
        options.backing.source == MemorySource::external) {
      in.refuse("memory that is handed over must be that of a file");
    }
  } else if (has(guarded) || has(by_descriptor)) {
    in.refuse("a region that is not mapped has no descriptor");
  }
  return region;
}

}  // namespace

Result<void> check_handover_head(const HandoverHead& head) {
  if (head.magic != handover_magic)
    return corrupt(receive_operation, "what the peer sends is not a handover");
  if (head.version > handover_version) {
    return fail({.code = Errc::unsupported,
                 .operation = receive_operation,
                 .first = Operand::number(head.version),
                 .second = Operand::number(handover_version),
                 .reason = "the format is newer than this library"});
  }
  if (head.version == 0) return corrupt(receive_operation, "version 0 does not exist");
  if (head.flags > handover_tracked || head.reserved != 0) {
    return corrupt(receive_operation, "unknown flags are set, or reserved bytes are not 0");
  }
  if (head.files > GuestMemory::max_regions) {
    static_assert(GuestMemory::max_regions == 512, "as the text says");
    return corrupt(receive_operation, "a handover has at most 512 files",
                   Operand::number(head.files));
  }
  if (head.map_size > handover_max_map) {
    return exceeds(receive_operation, head.map_size, handover_max_map,
                   "the map of a handover has at most 16 MiB");
  }
  return {};
}

Result<HandoverMap> decode_handover(std::span<const std::byte> bytes, std::uint32_t files) {
  Reader in(bytes);
  HandoverMap map{.layout = read_layout(in)};
  for (std::uint32_t i = 0; i < files && in.ok(); ++i) {
    HandoverFile file{.offset = in.u64(), .size = in.u64(), .page_size = in.u64()};
    file.discardable = in.flag();
    map.files.push_back(file);
  }
  const std::uint32_t regions = in.count(handover_max_regions, too_many_regions);
  std::vector<bool> used(files);
  std::uint32_t parked_regions = 0;
  std::uint32_t mapped_regions = 0;
  BlockBudget blocks;
  for (std::uint32_t i = 0; i < regions && in.ok(); ++i) {
    HandoverRegion region = read_region(in, files);
    if (!in.ok()) break;
    if (region.parked && ++parked_regions > handover_max_parked) in.refuse(too_many_parked);
    if (!region.parked && parked_regions != 0) in.refuse("parked regions must come last");
    if (!blocks.take(region)) in.refuse(too_many_blocks);
    if (region.place) {
      used[region.place->file] = true;
      if (++mapped_regions > GuestMemory::max_regions) {
        in.refuse("a handover has at most 512 mapped regions");
      }
    }
    map.regions.push_back(std::move(region));
  }
  if (in.ok() && std::ranges::find(used, false) != used.end()) {
    in.refuse("every file must be that of a mapped region");
  }
  if (const char* const wrong = in.wrong()) {
    return corrupt(receive_operation, wrong);
  }
  return map;
}

}  // namespace vmspace::detail
