// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/address_space_base.hpp"

#include <algorithm>
#include <cassert>
#include <functional>
#include <utility>

#include "vmspace/base/try.hpp"

namespace vmspace {

namespace {

/// The types that an aperture takes, as the reason why it refuses others.
const char* taken_types(ApertureUse use) {
  switch (use) {
    case ApertureUse::ram: return "this aperture takes default_memory and firmware_memory";
    case ApertureUse::mmio:
      return "this aperture takes device_memory, dax_memory and firmware_memory";
    case ApertureUse::platform: return "this aperture takes device_memory and firmware_memory";
  }
  return "this aperture takes no regions";
}

tl::unexpected<Error> no_region(GuestAddress address, const char* operation, const char* reason) {
  return fail({.code = Errc::not_found,
               .operation = operation,
               .first = Operand::address(address.value()),
               .reason = reason});
}

/// What `search` finds for the constraint within the layout's aperture of this name, which must take
/// regions of this type.
template <typename Search>
Result<Range> search_aperture(const AddressSpaceLayout& layout, RegionType type,
                              const Constraint& constraint, std::string_view aperture,
                              const char* operation, Search search) {
  VMSPACE_TRY_IN(operation, constraint.validate());
  const Aperture* window = layout.find_aperture(aperture);
  if (window == nullptr) {
    std::string names;
    for (const Aperture& known : layout.apertures()) {
      if (!names.empty()) names += ", ";
      names += known.name;
    }
    return fail(
        {.code = Errc::not_found,
         .operation = operation,
         .reason = names.empty() ? "the layout has no apertures" : "the layout's apertures are",
         .text = {aperture, names}});
  }
  if (!window->takes(type)) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(window->range),
                 .reason = taken_types(window->use),
                 .text = {{}, window->name}});
  }
  Constraint inside = constraint;
  inside.min = std::max(constraint.min, window->range.min());
  inside.max = std::min(constraint.max, window->range.max());
  if (inside.min > inside.max) {
    return fail({.code = Errc::no_space,
                 .operation = operation,
                 .first = Operand::size(constraint.size),
                 .second = detail::operand(window->range),
                 .reason = "the constraint's min and max must overlap the aperture",
                 .text = {{}, window->name}});
  }
  const Result<Range> place = search(inside);
  if (!place) {
    Error error = place.error().in(operation);
    if (error.reason == nullptr) error.reason = "no free range in this aperture fits";
    error.text = {{}, window->name};
    return fail(error);
  }
  return place;
}

}  // namespace

AddressSpaceBase::AddressSpaceBase(AddressSpaceLayout layout)
    : layout_(std::make_shared<const AddressSpaceLayout>(std::move(layout))) {
  const auto add_free = [&](std::uint64_t min, std::uint64_t max) {
    const auto added = regions_.insert(detail::unchecked_range(min, max));
    assert(added);
    static_cast<void>(added);
  };
  std::uint64_t next = 0;
  for (const Hole& hole : layout_->holes()) {
    if (hole.range.min() != next) add_free(next, hole.range.min() - 1);
    if (hole.range.max() == layout_->phys_max()) return;
    next = hole.range.max() + 1;
  }
  add_free(next, layout_->phys_max());
}

Result<AddressSpaceBase> AddressSpaceBase::from_regions(
    AddressSpaceLayout layout, std::vector<AddressSpaceRegionPtr> regions) {
  AddressSpaceBase space(std::move(layout));
  for (AddressSpaceRegionPtr& region : regions) {
    VMSPACE_TRY(space.insert_region(std::move(region), "AddressSpaceBase::from_regions"));
  }
  return space;
}

Result<void> AddressSpaceBase::check_place(const AddressSpaceRegion& region,
                                           const char* operation) const {
  if (auto ok = layout_->check_place(region.type(), region.range()); !ok) {
    Error error = ok.error().in(operation);
    error.text = error.text.with_subject(region.name());
    return fail(error);
  }
  return {};
}

Result<void> AddressSpaceBase::check_free(
    const AddressSpaceRegion& region, const char* operation,
    std::span<const AddressSpaceRegion* const> leaving) const {
  const Range range = region.range();
  for (const auto& entry : regions_.overlapping(range)) {
    if (entry.value == nullptr) continue;
    if (std::binary_search(leaving.begin(), leaving.end(), entry.value->get(), std::less<>())) {
      continue;
    }
    return fail({.code = Errc::overlap,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = detail::operand(entry.range),
                 .reason = "another region is there",
                 .text = {region.name(), (*entry.value)->name()}});
  }
  return {};
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::insert_region(AddressSpaceRegionPtr region,
                                                              const char* operation) {
  if (region == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the region is a null pointer"});
  }
  if (is_parked(region)) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(region->range()),
                 .reason = "the region is parked: move_regions() places it",
                 .text = region->name()});
  }
  VMSPACE_TRY(check_place(*region, operation));
  VMSPACE_TRY(check_free(*region, operation));
  VMSPACE_TRY_IN(operation, regions_.allocate_at(region->range(), region));
  ++size_;
  return region;
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::insert_region(AddressSpaceRegionPtr region) {
  return insert_region(std::move(region), "AddressSpaceBase::insert_region");
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::insert_region(RegionOptions options) {
  constexpr const char* operation = "AddressSpaceBase::insert_region";
  auto region = VMSPACE_TRY_IN(operation, AddressSpaceRegion::make(std::move(options)));
  return insert_region(std::move(region), operation);
}

Result<const AddressSpaceRegion*> AddressSpaceBase::region_from(GuestAddress base,
                                                                const char* operation) const {
  const AddressSpaceRegion* region = find_region(base);
  if (region == nullptr || region->base() != base) {
    return no_region(base, operation, "no region begins at this address");
  }
  return region;
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::remove_region(GuestAddress base) {
  constexpr const char* operation = "AddressSpaceBase::remove_region";
  const AddressSpaceRegion* const region = VMSPACE_TRY(region_from(base, operation));
  auto removed = VMSPACE_TRY_IN(operation, regions_.free(region->range()));
  --size_;
  return *std::move(removed);
}

Result<Range> AddressSpaceBase::find_place(RegionType type, const Constraint& constraint,
                                           std::string_view aperture) const {
  return search_aperture(*layout_, type, constraint, aperture, "AddressSpaceBase::find_place",
                         [this](const Constraint& inside) { return regions_.find_place(inside); });
}

Result<Range> AddressSpaceBase::choose_place(RegionType type, const Constraint& constraint,
                                             std::string_view aperture) {
  return search_aperture(
      *layout_, type, constraint, aperture, "AddressSpaceBase::choose_place",
      [this](const Constraint& inside) { return regions_.choose_place(inside); });
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::place_region(RegionOptions options,
                                                             Constraint constraint,
                                                             std::string_view aperture) {
  constexpr const char* operation = "AddressSpaceBase::place_region";
  if (options.base != GuestAddress{}) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::address(options.base.value()),
                 .reason = "place_region() chooses the base: leave .base at 0",
                 .text = options.name});
  }
  if (options.size != 0 && options.size != constraint.size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::size(options.size),
                 .second = Operand::size(constraint.size),
                 .reason = ".size must be 0 or equal to the constraint's size",
                 .text = options.name});
  }
  const auto failed = [&](Error error) {
    error.operation = operation;
    if (error.text.subject().empty()) error.text = error.text.with_subject(options.name);
    return fail(error);
  };
  if (options.backing.source != MemorySource::none) {
    // Checked first: the page size would hide an alignment that is not a power of two.
    if (const auto valid = constraint.validate(); !valid) return failed(valid.error());
    constraint.align = std::max(constraint.align, options.backing.effective_page_size());
  }
  const auto place = choose_place(options.type, constraint, aperture);
  if (!place) return failed(place.error());
  options.base = GuestAddress(place->min());
  options.size = constraint.size;
  const auto region = VMSPACE_TRY_IN(operation, AddressSpaceRegion::make(std::move(options)));
  VMSPACE_TRY_IN(operation, regions_.allocate_at(*place, region));
  ++size_;
  return region;
}

IntervalView<AddressSpaceBase::Iterator> AddressSpaceBase::overlapping(
    GuestRange range) const noexcept {
  if (range.empty()) return {end(), end()};
  const auto entries =
      regions_.overlapping(detail::unchecked_range(range.base.value(), detail::last_within(range)));
  // The end of the entries may be a free one: both iterators go on to the same region behind it.
  return {{entries.begin(), regions_.end()}, {entries.end(), regions_.end()}};
}

Result<const AddressSpaceRegion*> AddressSpaceBase::region_at(GuestAddress address,
                                                              const char* operation) const {
  const AddressSpaceRegion* region = find_region(address);
  if (region == nullptr) return no_region(address, operation, "no region contains this address");
  return region;
}

Result<bool> AddressSpaceBase::is_dax_region(GuestAddress address) const {
  return region_at(address, "AddressSpaceBase::is_dax_region").map([](auto* region) {
    return region->is_dax();
  });
}

Result<Protection> AddressSpaceBase::prot_flags(GuestAddress address) const {
  return region_at(address, "AddressSpaceBase::prot_flags").map([](auto* region) {
    return region->protection();
  });
}

Result<std::optional<std::uint32_t>> AddressSpaceBase::numa_node_id(GuestAddress address) const {
  return region_at(address, "AddressSpaceBase::numa_node_id").map([](auto* region) {
    return region->numa_node();
  });
}

std::optional<GuestAddress> AddressSpaceBase::last_addr() const noexcept {
  for (auto at = regions_.end(); at != regions_.begin();) {
    --at;
    if ((*at).value != nullptr) return GuestAddress((*at).range.max());
  }
  return std::nullopt;
}

bool operator==(const AddressSpaceBase& a, const AddressSpaceBase& b) noexcept {
  const auto same = [](const auto& left, const auto& right) {
    return left == right || *left == *right;
  };
  return a.size_ == b.size_ && same(a.layout_, b.layout_) &&
         std::equal(a.begin(), a.end(), b.begin(), b.end(), same) &&
         std::is_permutation(a.parked_.begin(), a.parked_.end(), b.parked_.begin(), b.parked_.end(),
                             same);
}

Result<void> AddressSpaceBase::check_invariants() const {
  const auto broken = [](const char* rule) {
    return fail(
        {.code = Errc::corrupt, .operation = "AddressSpaceBase::check_invariants", .reason = rule});
  };
  VMSPACE_TRY_IN("AddressSpaceBase::check_invariants", regions_.check_invariants());
  std::size_t count = 0;
  for (const auto& entry : regions_) {
    if (entry.state == NodeState::allocated) return broken("every taken range must hold a region");
    if (entry.value == nullptr) continue;
    ++count;
    const AddressSpaceRegion& region = **entry.value;
    if (region.range() != entry.range) return broken("a region must be stored at its own range");
    if (!layout_->check_place(region.type(), region.range())) {
      return broken("a region must lie where the layout allows its type");
    }
  }
  if (count != size_) return broken("size() must be the number of regions");
  for (auto at = parked_.begin(); at != parked_.end(); ++at) {
    if (*at == nullptr) return broken("a parked region must not be null");
    if (is_placed(*at)) return broken("a region must not be both placed and parked");
    if (std::find(parked_.begin(), at, *at) != at) return broken("a region must be parked once");
  }
  // What is neither free nor a region is a hole: giving all regions back gives an empty space.
  Tree tree = regions_;
  for (const AddressSpaceRegionPtr& region : *this)
    static_cast<void>(tree.free(region->range()));
  if (tree != AddressSpaceBase(*layout_).regions_)
    return broken("the free ranges must be exactly what the layout and the regions leave");
  return {};
}

RegionDiff diff(const AddressSpaceBase& before, const AddressSpaceBase& after) {
  RegionDiff result;
  auto old_region = before.begin();
  auto new_region = after.begin();
  while (old_region != before.end() || new_region != after.end()) {
    const bool has_old = old_region != before.end();
    const bool has_new = new_region != after.end();
    if (has_old && has_new && (*old_region)->base() == (*new_region)->base()) {
      if (*old_region != *new_region && **old_region != **new_region) {
        result.removed.push_back(*old_region);
        result.added.push_back(*new_region);
      }
      ++old_region;
      ++new_region;
    } else if (!has_new || (has_old && (*old_region)->base() < (*new_region)->base())) {
      result.removed.push_back(*old_region++);
    } else {
      result.added.push_back(*new_region++);
    }
  }
  return result;
}

}  // namespace vmspace
