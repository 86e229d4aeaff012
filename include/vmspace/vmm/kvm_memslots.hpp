// SPDX-License-Identifier: Apache-2.0
//
// The memory slots of a KVM virtual machine: which host memory the guest sees at which guest
// physical addresses.
//
// KVM identifies a slot by a number that its user makes up, holds a limited number of them, and
// takes at most 2^31 - 1 pages a slot. KvmMemslots hides all three: its user sets and clears ranges
// of any size, and it numbers, splits and counts. What it has set it also takes back.
//
// KVM can log which pages the guest writes. The log of a range is switched on and off while
// processors run; everything else about a slot (read-only among it) changes only by clearing the
// range and setting it again.
//
// Source: the kernel's Documentation/virt/kvm/api.rst, KVM_SET_USER_MEMORY_REGION and
// KVM_GET_DIRTY_LOG.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

class MemoryRegion;

/// Host memory that the guest shall see; an aggregate for designated initialisers. A MemoryRegion
/// needs none: this is for memory that comes from elsewhere, such as a device's.
struct KvmMemory {
  GuestAddress base = {};        ///< where the guest sees it; a multiple of the host's page size
  std::uint64_t size = 0;        ///< bytes, a multiple of the host's page size
  void* host_address = nullptr;  ///< where the host has it mapped; also such a multiple
  bool read_only = false;        ///< guest writes exit to the VMM (KVM_MEM_READONLY)
  bool log_dirty = false;        ///< KVM notes the pages written (KVM_MEM_LOG_DIRTY_PAGES)

  friend bool operator==(const KvmMemory&, const KvmMemory&) = default;
};

/// One slot as KVM knows it, for the calls that name it (KVM_CLEAR_DIRTY_LOG).
struct KvmSlot {
  std::uint32_t number;
  Range range;  ///< the guest physical addresses it covers

  friend bool operator==(const KvmSlot&, const KvmSlot&) = default;
};

/// Which pages of a range the guest has written, in the form that GuestMemory::merge_dirty_log()
/// takes.
struct KvmDirtyLog {
  GuestAddress base;                ///< where the range begins
  std::uint64_t unit;               ///< the bytes that a bit stands for: the host's page size
  std::vector<std::uint64_t> bits;  ///< bit n of word w: the unit 64 * w + n from the base on

  friend bool operator==(const KvmDirtyLog&, const KvmDirtyLog&) = default;
};

/// Sets and clears the memory slots of one virtual machine.
///
/// Invariant: every slot that it has set in KVM belongs to exactly one known range, slot numbers
/// are in use exactly as long as their range is known, and ranges do not overlap.
///
/// It owns all slot numbers of the machine (in KVM's address space 0): nobody else may set slots in
/// it. It does not own the memory behind a range: keep that mapped until the range is cleared or
/// this object destroyed.
///
/// A moved-from object holds nothing: its calls are `bad_state`, its limit is 0, and it can be
/// assigned to.
///
/// Threads: one at a time. Processors may run in the guest meanwhile; they see a range of several
/// slots come and go slot by slot.
class VMSPACE_EXPORT KvmMemslots {
 public:
  /// Takes over the slots of the machine behind `vm_descriptor` (from KVM_CREATE_VM), which must
  /// have none yet. The descriptor is duplicated, so the caller may close its own at any time; the
  /// machine lives on in the kernel at least as long as this object. Errors: `invalid_argument` for
  /// a device's descriptor, such as that of /dev/kvm; `os` when the descriptor can't be duplicated
  /// or does not answer KVM_CHECK_EXTENSION.
  [[nodiscard]] static Result<KvmMemslots> create(int vm_descriptor);

  KvmMemslots(KvmMemslots&&) noexcept;
  /// The slots held before are cleared, as on destruction.
  KvmMemslots& operator=(KvmMemslots&&) noexcept;
  /// Clears every slot, so that the guest keeps no memory that the host is about to unmap.
  ~KvmMemslots();

  /// Shows `memory` to the guest, in as many slots as it needs; all of it or nothing.
  ///
  /// Errors: `zero_size`; `misaligned` when base, size or host address is not a multiple of the
  /// host's page size; `overflow` when either end passes 2^64; `invalid_argument` when the host
  /// address is null; `overlap` with a known range, naming the lowest (for the range itself the
  /// error says what can be switched); `limit_exceeded` when fewer slots are left than it needs;
  /// `unsupported` when it is read-only and this KVM has no read-only slots; `os`, naming the piece
  /// and its slot number, when KVM refuses one. The pieces set before that are taken back. Should
  /// KVM refuse even this, which takes a kernel out of memory, the range stays known: clear() it.
  ///
  /// Cost: O(log n) and a system call a slot.
  [[nodiscard]] Result<void> set(const KvmMemory& memory);

  /// Shows a mapped region as it is: a region that may not be written is read-only to the guest.
  /// Errors: `access_denied` for a region that may not be read, since a guest reads every slot;
  /// those of set(const KvmMemory&). Keep the region until its range is cleared.
  [[nodiscard]] Result<void> set(const MemoryRegion& region);

  /// Takes away what one set() has shown; `range` is exactly its range. `not_found` for any other;
  /// `os` when KVM refuses: then the pieces cleared before it are set again (where their dirty log
  /// was on, the next fetch says that all of them is dirty), the range stays known, and clear() may
  /// be called again. When it succeeds, no processor accesses the memory any more, and its dirty
  /// log is gone: as with stop_dirty_log(), fetch it before.
  ///
  /// Cost: O(log n) and a system call a slot, which waits for all processors to take notice.
  [[nodiscard]] Result<void> clear(const Range& range);

  /// Has KVM log from now on what the guest writes to a known range; `range` is exactly one that
  /// set() has shown. The slots stay live: processors notice nothing. Does nothing where the log is
  /// on already. It begins empty: copy the whole range after this returns, then fetch.
  ///
  /// Errors: `not_found` for any other range; `bad_state` when a failed set() or clear() has left
  /// it in part; `os`, naming the piece and its slot number, when KVM refuses. The pieces switched
  /// before that are switched back. Should KVM refuse even this, the log is on in part: start or
  /// stop it again.
  ///
  /// Cost: O(log n), and a system call a slot, in which KVM write-protects it.
  [[nodiscard]] Result<void> start_dirty_log(const Range& range);

  /// Ends what start_dirty_log() has begun, also on live slots, and forgets the log: fetch it
  /// before, with the processors stopped where no write may be missed. Does nothing where the log
  /// is off. Errors as for start_dirty_log(); where a log ended and was switched on again, the next
  /// fetch says that all of the piece is dirty. O(log n), and a system call a slot.
  [[nodiscard]] Result<void> stop_dirty_log(const Range& range);

  /// What the guest has written to a known range since the last fetch, or since the log began, and
  /// forgets it: from then on those pages are logged again. Fetch, then read the memory. Where the
  /// VMM has enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM forgets nothing until
  /// KVM_CLEAR_DIRTY_LOG. What the host itself writes is in no log of KVM's; see
  /// GuestMemory::enable_dirty_tracking().
  ///
  /// Errors: `not_found` for any other range; `bad_state` when its log is not on, or on in part;
  /// `os` when KVM refuses. Nothing is lost: what KVM had given and forgotten before it refused is
  /// dirty in the next fetch, as whole slots. Allocates one bit a page; a system call a slot.
  [[nodiscard]] Result<KvmDirtyLog> fetch_dirty_log(const Range& range);

  /// The slots that KVM has for one known range, in address order; `not_found` for any other range.
  /// Where a failed set() or clear() has left the range in part, they do not cover it. O(slots).
  [[nodiscard]] Result<std::vector<KvmSlot>> slots(const Range& range) const;

  /// How many slots KVM can hold for this machine. O(1).
  [[nodiscard]] std::uint32_t limit() const noexcept;
  /// How many of them are in use. O(1).
  [[nodiscard]] std::uint32_t used() const noexcept;

  /// `corrupt`, with the first broken rule of the invariant as its reason, which is a defect of
  /// this library or a stray write. Asks nothing of KVM. O(n).
  [[nodiscard]] Result<void> check_invariants() const noexcept;

 private:
  class State;
  explicit KvmMemslots(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;  // null only after a move
};

}  // namespace vmspace
