// SPDX-License-Identifier: Apache-2.0
//
// Who resolves the page faults of memory by userfaultfd(2), and what is asked of them.
//
// A range can be registered with one userfaultfd only, and what its owner knows of the pages goes
// wrong when others change them behind its back: a page that is discarded while it is restored would
// come back with its old contents (fallocate(2) sends no event). So the owner claims the memory, in
// the place that knows its pins: by offsets in the backing's file, so that other mappings of that file
// meet the claim too, and in the mapping and its parts where there is none.
//
// One who only watches may share another's claim, and its userfaultfd, and has both alone afterwards:
//
//   LazyRestore   make --------------------------- ends
//   DirtyScan                share --------------- inherits -------- ends
//   the memory    registered for MISSING, MINOR; and WP too -------- unregistered

#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"

namespace vmspace::detail {

class PinnedRanges;
class Userfault;

/// What holds a FaultClaim. Ranges are given as pins are: offsets from MemoryMapping::file_offset() 0.
class FaultOwner {
 public:
  /// For errors; a literal, such as "LazyRestore".
  [[nodiscard]] virtual const char* name() const noexcept = 0;

  /// Whether devices may access the memory by DMA meanwhile, past the page tables. If not, pinned
  /// memory can't be claimed, and claimed memory can't be pinned.
  [[nodiscard]] virtual bool allows_pins() const noexcept { return true; }

  /// Whether it only watches the memory, which others may save and share meanwhile as any other.
  [[nodiscard]] virtual bool only_watches() const noexcept { return false; }

  /// The pages of [first, end), a part of what was claimed, are about to be discarded. Until
  /// end_discard() the owner leaves them alone: it waits for what it does there, and puts nothing
  /// there. An error refuses the discard, and is its error. Called with the claims locked: neither this
  /// nor what it waits for may claim, pin or discard.
  [[nodiscard]] virtual Result<void> begin_discard(std::uint64_t first, std::uint64_t end) = 0;
  /// The discard has ended. If `discarded`, the pages are zeros from now on; else they are as before.
  virtual void end_discard(std::uint64_t first, std::uint64_t end, bool discarded) noexcept = 0;

  // Sharing. Each is called with the claims locked, as begin_discard() is.

  /// One who only watches wants to share the claim: registers the memory of this mapping for
  /// asynchronous write-protection as well, and gives the userfaultfd that has it. Null where this
  /// owner shares nothing.
  [[nodiscard]] virtual Result<std::shared_ptr<const Userfault>> admit(
      const char* /*operation*/, const MemoryMapping& /*mapping*/) {
    return nullptr;
  }
  /// Who was admitted has gone again.
  virtual void dismiss() noexcept {}
  /// The claim ends: undoes what the owner did to the memory. If it `is_inherited`, by who was
  /// admitted, the memory stays registered.
  virtual void end_claim(bool /*is_inherited*/) noexcept {}
  /// The owner who admitted this one has ended: the claim is this one's alone, and so are the faults
  /// of the memory, which stays registered for all that it was.
  virtual void inherit() noexcept {}

 protected:
  FaultOwner() = default;
  FaultOwner(const FaultOwner&) = default;
  FaultOwner& operator=(const FaultOwner&) = default;
  ~FaultOwner() = default;
};

/// Makes its holder the one owner of a mapping's page faults, until it is destroyed. From any thread.
class FaultClaim {
 public:
  /// Claims nothing.
  FaultClaim() noexcept = default;
  /// Claims all of a mapping; `owner` outlives the claim. Errors: `bad_state` while another claims any
  /// of it, whom the error names, and for pinned memory unless the owner allows pins. Waits for
  /// discards that run. Allocates.
  [[nodiscard]] static Result<FaultClaim> make(const char* operation, const MemoryMapping& mapping,
                                               FaultOwner& owner);
  /// Claims all of a mapping for one who only watches, or shares the claim of the owner who has it, if
  /// that admits it: then `faults` is set to that owner's userfaultfd, before `watcher` is called by
  /// anybody. Errors: those of make() and FaultOwner::admit().
  [[nodiscard]] static Result<FaultClaim> share(const char* operation, const MemoryMapping& mapping,
                                                FaultOwner& watcher,
                                                std::shared_ptr<const Userfault>& faults);
  FaultClaim(FaultClaim&& other) noexcept
      : ranges_(std::move(other.ranges_)), first_(other.first_), owner_(other.owner_) {}
  FaultClaim& operator=(FaultClaim&& other) noexcept {
    FaultClaim moved(std::move(other));
    std::swap(ranges_, moved.ranges_);
    std::swap(first_, moved.first_);
    std::swap(owner_, moved.owner_);
    return *this;
  }
  /// Ends the claim, which the owner is told of (end_claim()). Waits for discards that run. Allocates
  /// nothing.
  ~FaultClaim();

  /// The name() of who claims any of the mapping and does more than watch it, or null: for what may
  /// not be done meanwhile.
  [[nodiscard]] static const char* holder(const MemoryMapping& mapping);
  /// That of anybody who claims any of it, or null.
  [[nodiscard]] static const char* any_holder(const MemoryMapping& mapping);
  /// Whether MemoryMapping::use_dontfork() was called, for an owner that does the same for a time.
  [[nodiscard]] static bool is_kept_from_children(const MemoryMapping& mapping) noexcept;

 private:
  FaultClaim(std::shared_ptr<PinnedRanges> ranges, std::uint64_t first, FaultOwner& owner) noexcept
      : ranges_(std::move(ranges)), first_(first), owner_(&owner) {}

  std::shared_ptr<PinnedRanges> ranges_;  // null when it claims nothing
  std::uint64_t first_ = 0;
  FaultOwner* owner_ = nullptr;
};

/// `bad_state` while anybody claims any of the mapping and does more than watch it, whom the error
/// names; `reason`, a literal, says why that is in the way.
[[nodiscard]] Result<void> require_unclaimed(const char* operation, const MemoryMapping& mapping,
                                             Operand where, const char* reason);
/// `bad_state` while anybody claims any of it at all, for what even a watcher would miss.
[[nodiscard]] Result<void> require_unwatched(const char* operation, const MemoryMapping& mapping,
                                             Operand where, const char* reason);

}  // namespace vmspace::detail
