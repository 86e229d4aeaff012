// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region.hpp"

#include <algorithm>
#include <vector>

#include "memory/host.hpp"

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
    const auto offset = description.base().offset_from(options.arena->guest_base());
    if (!offset) {
      return fail(
          {.code = Errc::out_of_bounds,
           .operation = "MemoryRegion::map",
           .first = detail::operand(description.range()),
           .second = Operand::span(options.arena->guest_base().value(), options.arena->size()),
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

Result<std::shared_ptr<const MemoryRegion>> MemoryRegion::map(const AddressSpaceRegion& description,
                                                              const MapOptions& options) {
  if (options.backing) {
    if (auto ok = check_page_size(description, *options.backing); !ok) return fail(ok.error());
  }
  auto backing = options.backing ? Result<Backing>(*options.backing)
                                 : Backing::open(description.backing(), description.size(),
                                                 description.protection());
  if (!backing) return fail(backing.error());
  auto mapping = map_place(description, *backing, options);
  if (!mapping) return fail(mapping.error());
  const auto huge_pages = prepare(*mapping, description, options);
  if (!huge_pages) return fail(huge_pages.error());
  if (description.wants_populate() && !options.defer_populate) {
    if (auto ok = vmspace::populate(*mapping, options.populate); !ok) return fail(ok.error());
  }
  return std::shared_ptr<const MemoryRegion>(
      new MemoryRegion(description, std::move(*mapping), *huge_pages));
}

Result<void> populate(std::span<const std::shared_ptr<const MemoryRegion>> regions,
                      PopulateOptions options) {
  std::vector<PopulateRange> ranges;
  ranges.reserve(regions.size());
  for (const auto& region : regions) {
    if (region == nullptr) {
      return fail({.code = Errc::invalid_argument, .operation = "populate", .reason = "no region"});
    }
    ranges.push_back({&region->mapping(), 0, region->size()});
  }
  return populate(ranges, options);
}

}  // namespace vmspace
