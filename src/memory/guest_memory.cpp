// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_memory.hpp"

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/guest_memory_impl.hpp"
#include "memory/start_tracking.hpp"

namespace vmspace {

namespace {

bool is_readable(const MemoryRegion& region) {
  return allows(region.protection(), Protection::read);
}

/// If one region tracks, all do; everything in a region that joins counts as dirty.
Result<void> join_tracking(std::span<const MemoryRegionPtr> regions) {
  const auto tracks = [](const MemoryRegionPtr& region) { return region->dirty().is_enabled(); };
  if (std::ranges::none_of(regions, tracks)) return {};
  const auto started = VMSPACE_TRY(detail::start_tracking(regions));
  for (DirtyBitmap* bitmap : started)
    bitmap->mark(0, bitmap->size());
  return {};
}

/// A sorted list without some elements and with others, which are sorted as well.
template <typename T, typename IsGone, typename Key>
std::vector<T> with_changes_in(std::span<const T> before, IsGone is_gone,
                               const std::vector<T>& added, Key key) {
  std::vector<T> after;
  after.reserve(before.size() + added.size());
  auto next = added.begin();
  // std::less orders pointers of different arrays too; operator< need not.
  const std::less<> less;
  for (const T& element : before) {
    if (is_gone(element)) continue;
    while (next != added.end() && less(std::invoke(key, *next), std::invoke(key, element)))
      after.push_back(*next++);
    after.push_back(element);
  }
  after.insert(after.end(), next, added.end());
  return after;
}

/// The indices of the regions that entries are of; both are sorted by address.
std::vector<std::uint16_t> region_of_entries(std::span<const detail::TranslationEntry> entries,
                                             std::span<const MemoryRegionPtr> regions) {
  std::vector<std::uint16_t> result;
  result.reserve(entries.size());
  std::uint16_t region = 0;
  for (const detail::TranslationEntry& entry : entries) {
    while (regions[region]->base().value() != entry.first)
      ++region;
    result.push_back(region);
  }
  return result;
}

Result<void> check_overlap(const MemoryRegion& lower, const MemoryRegion& upper) {
  if (upper.base() > lower.last_addr()) return {};
  return fail({.code = Errc::overlap,
               .operation = "GuestMemory::with_changes",
               .first = detail::operand(upper.guest_range()),
               .second = detail::operand(lower.guest_range())});
}

/// `overlap` of a region with those beside it in a sorted list that has it.
Result<void> check_neighbours(std::span<const MemoryRegionPtr> sorted, const MemoryRegion& region) {
  auto at = std::ranges::lower_bound(sorted, region.base(), {},
                                     [](const MemoryRegionPtr& each) { return each->base(); });
  while (at->get() != &region)
    ++at;
  if (at != sorted.begin()) VMSPACE_TRY(check_overlap(**std::prev(at), region));
  if (std::next(at) != sorted.end()) VMSPACE_TRY(check_overlap(region, **std::next(at)));
  return {};
}

/// Of two regions in the order of their host addresses.
bool share_memory(const MemoryRegion* lower, const MemoryRegion* upper) {
  const auto first = reinterpret_cast<std::uintptr_t>(lower->host_base());
  return reinterpret_cast<std::uintptr_t>(upper->host_base()) - first < lower->size();
}

/// `overlap` of a region with one that has some of its memory. A byte of this process has one guest
/// address, and a dirty page is reported once.
Result<void> check_memory(std::span<const MemoryRegion* const> by_host,
                          const MemoryRegion& region) {
  auto at = std::ranges::lower_bound(by_host, region.host_base(), std::less<const std::byte*>{},
                                     &MemoryRegion::host_base);
  while (*at != &region)
    ++at;
  for (auto upper = at; upper != by_host.end() && upper - at < 2; ++upper) {
    if (upper == by_host.begin() || !share_memory(*std::prev(upper), *upper)) continue;
    const auto [first, second] = std::minmax(
        {(*std::prev(upper))->guest_range(), (*upper)->guest_range()},
        [](const GuestRange& one, const GuestRange& other) { return one.base < other.base; });
    return fail({.code = Errc::overlap,
                 .operation = "GuestMemory::with_changes",
                 .first = detail::operand(first),
                 .second = detail::operand(second),
                 .reason = "the regions share memory (see MemoryRegion::at and part); a map can "
                           "hold only one of them"});
  }
  return {};
}

}  // namespace

GuestMemory::GuestMemory(std::shared_ptr<const Map> map) noexcept
    : translator_(map->table.translator()), map_(std::move(map)) {}

Result<GuestMemory> GuestMemory::from_regions(std::vector<MemoryRegionPtr> regions) {
  return VMSPACE_TRY_IN("GuestMemory::from_regions",
                        GuestMemory().with_changes({}, std::move(regions)));
}

Result<GuestMemory> GuestMemory::with_changes(std::span<const MemoryRegionPtr> removed,
                                              std::vector<MemoryRegionPtr> added) const {
  constexpr const char* operation = "GuestMemory::with_changes";
  if (std::ranges::find(added, nullptr) != added.end()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "a region is a null pointer"});
  }
  const auto base_of = [](const MemoryRegionPtr& region) { return region->base(); };
  std::ranges::sort(added, {}, base_of);
  std::vector<const MemoryRegion*> gone;
  gone.reserve(removed.size());
  for (const MemoryRegionPtr& region : removed)
    gone.push_back(region.get());
  std::ranges::sort(gone);
  const auto is_gone = [&](const MemoryRegion* region) {
    return std::ranges::binary_search(gone, region);
  };

  Map changed;
  changed.regions = with_changes_in(
      regions(), [&](const MemoryRegionPtr& region) { return is_gone(region.get()); }, added,
      base_of);
  if (changed.regions.size() + removed.size() != regions().size() + added.size()) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = Operand::number(removed.size()),
                 .reason = "a region to be removed is not in the map, or named twice"});
  }
  if (changed.regions.size() > max_regions) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::number(changed.regions.size()),
                 .second = Operand::number(max_regions)});
  }
  for (const MemoryRegionPtr& region : added)
    VMSPACE_TRY(check_neighbours(changed.regions, *region));
  if (changed.regions.empty()) return GuestMemory();

  // No access can use what may not be read, so it has no entry; range_error() still finds it.
  for (const MemoryRegionPtr& region : changed.regions) {
    if (is_readable(*region) && Map::is_flagged(*region)) changed.flagged.push_back(region.get());
  }
  std::vector<detail::TranslationEntry> new_entries;
  for (const MemoryRegionPtr& region : added) {
    if (!is_readable(*region) || Map::is_flagged(*region)) continue;
    const bool writable = allows(region->protection(), Protection::write);
    new_entries.push_back({.first = region->base().value(),
                           .size = region->size(),
                           .host = region->host_base(),
                           .dirty = writable ? &region->dirty() : nullptr});
  }
  const auto entry_is_gone = [&](const detail::TranslationEntry& entry) {
    return is_gone(map_->regions[map_->region_of[map_->table.index_of(entry)]].get());
  };
  changed.table = detail::TranslationTable(with_changes_in(
      map_ == nullptr ? std::span<const detail::TranslationEntry>() : map_->table.entries(),
      entry_is_gone, new_entries, &detail::TranslationEntry::first));
  changed.region_of = region_of_entries(changed.table.entries(), changed.regions);

  std::vector<const MemoryRegion*> added_by_host;
  added_by_host.reserve(added.size());
  for (const MemoryRegionPtr& region : added)
    added_by_host.push_back(region.get());
  std::ranges::sort(added_by_host, std::less<const std::byte*>{}, &MemoryRegion::host_base);
  changed.by_host = with_changes_in(
      map_ == nullptr ? std::span<const MemoryRegion* const>() : std::span(map_->by_host), is_gone,
      added_by_host, &MemoryRegion::host_base);
  for (const MemoryRegion* region : added_by_host)
    VMSPACE_TRY(check_memory(changed.by_host, *region));
  auto map = std::make_shared<const Map>(std::move(changed));
  VMSPACE_TRY(join_tracking(map->regions));  // last, since nothing undoes it
  return GuestMemory(std::move(map));
}

Result<GuestMemory> GuestMemory::with_region(MemoryRegionPtr region) const {
  return VMSPACE_TRY_IN("GuestMemory::with_region", with_changes({}, {std::move(region)}));
}

Result<GuestMemory> GuestMemory::without_region(GuestAddress base) const {
  const MemoryRegionPtr region = find_region(base);
  if (region == nullptr || region->base() != base) {
    return fail({.code = Errc::not_found,
                 .operation = "GuestMemory::without_region",
                 .first = Operand::address(base.value()),
                 .reason = "no region begins at this address"});
  }
  return VMSPACE_TRY_IN("GuestMemory::without_region", with_changes({&region, 1}, {}));
}

std::span<const MemoryRegionPtr> GuestMemory::regions() const noexcept {
  if (map_ == nullptr) return {};
  return map_->regions;
}

std::span<const MemoryRegionPtr> GuestMemory::overlapping(GuestRange range) const noexcept {
  if (range.empty()) return {};
  const auto all = regions();
  const auto first = std::ranges::lower_bound(
      all, range.base, {}, [](const MemoryRegionPtr& region) { return region->last_addr(); });
  return {first, std::find_if(first, all.end(), [&](const MemoryRegionPtr& region) {
            return region->base().value() > detail::last_within(range);
          })};
}

const MemoryRegionPtr* GuestMemory::place_of(GuestAddress address) const noexcept {
  if (const auto* entry = translator_.find(address.value(), 1)) {
    return &map_->regions[map_->region_of[map_->table.index_of(*entry)]];
  }
  const auto found = overlapping({address, 1});
  return found.empty() ? nullptr : found.data();
}

MemoryRegionPtr GuestMemory::find_region(GuestAddress address) const {
  const MemoryRegionPtr* const place = place_of(address);
  return place == nullptr ? nullptr : *place;
}

const MemoryRegion* GuestMemory::region_at(GuestAddress address) const noexcept {
  const MemoryRegionPtr* const place = place_of(address);
  return place == nullptr ? nullptr : place->get();
}

bool GuestMemory::contains(GuestRange range, Access access) const noexcept {
  return reachable(range, access) == range.size;
}

std::uint64_t GuestMemory::total_size() const noexcept {
  std::uint64_t total = 0;
  for (const MemoryRegionPtr& region : regions())
    total += region->blocks() == nullptr ? region->size() : region->blocks()->present_size();
  return total;
}

std::optional<GuestAddress> GuestMemory::last_addr() const noexcept {
  if (regions().empty()) return std::nullopt;
  return regions().back()->last_addr();
}

Result<const std::byte*> GuestMemory::const_host_address_across(GuestRange range) const {
  constexpr const char* operation = "GuestMemory::const_host_address";
  if (range.empty()) {
    return fail({.code = Errc::zero_size,
                 .operation = operation,
                 .second = Operand::address(range.base.value())});
  }
  VMSPACE_TRY(check(operation, range, Access::read));
  const Pieces pieces(*this);
  const detail::Piece piece = pieces.at(range.base.value(), range.size);
  // On from region to region in an arena, where they lie as they do in the guest. Elsewhere, that two
  // mappings touch is chance, and no caller may come to rely on it.
  const auto in_arena = [&](std::uint64_t offset) {
    return region_at(GuestAddress(range.base.value() + offset))->mapping().is_in_arena();
  };
  std::uint64_t reached = piece.size;
  while (reached != range.size && in_arena(reached - 1) && in_arena(reached)) {
    const detail::Piece next = pieces.at(range.base.value() + reached, range.size - reached);
    if (next.host != piece.host + reached) break;
    reached += next.size;
  }
  if (reached != range.size) {
    return fail(
        {.code = Errc::out_of_bounds,
         .operation = operation,
         .first = detail::operand(range),
         .second = detail::operand(region_at(range.base)->guest_range()),
         .reason = "the range must be contiguous on the host: in one region, or one arena"});
  }
  return piece.host;
}

Result<std::byte*> GuestMemory::host_address_across(GuestRange range) const {
  constexpr const char* operation = "GuestMemory::host_address";
  VMSPACE_TRY_IN(operation, const_host_address(range));
  VMSPACE_TRY(check(operation, range, Access::write));
  return Pieces(*this).at(range.base.value(), range.size).host;
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
  if (region.blocks() != nullptr && region.blocks()->present_after(offset, 1) == 0)
    return std::nullopt;
  return GuestAddress(region.base().value() + offset);
}

std::uint64_t GuestMemory::reachable(GuestRange range, Access access) const noexcept {
  const Pieces pieces(*this);
  std::uint64_t done = 0;
  while (done < range.size) {
    const std::uint64_t gpa = range.base.value() + done;
    if (gpa < range.base.value()) break;  // passed 2^64
    const detail::Piece piece = pieces.at(gpa, range.size - done);
    if (piece.size == 0 || (access == Access::write && piece.dirty == nullptr)) break;
    done += piece.size;
  }
  return done;
}

Result<void> GuestMemory::check(GuestRange range, Access access) const {
  return check("GuestMemory::check", range, access);
}

Result<void> GuestMemory::check(const char* operation, GuestRange range, Access access) const {
  if (contains(range, access)) return {};
  return fail(range_error(operation, range, access));
}

Error GuestMemory::range_error(const char* operation, GuestRange range, Access access) const {
  const std::uint64_t base = range.base.value();
  if (range.size - 1 > ~std::uint64_t{0} - base) {
    return {.code = Errc::overflow,
            .operation = operation,
            .first = Operand::address(base),
            .second = Operand::size(range.size)};
  }
  const std::uint64_t reached = reachable(range, access);
  const MemoryRegion* const stop = region_at(GuestAddress(base + reached));
  const bool is_absent =
      stop != nullptr && stop->blocks() != nullptr &&
      stop->blocks()->present_after(base + reached - stop->base().value(), 1) == 0;
  if (stop != nullptr && !is_absent) {
    return {.code = Errc::access_denied,
            .operation = operation,
            .first = detail::operand(range),
            .second = detail::operand(stop->guest_range()),
            .reason = access == Access::write ? "the guest may not write the region"
                                              : "the guest may not read the region"};
  }
  if (reached == 0) {
    return {.code = Errc::not_found,
            .operation = operation,
            .first = Operand::address(base),
            .reason = is_absent ? "the block at this address is not plugged"
                                : "no region with memory contains this address"};
  }
  return {.code = Errc::out_of_bounds,
          .operation = operation,
          .first = detail::operand(range),
          .second = detail::operand(region_at(GuestAddress(base + (reached - 1)))->guest_range()),
          .reason = is_absent ? "the range runs into a block that is not plugged"
                              : "the range runs past the end of the region into a gap"};
}

Result<GuestMemory::IntegerPlace> GuestMemory::find_integer(const char* operation,
                                                            GuestAddress address, std::size_t size,
                                                            Access access) const {
  if (!address.is_aligned(size)) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = Operand::address(address.value()),
                 .second = Operand::size(size),
                 .reason = "the address must be a multiple of the integer's size"});
  }
  VMSPACE_TRY(check(operation, {.base = address, .size = size}, access));
  // Regions and blocks begin at multiples of a page, so that no aligned integer crosses into another.
  const detail::Piece piece = Pieces(*this).at(address.value(), size);
  return IntegerPlace{.host = piece.host,
                      .dirty = piece.dirty,
                      .offset = piece.offset,
                      .may_fault = piece.may_fault};
}

Result<void> GuestMemory::touch_integer(const char* operation, GuestRange integer,
                                        const IntegerPlace& place, void (*touch)(void*),
                                        void* argument) {
  if (detail::run_guarded(place.host, integer.size, touch, argument) == nullptr) return {};
  return fail(detail::fault_error(operation, integer, integer.base));
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
               : "an empty map must have the empty translator";
  }
  if (translator_.block != map_->table.translator().block) {
    return "the translator must belong to the map";
  }
  if (map_->regions.empty() || map_->regions.size() > max_regions)
    return "the number of regions must be 1 to max_regions";
  if (std::ranges::adjacent_find(map_->by_host, share_memory) != map_->by_host.end())
    return "regions must not share memory";
  std::size_t readable = 0;
  std::size_t flagged = 0;
  const MemoryRegion* before = nullptr;
  for (const MemoryRegionPtr& region : map_->regions) {
    if (before != nullptr && region->base() <= before->last_addr())
      return "regions must be sorted and must not overlap";
    before = region.get();
    if (!is_readable(*region)) continue;
    if (Map::is_flagged(*region)) {
      ++flagged;
      if (translator_.find(region->base().value(), 1) != nullptr)
        return "a region that is present in parts or may fault must not have an entry";
      continue;
    }
    ++readable;
    for (const std::uint64_t offset : {std::uint64_t{0}, region->size() - 1}) {
      const auto* entry = translator_.find(region->base().value() + offset, 1);
      if (entry == nullptr) return "every readable region must be found";
      if (entry->host != region->host_base() ||
          region_at(GuestAddress(region->base().value() + offset)) != region.get())
        return "an address must translate to its own region";
    }
  }
  if (readable != map_->table.entries().size())
    return "there must be one entry for each readable region that is whole and can't fault";
  if (flagged != map_->flagged.size())
    return "every readable region that is present in parts or may fault must be known as such";
  return nullptr;
}

}  // namespace vmspace
