// SPDX-License-Identifier: Apache-2.0

#include "host/fault_owner.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "host/pinned_ranges.hpp"

namespace vmspace::detail {

Result<FaultClaim> FaultClaim::make(const char* operation, const MemoryMapping& mapping,
                                    FaultOwner& owner) {
  const auto& ranges = mapping.pins_;
  const std::uint64_t first = mapping.file_offset();
  if (const char* holder = ranges->claim(first, first + mapping.size(), owner)) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .reason = "the page faults of this memory are handled by another already",
                 .text = holder});
  }
  FaultClaim claim(ranges, first);
  if (owner.allows_pins()) return claim;
  // Asked once it is claimed: nothing can be pinned any more.
  const auto unchanged = ranges->unchanged();
  const std::string* pinned = ranges->find(unchanged, first, first + mapping.size());
  if (pinned == nullptr) return claim;
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .reason = "the memory is mapped for DMA, and what devices write would be missed: "
                         "unmap it for them first",
               .text = *pinned});
}

FaultClaim::~FaultClaim() {
  if (ranges_) ranges_->unclaim(first_);
}

const char* FaultClaim::holder(const MemoryMapping& mapping) {
  const auto& ranges = mapping.pins_;
  const std::uint64_t first = mapping.file_offset();
  const auto unchanged = ranges->unchanged();
  const FaultOwner* owner = ranges->find_hindering_claim(unchanged, first, first + mapping.size());
  return owner != nullptr ? owner->name() : nullptr;
}

bool FaultClaim::is_kept_from_children(const MemoryMapping& mapping) noexcept {
  return std::ranges::find(mapping.advice_, MADV_DONTFORK) != mapping.advice_.end();
}

Result<void> require_unclaimed(const char* operation, const MemoryMapping& mapping, Operand where,
                               const char* reason) {
  const char* const holder = FaultClaim::holder(mapping);
  if (holder == nullptr) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .first = where,
               .reason = reason,
               .text = holder});
}

}  // namespace vmspace::detail
