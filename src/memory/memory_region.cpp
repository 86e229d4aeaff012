// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/memory_region.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"

#include "host/known_values.hpp"
#include "memory/alike_regions.hpp"
#include "memory/known_values.hpp"
#include "memory/region_error.hpp"
#include "os/argument_checks.hpp"
#include "os/page_size.hpp"

namespace vmspace {

using detail::name_region;

namespace {

/// What this process may do with the memory: never on the word of a description alone.
Protection host_protection(const AddressSpaceRegion& description, const Backing& backing,
                           const MapOptions& options) {
  const auto wanted = [&](Protection bit) { return allows(description.protection(), bit); };
  Protection host = Protection::read;
  // Where the guest may write and the backing can't, mapping says so.
  if (backing.is_writable() || wanted(Protection::write)) host = host | Protection::write;
  if (options.host_executable && wanted(Protection::execute)) host = host | Protection::execute;
  return host;
}

Result<MemoryMapping> map_place(const AddressSpaceRegion& description, const Backing& backing,
                                const MapOptions& options) {
  const std::uint64_t huge = detail::huge_page_size();
  std::uint64_t align = options.align;
  if (align == 0 && description.size() >= huge) align = std::max(huge, backing.page_size());
  std::uint64_t arena_offset = 0;
  if (options.arena) {
    const auto offset = description.base().offset_from(GuestAddress(options.arena->guest_base()));
    if (!offset) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = "MemoryRegion::map",
                   .first = detail::operand(description.guest_range()),
                   .second = Operand::span(options.arena->guest_base(), options.arena->size()),
                   .reason = "the region must not begin below the arena's guest_base"});
    }
    arena_offset = *offset;
  }
  return MemoryMapping::map(backing, {.size = description.size(),
                                      .offset = options.backing_offset,
                                      .protection = host_protection(description, backing, options),
                                      .align = align,
                                      .congruent_to = description.base().value(),
                                      .guard_pages = options.guard_pages,
                                      .reserve = options.reserve,
                                      .arena = options.arena,
                                      .arena_offset = arena_offset,
                                      .name = description.name()});
}

/// Options come from configurations, and are looked at whether or not this region needs them.
Result<void> check_values(const MapOptions& options) {
  VMSPACE_TRY(
      detail::require_known("MemoryRegion::map", options.unsealed, "not a value of Unsealed"));
  VMSPACE_TRY(
      detail::require_known("MemoryRegion::map", options.numa_mode, "not a value of NumaMode"));
  return detail::require_known("MemoryRegion::map", options.populate.access,
                               "not a value of PopulateAccess");
}

/// A region that asks for a page size does not quietly get another one.
Result<void> check_page_size(const AddressSpaceRegion& description, const Backing& backing) {
  const BackingSpec& spec = description.backing();
  const bool asks = spec.page_size != 0 || spec.is_hugetlb();
  if (!asks || spec.effective_page_size() == backing.page_size()) return {};
  return fail({.code = Errc::invalid_argument,
               .operation = "MemoryRegion::map",
               .first = Operand::size(spec.effective_page_size()),
               .second = Operand::size(backing.page_size()),
               .reason = "the backing must have the page size that the region asks for"});
}

/// The guard of memory that may fault; nothing for memory that can't, or whose owner is trusted.
Result<std::optional<FaultGuard>> guard_of(const Backing& backing, Unsealed unsealed) {
  if (unsealed == Unsealed::accept || !backing.can_lose_pages()) return std::nullopt;
  std::optional<FaultGuard> guard;
  if (unsealed == Unsealed::guard) guard = FaultGuard::installed();
  if (guard) return guard;
  return fail({.code = Errc::access_denied,
               .operation = "MemoryRegion::map",
               .reason = backing.is_hugetlb()
                             ? "the file's owner could punch holes in its huge pages, which would "
                               "raise SIGBUS here: install a FaultGuard (see Unsealed::guard), or "
                               "seal the file with F_SEAL_SHRINK and F_SEAL_WRITE"
                             : "the file's owner could truncate it, which would raise SIGBUS here: "
                               "install a FaultGuard (see Unsealed::guard), or seal the file with "
                               "F_SEAL_SHRINK"});
}

/// How all of a region that is present is populated. A file that the guest may only read is not
/// written, although this process could: that would fill its holes.
void add_populate_ranges(const AddressSpaceRegion& description, const MemoryMapping& mapping,
                         const PresentBlocksPtr& blocks, const PopulateOptions& options,
                         std::vector<PopulateRange>& ranges) {
  using Runs = std::vector<PresentBlocks::Run>;
  for (const auto& [offset, size] :
       blocks == nullptr ? Runs{{0, mapping.size()}} : blocks->runs()) {
    PopulateRange& range =
        ranges.emplace_back(PopulateRange{.mapping = &mapping,
                                          .offset = offset,
                                          .size = size,
                                          .about = name_region({}, description).text});
    if (options.access == PopulateAccess::by_mapping &&
        mapping.backing().page_kind() == PageKind::file &&
        !allows(description.protection(), Protection::write)) {
      range.access = PopulateAccess::read;
    }
  }
}

Result<void> check_blocks(const PresentBlocksPtr& blocks, const MemoryMapping& mapping,
                          const char* operation) {
  if (blocks == nullptr) return {};
  if (blocks->region_size() != mapping.size()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::size(blocks->region_size()),
                 .second = Operand::size(mapping.size()),
                 .reason = "the blocks must be those of a region of this size"});
  }
  return detail::require_multiple(operation, Operand::size(blocks->block_size()),
                                  mapping.page_size(),
                                  "the block size must be a multiple of the page size");
}

/// Makes the slots without any block inaccessible. O(runs), however many slots there are.
Result<void> protect_absent_slots(const PresentBlocks& blocks, const MemoryMapping& mapping) {
  const std::uint64_t size = mapping.size();
  const std::uint64_t slot = blocks.slot_size();
  std::uint64_t done = 0;  // the end of a slot
  for (std::uint64_t at = 0; at < size; at = done) {
    at += blocks.absent_after(at, size - at);
    const std::uint64_t begin = at == size ? size : at - at % slot;
    if (begin != done) VMSPACE_TRY(mapping.set_accessible(done, begin - done, false));
    at += blocks.present_after(at, size - at);
    done = at % slot == 0 ? at : at + std::min(slot - at % slot, size - at);
  }
  return {};
}

/// What must be set before the first page exists.
Result<Applied> prepare(MemoryMapping& mapping, const AddressSpaceRegion& description,
                        const MapOptions& options) {
  if (description.numa_node() && options.numa_mode != NumaMode::by_default) {
    VMSPACE_TRY(mapping.bind_to_nodes({options.numa_mode, {*description.numa_node()}}));
  }
  if (options.dontfork) VMSPACE_TRY(mapping.use_dontfork());
  if (options.dontdump) VMSPACE_TRY(mapping.use_dontdump());
  if (options.mergeable) VMSPACE_TRY(mapping.use_mergeable());
  if (!description.wants_huge_pages()) return Applied::not_applicable;
  return mapping.use_hugepages();
}

}  // namespace

namespace {

constexpr const char* map_operation = "MemoryRegion::map";
constexpr const char* make_operation = "MemoryRegion::make";
constexpr const char* at_operation = "MemoryRegion::at";

tl::unexpected<Error> refuse_move(Errc code, Operand first, Operand second, const char* reason) {
  return fail({.code = code,
               .operation = at_operation,
               .first = first,
               .second = second,
               .reason = reason});
}

tl::unexpected<Error> no_description(const char* operation) {
  return fail({.code = Errc::invalid_argument,
               .operation = operation,
               .reason = "the description is a null pointer"});
}

/// The mapping of a described region, and whether its wish for huge pages was taken.
struct Mapped {
  MemoryMapping mapping;
  Applied huge_pages;
  std::optional<FaultGuard> guard;
};

/// Whether the memory is what the description says.
Result<void> check_mapping(const AddressSpaceRegion& description, const MemoryMapping& mapping) {
  const auto refuse = [&](Errc code, Operand first, Operand second, const char* reason) {
    return fail({.code = code,
                 .operation = make_operation,
                 .first = first,
                 .second = second,
                 .reason = reason});
  };
  const Operand range = detail::operand(description.guest_range());
  if (!description.is_mapped()) {
    return refuse(Errc::invalid_argument, range, {}, "the description must have a backing");
  }
  if (mapping.size() != description.size()) {
    return refuse(Errc::invalid_argument, Operand::size(mapping.size()),
                  Operand::size(description.size()),
                  "the mapping must be exactly as large as the region");
  }
  if (!description.base().is_aligned(mapping.page_size())) {
    return refuse(Errc::misaligned, Operand::address(description.base().value()),
                  Operand::size(mapping.page_size()),
                  "base must be a multiple of the mapping's page size");
  }
  if (!allows(mapping.protection(), Protection::read)) {
    return refuse(Errc::access_denied, range, {}, "the mapping must be readable");
  }
  if (allows(description.protection(), Protection::write) &&
      !allows(mapping.protection(), Protection::write)) {
    return refuse(Errc::access_denied, range, {},
                  "the guest may write the region, so the mapping must be writable");
  }
  return {};
}

/// The memory of a region that is not mapped here.
Result<MemoryMapping> adopt_described(const AddressSpaceRegion& description,
                                      const MapOptions& options) {
  const auto refuse = [&](Errc code, const char* reason) {
    return fail({.code = code,
                 .operation = map_operation,
                 .first = detail::operand(description.guest_range()),
                 .reason = reason});
  };
  if (!options.external) {
    return refuse(Errc::invalid_argument,
                  "source external requires the memory, as MapOptions::external");
  }
  if (options.arena || options.guard_pages || options.blocks != nullptr) {
    return refuse(Errc::unsupported,
                  "external memory is mapped already: it can't be placed in an arena, have guard "
                  "pages, or be present in blocks");
  }
  MemoryMapping mapping = VMSPACE_TRY(MemoryMapping::adopt(*options.external));
  VMSPACE_TRY(check_mapping(description, mapping));
  if (options.dontfork) VMSPACE_TRY(mapping.use_dontfork());
  if (options.dontdump) VMSPACE_TRY(mapping.use_dontdump());
  return mapping;
}

Result<Mapped> map_described(const AddressSpaceRegion& description, const MapOptions& options) {
  VMSPACE_TRY(check_values(options));
  if (!description.is_mapped())
    return detail::invalid(map_operation, "the description must have a backing");
  if (description.backing().source == MemorySource::external) {
    auto adopted = VMSPACE_TRY(adopt_described(description, options));
    const auto guard = VMSPACE_TRY(guard_of(adopted.backing(), options.unsealed));
    return Mapped{
        .mapping = std::move(adopted), .huge_pages = Applied::not_applicable, .guard = guard};
  }
  if (options.backing) VMSPACE_TRY(check_page_size(description, *options.backing));
  const Backing backing =
      VMSPACE_TRY(options.backing ? Result<Backing>(*options.backing)
                                  : Backing::open(description.backing(), description.size(),
                                                  description.protection(), description.name()));
  const auto guard = VMSPACE_TRY(guard_of(backing, options.unsealed));
  MemoryMapping mapping = VMSPACE_TRY(map_place(description, backing, options));
  const Applied huge_pages = VMSPACE_TRY(prepare(mapping, description, options));
  VMSPACE_TRY(check_blocks(options.blocks, mapping, map_operation));
  if (description.wants_populate() && !options.defer_populate) {
    std::vector<PopulateRange> ranges;
    add_populate_ranges(description, mapping, options.blocks, options.populate, ranges);
    VMSPACE_TRY(vmspace::populate(ranges, options.populate));
  }
  if (options.blocks != nullptr) VMSPACE_TRY(protect_absent_slots(*options.blocks, mapping));
  return Mapped{.mapping = std::move(mapping), .huge_pages = huge_pages, .guard = guard};
}

}  // namespace

MemoryRegionPtr MemoryRegion::of_mapping(AddressSpaceRegionPtr description, MemoryMapping mapping,
                                         Applied huge_pages, std::optional<FaultGuard> guard) {
  const std::uint64_t size = mapping.size();
  // Not make_shared, which initialises no aggregates.
  std::shared_ptr<const Memory> memory(new Memory{.mapping = std::move(mapping),
                                                  .huge_pages = huge_pages,
                                                  .guard = std::move(guard),
                                                  .dirty = DirtyBitmap(size)});
  return MemoryRegionPtr(new MemoryRegion(std::move(description), std::move(memory)));
}

Result<MemoryRegionPtr> MemoryRegion::map(AddressSpaceRegionPtr description,
                                          const MapOptions& options) {
  if (description == nullptr) return no_description(map_operation);
  auto mapped = map_described(*description, options);
  if (!mapped) return fail(name_region(mapped.error().in(map_operation), *description));
  return in_parts(of_mapping(std::move(description), std::move(mapped->mapping), mapped->huge_pages,
                             std::move(mapped->guard)),
                  options.blocks);
}

Result<MemoryRegionPtr> MemoryRegion::map(RegionOptions description, const MapOptions& options) {
  auto made = VMSPACE_TRY_IN(map_operation, AddressSpaceRegion::make(std::move(description)));
  return map(std::move(made), options);
}

Result<MemoryRegionPtr> MemoryRegion::make(AddressSpaceRegionPtr description, MemoryMapping mapping,
                                           Applied huge_pages) {
  if (description == nullptr) return no_description(make_operation);
  if (const auto ok = check_mapping(*description, mapping); !ok) {
    return fail(name_region(ok.error(), *description));
  }
  return of_mapping(std::move(description), std::move(mapping), huge_pages);
}

Result<MemoryRegionPtr> MemoryRegion::at(GuestAddress base, const MoveOptions& options) const {
  RegionOptions moved = description().options();
  moved.base = base;
  auto description = VMSPACE_TRY_IN(at_operation, AddressSpaceRegion::make(std::move(moved)));
  return at(std::move(description), options);
}

Result<MemoryRegionPtr> MemoryRegion::at(AddressSpaceRegionPtr moved,
                                         const MoveOptions& options) const {
  if (moved == nullptr) return no_description(at_operation);
  if (const auto ok = check_move(*moved, options); !ok) {
    return fail(name_region(ok.error(), description()));
  }
  MemoryRegionPtr region =
      in_parts(MemoryRegionPtr(new MemoryRegion(std::move(moved), memory_)), blocks_);
  if (region->base() != base()) dirty().mark(0, size());
  return region;
}

Result<MemoryRegionPtr> MemoryRegion::with_blocks(PresentBlocksPtr blocks) const {
  if (const auto ok = check_blocks(blocks, mapping(), "MemoryRegion::with_blocks"); !ok)
    return fail(name_region(ok.error(), description()));
  MemoryRegionPtr whole =
      whole_ == nullptr ? MemoryRegionPtr(new MemoryRegion(description_, memory_)) : whole_;
  return in_parts(std::move(whole), std::move(blocks));
}

MemoryRegionPtr MemoryRegion::in_parts(MemoryRegionPtr whole, PresentBlocksPtr blocks) {
  if (blocks == nullptr) return whole;
  return MemoryRegionPtr(new MemoryRegion(std::move(whole), std::move(blocks)));
}

Result<void> MemoryRegion::check_move(const AddressSpaceRegion& moved,
                                      const MoveOptions& options) const {
  if (!detail::are_alike_but_for_base(moved, description())) {
    return refuse_move(Errc::invalid_argument, detail::operand(moved.guest_range()), {},
                       "the description may differ from the region's only in its base");
  }
  return check_distance(guest_range(), moved.base(), options);
}

Result<void> MemoryRegion::check_distance(GuestRange from, GuestAddress to,
                                          const MoveOptions& options) const {
  // Modulo 2^64, and so modulo every power of two.
  const std::uint64_t distance = to.value() - from.base.value();
  if (distance == 0) return {};
  if (distance % mapping().page_size() != 0) {
    return refuse_move(Errc::misaligned, Operand::address(to.value()),
                       Operand::size(mapping().page_size()),
                       "base must be a multiple of the mapping's page size");
  }
  if (mapping().is_in_arena() && !options.leave_arena_order) {
    return refuse_move(Errc::bad_state, detail::operand(GuestRange{to, from.size}), {},
                       "a region in an arena would leave the order of guest addresses; "
                       "MoveOptions::leave_arena_order allows it");
  }
  const std::uint64_t huge = detail::huge_page_size();
  const std::uint64_t apart = reinterpret_cast<std::uintptr_t>(host_base()) - base().value();
  const bool is_congruent = from.size >= huge && apart % huge == 0;
  if (is_congruent && distance % huge != 0 && !options.lose_huge_pages) {
    const bool up = to > from.base;
    return refuse_move(
        Errc::misaligned, Operand::size(up ? distance : 0 - distance), Operand::size(huge),
        "the distance must be a multiple of the huge page size, or KVM can no longer map "
        "huge pages; MoveOptions::lose_huge_pages allows it");
  }
  return {};
}

Result<void> populate(std::span<const MemoryRegionPtr> regions, PopulateOptions options) {
  std::vector<PopulateRange> ranges;
  ranges.reserve(regions.size());
  for (const auto& region : regions) {
    if (region == nullptr) {
      return fail({.code = Errc::invalid_argument,
                   .operation = "populate",
                   .reason = "a region is a null pointer"});
    }
    add_populate_ranges(region->description(), region->mapping(), region->blocks(), options,
                        ranges);
  }
  return populate(ranges, options);
}

}  // namespace vmspace
