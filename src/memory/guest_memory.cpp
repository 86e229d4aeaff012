// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_memory.hpp"

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/guest_map.hpp"

namespace vmspace {

namespace {

using RegionPtr = GuestMemory::RegionPtr;

constexpr std::uint64_t top = ~std::uint64_t{0};

Operand operand(const MemoryRegion& region) {
  return detail::operand(region.guest_range());
}

/// The first region that ends at or above `address`.
std::vector<RegionPtr>::const_iterator first_reaching(const std::vector<RegionPtr>& regions,
                                                      GuestAddress address) {
  return std::ranges::lower_bound(regions, address, {},
                                  [](const RegionPtr& region) { return region->last_addr(); });
}

/// Where one region tracks, all do. All of those that join is news to whoever harvests.
Result<void> join_tracking(std::span<const RegionPtr> regions) {
  const auto tracks = [](const RegionPtr& region) { return region->dirty().is_enabled(); };
  if (std::ranges::none_of(regions, tracks)) return {};
  const auto started = detail::start_tracking(regions);
  if (!started) return fail(started.error());
  for (DirtyBitmap* bitmap : *started)
    bitmap->mark(0, bitmap->size());
  return {};
}

}  // namespace

GuestMemory::Map::Map(std::vector<RegionPtr> sorted,
                      std::span<const detail::TranslationEntry> entries)
    : regions(std::move(sorted)), table(entries) {
  by_host.reserve(regions.size());
  for (const RegionPtr& region : regions)
    by_host.push_back(region.get());
  // std::less orders pointers of different arrays too; operator< need not.
  std::ranges::sort(by_host, std::less<const std::byte*>{}, &MemoryRegion::host_base);
}

GuestMemory::GuestMemory(std::shared_ptr<const Map> map) noexcept
    : translator_(map->table.translator()), map_(std::move(map)) {}

Result<GuestMemory> GuestMemory::from_regions(std::vector<RegionPtr> regions) {
  constexpr const char* operation = "GuestMemory::from_regions";
  if (regions.size() > max_regions) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::number(regions.size()),
                 .second = Operand::number(max_regions)});
  }
  if (std::ranges::find(regions, nullptr) != regions.end()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "a region is a null pointer"});
  }
  std::ranges::sort(regions, {}, [](const RegionPtr& region) { return region->base(); });
  std::vector<detail::TranslationEntry> entries;
  entries.reserve(regions.size());
  const MemoryRegion* before = nullptr;
  for (const RegionPtr& region : regions) {
    if (before != nullptr && region->base() <= before->last_addr()) {
      return fail({.code = Errc::overlap,
                   .operation = operation,
                   .first = operand(*region),
                   .second = operand(*before)});
    }
    before = region.get();
    // What may not be read is no candidate for any access; range_error() still finds it.
    if (!allows(region->protection(), Protection::read)) continue;
    const bool writable = allows(region->protection(), Protection::write);
    entries.push_back({.first = region->base().value(),
                       .size = region->size(),
                       .host = region->host_base(),
                       .dirty = writable ? &region->dirty() : nullptr});
  }
  if (regions.empty()) return GuestMemory();
  auto map = std::make_shared<const Map>(std::move(regions), entries);
  if (auto ok = join_tracking(map->regions); !ok) return fail(ok.error());
  return GuestMemory(std::move(map));
}

namespace {

/// Whether the region's memory is a part of `options.backing`. A region that names a file is what
/// is in that file.
bool takes_part(const AddressSpaceRegion& description, const MapOptions& options) {
  return options.backing && description.is_mapped() &&
         description.backing().source != MemorySource::file;
}

using Descriptions = std::vector<const AddressSpaceRegion*>;

/// A region among `regions` that shares memory with these bytes of the backing; null when none does.
const MemoryRegion* find_alias(const Backing& backing, std::uint64_t offset, std::uint64_t size,
                               std::span<const RegionPtr> regions) {
  if (backing.is_anonymous() || !backing.is_shared()) return nullptr;  // each mapping is its own
  const auto begin = backing.offset() + offset;
  for (const RegionPtr& region : regions) {
    const MemoryMapping& mapping = region->mapping();
    if (mapping.backing() == backing && mapping.file_offset() < begin + size &&
        begin < mapping.file_offset() + mapping.size()) {
      return region.get();
    }
  }
  return nullptr;
}

/// Whether the backing has a part for each region that takes one, which no region in `kept` has
/// already; asked before anything is mapped.
Result<void> check_parts(const Descriptions& descriptions, std::span<const RegionPtr> kept,
                         const MapOptions& options) {
  if (!options.backing) return {};
  const std::uint64_t size = options.backing->size();
  std::uint64_t left = size - std::min(options.backing_offset, size);
  for (const AddressSpaceRegion* region : descriptions) {
    const AddressSpaceRegion& description = *region;
    if (!takes_part(description, options)) continue;
    if (description.size() > left) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = "GuestMemory::map",
                   .first = detail::operand(description.guest_range()),
                   .second = Operand::size(size),
                   .reason = "the backing is too short for all the regions together",
                   .text = description.name()});
    }
    if (const MemoryRegion* alias =
            find_alias(*options.backing, size - left, description.size(), kept)) {
      return fail({.code = Errc::overlap,
                   .operation = "GuestMemory::remap",
                   .first = detail::operand(description.guest_range()),
                   .second = operand(*alias),
                   .reason = "in the backing: set backing_offset behind the parts in use",
                   .text = description.name()});
    }
    left -= description.size();
  }
  return {};
}

/// Maps the described regions, then populates those that want it; appends them to `regions`, with
/// which they share no part of a backing.
Result<void> map_descriptions(const Descriptions& descriptions, const MapOptions& options,
                              std::vector<RegionPtr>& regions) {
  if (auto ok = check_parts(descriptions, regions, options); !ok) return ok;
  std::uint64_t next_part = options.backing_offset;
  MapOptions mapping = options;
  mapping.defer_populate = true;
  std::vector<RegionPtr> to_populate;
  for (const AddressSpaceRegion* region : descriptions) {
    const AddressSpaceRegion& description = *region;
    const bool part = takes_part(description, options);
    mapping.backing = part ? options.backing : std::nullopt;
    mapping.backing_offset = part ? std::exchange(next_part, next_part + description.size()) : 0;
    auto mapped = MemoryRegion::map(description, mapping);
    if (!mapped) return fail(mapped.error());
    if (description.wants_populate() && !options.defer_populate) to_populate.push_back(*mapped);
    regions.push_back(std::move(*mapped));
  }
  if (to_populate.empty()) return {};
  return populate(to_populate, options.populate);
}

bool differ_in_base_only(const AddressSpaceRegion& a, const AddressSpaceRegion& b) {
  RegionOptions moved = a.options();
  moved.base = b.base();
  return moved == b.options();
}

/// An error if `description`, which is to be mapped anew, looks like a region that is mapped and
/// would be let go: what that holds would be lost.
Result<void> check_new(const AddressSpaceRegion& description, std::span<const RegionPtr> leaving) {
  for (const RegionPtr& region : leaving) {
    const bool in_place = description.range().overlaps(region->description().range());
    if (!in_place && !differ_in_base_only(description, region->description())) continue;
    return fail({.code = Errc::bad_state,
                 .operation = "GuestMemory::remap",
                 .first = detail::operand(description.guest_range()),
                 .second = operand(*region),
                 .reason = in_place ? "another region is mapped here: let it go first"
                                    : "a region like this would be let go: let it go first"});
  }
  return {};
}

}  // namespace

Result<GuestMemory> GuestMemory::map(const AddressSpaceBase& space, const MapOptions& options) {
  return GuestMemory().remap(space, options);
}

Result<GuestMemory> GuestMemory::remap(const AddressSpaceBase& after,
                                       const MapOptions& options) const {
  std::vector<RegionPtr> kept;
  Descriptions added;
  for (const AddressSpaceRegion& description : after) {
    if (!description.is_mapped()) continue;
    RegionPtr region = find_region(description.base());
    if (region != nullptr && region->description() == description) {
      kept.push_back(std::move(region));
    } else {
      added.push_back(&description);
    }
  }
  std::vector<RegionPtr> leaving;  // both are sorted by address
  std::ranges::set_difference(regions(), kept, std::back_inserter(leaving), {}, &MemoryRegion::base,
                              &MemoryRegion::base);
  for (const AddressSpaceRegion* description : added) {
    if (auto ok = check_new(*description, leaving); !ok) return fail(ok.error());
  }
  if (auto ok = map_descriptions(added, options, kept); !ok) return fail(ok.error());
  return from_regions(std::move(kept));
}

Result<GuestMemory> GuestMemory::create(std::span<const GuestRange> ram) {
  std::vector<RegionPtr> regions;
  regions.reserve(ram.size());
  for (const GuestRange& range : ram) {
    auto description = AddressSpaceRegion::make({.name = "ram",
                                                 .base = range.base,
                                                 .size = range.size,
                                                 .backing = {.source = MemorySource::shmem}});
    if (!description) return fail(description.error());
    auto region = MemoryRegion::map(*description);
    if (!region) return fail(region.error());
    regions.push_back(std::move(*region));
  }
  return from_regions(std::move(regions));
}

Result<GuestMemory> GuestMemory::with_region(RegionPtr region) const {
  std::vector<RegionPtr> changed;
  changed.reserve(regions().size() + 1);
  changed.assign(regions().begin(), regions().end());
  changed.push_back(std::move(region));
  return from_regions(std::move(changed));
}

Result<GuestMemory> GuestMemory::without_region(GuestAddress base) const {
  std::vector<RegionPtr> changed(regions().begin(), regions().end());
  const auto removed =
      std::erase_if(changed, [&](const RegionPtr& region) { return region->base() == base; });
  if (removed == 0) {
    return fail({.code = Errc::not_found,
                 .operation = "GuestMemory::without_region",
                 .first = Operand::address(base.value()),
                 .reason = "no region begins here"});
  }
  return from_regions(std::move(changed));
}

std::span<const RegionPtr> GuestMemory::regions() const noexcept {
  if (map_ == nullptr) return {};
  return map_->regions;
}

RegionPtr GuestMemory::find_region(GuestAddress address) const {
  if (map_ == nullptr) return nullptr;
  const auto found = first_reaching(map_->regions, address);
  if (found == map_->regions.end() || address < (*found)->base()) return nullptr;
  return *found;
}

bool GuestMemory::contains(GuestRange range, Access access) const noexcept {
  return reachable(range, access) == range.size;
}

std::uint64_t GuestMemory::total_size() const noexcept {
  std::uint64_t total = 0;
  for (const RegionPtr& region : regions())
    total += region->size();
  return total;
}

std::optional<GuestAddress> GuestMemory::last_addr() const noexcept {
  if (regions().empty()) return std::nullopt;
  return regions().back()->last_addr();
}

Result<const std::byte*> GuestMemory::const_host_address(GuestRange range) const {
  constexpr const char* operation = "GuestMemory::const_host_address";
  if (range.empty()) {
    return fail({.code = Errc::zero_size,
                 .operation = operation,
                 .second = Operand::address(range.base.value())});
  }
  VMSPACE_TRY(check(operation, range, Access::read));
  const detail::Piece piece = detail::piece_at(translator_, range.base.value(), range.size);
  if (piece.size != range.size) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = operand(*find_region(range.base)),
                 .reason = "crosses into another region"});
  }
  return piece.host;
}

Result<std::byte*> GuestMemory::host_address(GuestRange range) const {
  constexpr const char* operation = "GuestMemory::host_address";
  VMSPACE_TRY_IN(operation, const_host_address(range));
  const detail::Piece piece = detail::piece_at(translator_, range.base.value(), range.size);
  if (piece.dirty == nullptr) return fail(range_error(operation, range, Access::write));
  return piece.host;
}

std::optional<GuestAddress> GuestMemory::guest_address(const void* host) const noexcept {
  if (map_ == nullptr) return std::nullopt;
  const auto* const byte = static_cast<const std::byte*>(host);
  const auto above = std::ranges::upper_bound(map_->by_host, byte, std::less<const std::byte*>{},
                                              &MemoryRegion::host_base);
  if (above == map_->by_host.begin()) return std::nullopt;
  const MemoryRegion& region = **std::prev(above);
  const auto offset = static_cast<std::uint64_t>(byte - region.host_base());
  if (offset >= region.size()) return std::nullopt;
  return GuestAddress(region.base().value() + offset);
}

std::uint64_t GuestMemory::reachable(GuestRange range, Access access) const noexcept {
  std::uint64_t done = 0;
  while (done < range.size) {
    const std::uint64_t gpa = range.base.value() + done;
    if (gpa < range.base.value()) break;  // passed 2^64
    const detail::Piece piece = detail::piece_at(translator_, gpa, range.size - done);
    if (piece.size == 0 || (access == Access::write && piece.dirty == nullptr)) break;
    done += piece.size;
  }
  return done;
}

Result<void> GuestMemory::check(const char* operation, GuestRange range, Access access) const {
  if (reachable(range, access) == range.size) return {};
  return fail(range_error(operation, range, access));
}

Error GuestMemory::range_error(const char* operation, GuestRange range, Access access) const {
  const std::uint64_t base = range.base.value();
  if (range.size - 1 > top - base) {
    return {.code = Errc::overflow,
            .operation = operation,
            .first = Operand::address(base),
            .second = Operand::size(range.size)};
  }
  const std::uint64_t reached = reachable(range, access);
  const RegionPtr stop = find_region(GuestAddress(base + reached));
  if (stop != nullptr) {
    return {.code = Errc::access_denied,
            .operation = operation,
            .first = detail::operand(range),
            .second = operand(*stop),
            .reason = access == Access::write ? "may not be written" : "may not be read"};
  }
  if (reached == 0) {
    return {.code = Errc::not_found, .operation = operation, .first = Operand::address(base)};
  }
  return {.code = Errc::out_of_bounds,
          .operation = operation,
          .first = detail::operand(range),
          .second = operand(*find_region(GuestAddress(base + (reached - 1)))),
          .reason = "runs into a gap"};
}

Error GuestMemory::integer_error(const char* operation, GuestAddress address, std::size_t size,
                                 Access access) const {
  if (!address.is_aligned(size)) {
    return {.code = Errc::misaligned,
            .operation = operation,
            .first = Operand::address(address.value()),
            .second = Operand::size(size)};
  }
  return range_error(operation, {.base = address, .size = size}, access);
}

Result<void> GuestMemory::check_invariants() const noexcept {
  const char* const rule = broken_rule();
  if (rule == nullptr) return {};
  return fail(
      {.code = Errc::corrupt, .operation = "GuestMemory::check_invariants", .reason = rule});
}

const char* GuestMemory::broken_rule() const noexcept {
  if (map_ == nullptr) {
    return translator_.block == detail::TranslationTable::empty().block
               ? nullptr
               : "no map, but a translator that points into one";
  }
  if (translator_.block != map_->table.translator().block) {
    return "the translator is not that of the map";
  }
  if (map_->regions.empty() || map_->regions.size() > max_regions) return "the number of regions";
  std::size_t readable = 0;
  const MemoryRegion* before = nullptr;
  for (const RegionPtr& region : map_->regions) {
    if (before != nullptr && region->base() <= before->last_addr()) return "unsorted, or overlaps";
    before = region.get();
    if (!allows(region->protection(), Protection::read)) continue;
    ++readable;
    for (const std::uint64_t offset : {std::uint64_t{0}, region->size() - 1}) {
      const auto* entry = translator_.find(region->base().value() + offset, 1);
      if (entry == nullptr) return "a readable region that is not found";
      if (entry->host != region->host_base()) return "translation to another region";
    }
  }
  if (readable != map_->table.entries().size()) return "the number of entries";
  return nullptr;
}

}  // namespace vmspace
