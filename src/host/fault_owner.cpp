// SPDX-License-Identifier: Apache-2.0

#include "host/fault_owner.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "vmspace/base/try.hpp"

#include "host/pinned_ranges.hpp"

namespace vmspace::detail {

namespace {

tl::unexpected<Error> claimed_by(const char* operation, const FaultOwner& holder) {
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .reason = "the page faults of this memory are handled by another already",
               .text = holder.name()});
}

Result<void> require_none(const char* holder, const char* operation, Operand where,
                          const char* reason) {
  if (holder == nullptr) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .first = where,
               .reason = reason,
               .text = holder});
}

}  // namespace

Result<FaultClaim> FaultClaim::make(const char* operation, const MemoryMapping& mapping,
                                    FaultOwner& owner) {
  const auto& ranges = mapping.pins_;
  const std::uint64_t first = mapping.file_offset();
  if (const FaultOwner* holder = ranges->claim(first, first + mapping.size(), owner))
    return claimed_by(operation, *holder);
  FaultClaim claim(ranges, first, owner);
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

Result<FaultClaim> FaultClaim::share(const char* operation, const MemoryMapping& mapping,
                                     FaultOwner& watcher,
                                     std::shared_ptr<const Userfault>& faults) {
  const auto& ranges = mapping.pins_;
  const std::uint64_t first = mapping.file_offset();
  const auto admit = [&](FaultOwner& holder) -> Result<bool> {
    // With the claims locked, as the watcher's calls are.
    faults = VMSPACE_TRY(holder.admit(operation, mapping));
    return faults != nullptr;
  };
  const FaultOwner* const holder =
      VMSPACE_TRY(ranges->share(first, first + mapping.size(), watcher, admit));
  if (holder != nullptr) return claimed_by(operation, *holder);
  return FaultClaim(ranges, first, watcher);
}

FaultClaim::~FaultClaim() {
  if (ranges_) ranges_->unclaim(first_, *owner_);
}

const char* FaultClaim::holder(const MemoryMapping& mapping) {
  return mapping.pins_->claimed_by(mapping.file_offset(), mapping.file_offset() + mapping.size(),
                                   [](const FaultOwner& owner) { return !owner.only_watches(); });
}

const char* FaultClaim::any_holder(const MemoryMapping& mapping) {
  return mapping.pins_->claimed_by(mapping.file_offset(), mapping.file_offset() + mapping.size(),
                                   [](const FaultOwner&) { return true; });
}

bool FaultClaim::is_kept_from_children(const MemoryMapping& mapping) noexcept {
  return std::ranges::find(mapping.advice_, MADV_DONTFORK) != mapping.advice_.end();
}

Result<void> require_unclaimed(const char* operation, const MemoryMapping& mapping, Operand where,
                               const char* reason) {
  return require_none(FaultClaim::holder(mapping), operation, where, reason);
}

Result<void> require_unwatched(const char* operation, const MemoryMapping& mapping, Operand where,
                               const char* reason) {
  return require_none(FaultClaim::any_holder(mapping), operation, where, reason);
}

}  // namespace vmspace::detail
