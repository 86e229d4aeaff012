// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/memory_region.hpp"

#include <algorithm>
#include <vector>

#include "memory/region_error.hpp"
#include "os/page_size.hpp"

namespace vmspace {

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
                   .reason = "the region begins before the arena"});
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
                                      .arena_offset = arena_offset});
}

/// Pages of a size that the region asks for are not quietly others.
Result<void> check_page_size(const AddressSpaceRegion& description, const Backing& backing) {
  const BackingSpec& spec = description.backing();
  const bool asks = spec.page_size != 0 || spec.is_hugetlb();
  if (!asks || spec.effective_page_size() == backing.page_size()) return {};
  return fail({.code = Errc::invalid_argument,
               .operation = "MemoryRegion::map",
               .first = Operand::size(spec.effective_page_size()),
               .second = Operand::size(backing.page_size()),
               .reason = "the region asks for pages of another size than the backing has"});
}

Error name_region(const Error& error, const AddressSpaceRegion& region) {
  return detail::name_region(error, region.name(), detail::operand(region.guest_range()),
                             region.backing().path);
}

/// How all of a region is populated. A file that the guest may only read is not written, although
/// this process could: that would fill its holes.
PopulateRange populate_range(const AddressSpaceRegion& description, const MemoryMapping& mapping,
                             const PopulateOptions& options) {
  PopulateRange range{&mapping, 0, mapping.size()};
  if (options.access == PopulateAccess::by_mapping &&
      mapping.backing().page_kind() == PageKind::file &&
      !allows(description.protection(), Protection::write)) {
    range.access = PopulateAccess::read;
  }
  return range;
}

/// All that must be said before the first page exists.
Result<Applied> prepare(MemoryMapping& mapping, const AddressSpaceRegion& description,
                        const MapOptions& options) {
  if (description.numa_node() && options.numa_mode != NumaMode::by_default) {
    if (auto ok = mapping.bind_to_nodes({options.numa_mode, {*description.numa_node()}}); !ok) {
      return fail(ok.error());
    }
  }
  if (options.dontfork) {
    if (auto ok = mapping.use_dontfork(); !ok) return fail(ok.error());
  }
  if (options.dontdump) {
    if (auto ok = mapping.use_dontdump(); !ok) return fail(ok.error());
  }
  if (options.mergeable) {
    if (auto ok = mapping.use_mergeable(); !ok) return ok;
  }
  if (!description.wants_huge_pages()) return Applied::not_applicable;
  return mapping.use_hugepages();
}

}  // namespace

Result<MemoryRegionPtr> MemoryRegion::map(AddressSpaceRegionPtr shared, const MapOptions& options) {
  if (shared == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = "MemoryRegion::map",
                 .reason = "the region is a null pointer"});
  }
  const AddressSpaceRegion& description = *shared;
  const auto fail_region = [&](const Error& error) {
    return fail(name_region(error, description));
  };
  if (options.backing) {
    if (auto ok = check_page_size(description, *options.backing); !ok)
      return fail_region(ok.error());
  }
  auto backing = options.backing ? Result<Backing>(*options.backing)
                                 : Backing::open(description.backing(), description.size(),
                                                 description.protection());
  if (!backing) return fail_region(backing.error());
  auto mapping = map_place(description, *backing, options);
  if (!mapping) return fail_region(mapping.error());
  const auto huge_pages = prepare(*mapping, description, options);
  if (!huge_pages) return fail_region(huge_pages.error());
  if (description.wants_populate() && !options.defer_populate) {
    const auto range = populate_range(description, *mapping, options.populate);
    if (auto ok = vmspace::populate(std::span(&range, 1), options.populate); !ok)
      return fail_region(ok.error());
  }
  return MemoryRegionPtr(new MemoryRegion(std::move(shared), std::move(*mapping), *huge_pages));
}

Result<void> populate(std::span<const MemoryRegionPtr> regions, PopulateOptions options) {
  std::vector<PopulateRange> ranges;
  ranges.reserve(regions.size());
  for (const auto& region : regions) {
    if (region == nullptr) {
      return fail({.code = Errc::invalid_argument, .operation = "populate", .reason = "no region"});
    }
    ranges.push_back(populate_range(region->description(), region->mapping(), options));
  }
  const MemoryMapping* failed = nullptr;
  auto done = detail::populate_ranges(ranges, options, failed);
  if (done) return done;
  const auto region =
      std::ranges::find(regions, failed, [](const auto& mapped) { return &mapped->mapping(); });
  if (region == regions.end()) return done;  // about none of them
  return fail(name_region(done.error(), (*region)->description()));
}

}  // namespace vmspace
