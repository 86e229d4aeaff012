// SPDX-License-Identifier: Apache-2.0
//
// MemoryRegion::part: a part of a region as one of its own.

#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "memory/region_error.hpp"

namespace vmspace {

namespace {

constexpr const char* part_operation = "MemoryRegion::part";

/// What may differ are name and place: of the part in the guest, and so in a file.
bool describes_part(const AddressSpaceRegion& part, const AddressSpaceRegion& whole,
                    std::uint64_t offset) {
  RegionOptions expected = whole.options();
  expected.name = part.name();
  expected.base = part.base();
  expected.size = part.size();
  const MemorySource source = whole.backing().source;
  if (source == MemorySource::file || source == MemorySource::device)
    expected.backing.offset += offset;
  return expected == part.options();
}

}  // namespace

Result<MemoryRegionPtr> MemoryRegion::part(AddressSpaceRegionPtr part, std::uint64_t offset,
                                           const MoveOptions& options) const {
  if (part == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = part_operation,
                 .reason = "the description is a null pointer"});
  }
  const Operand range = detail::operand(part->guest_range());
  const auto named = [&](const Error& error) {
    return fail(detail::name_region(error.in(part_operation), *part));
  };
  if (blocks_ != nullptr) {
    return named({.code = Errc::unsupported,
                  .first = range,
                  .reason = "a region in blocks stays in one piece: plug and unplug blocks of it"});
  }
  if (const auto inside = mapping().check_part(offset, part->size()); !inside)
    return named(inside.error());
  if (!describes_part(*part, description(), offset)) {
    return named({.code = Errc::invalid_argument,
                  .first = range,
                  .reason = "the description may differ from the region's only in its name, base "
                            "and size, and by the offset in that of a file"});
  }
  const GuestAddress here(base().value() + offset);
  if (const auto ok = check_distance({here, part->size()}, part->base(), options); !ok)
    return named(ok.error());
  auto memory = mapping().part(offset, part->size(), memory_);
  if (!memory) return named(memory.error());
  MemoryRegionPtr region =
      of_mapping(std::move(part), std::move(*memory), huge_pages(), memory_->guard);
  if (dirty().is_enabled()) {
    VMSPACE_TRY_IN(part_operation, region->dirty().enable());
    region->dirty().mark(0, region->size());
  }
  return region;
}

}  // namespace vmspace
