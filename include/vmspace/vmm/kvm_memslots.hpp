// SPDX-License-Identifier: Apache-2.0
//
// The memory slots of a KVM virtual machine: which host memory the guest sees at which guest
// physical addresses.
//
// KVM identifies a slot by a number that its user chooses, has a limited number of slots, and takes
// at most 2^31 - 1 pages a slot. KvmMemslots hides all three: its user sets and clears ranges of
// any size, and it numbers, splits and counts. It clears whatever it has set.
//
// It is a MemoryListener: whoever changes the guest's memory tells it of each section, and it sets
// and clears them. set() and clear() are for memory that nobody tells it of, such as a device's.
//
// KVM can log which pages the guest writes. The log of a range is switched on and off while vCPUs
// run; everything else about a slot, read-only included, changes only by clearing the range and
// setting it again.
//
// Source: the kernel's Documentation/virt/kvm/api.rst, KVM_SET_USER_MEMORY_REGION,
// KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/vmm/memory_listener.hpp"

namespace vmspace {

namespace detail {
class KvmMapping;
}  // namespace detail

/// Host memory for the guest; an aggregate for designated initialisers. A MemoryRegion can be set
/// as it is: this is for memory that comes from elsewhere, such as a device's.
struct KvmMemory {
  GuestAddress base = {};        ///< where the guest sees it; a multiple of the host's page size
  std::uint64_t size = 0;        ///< bytes, a multiple of the host's page size
  void* host_address = nullptr;  ///< where it is mapped; a multiple of the host's page size
  bool read_only = false;        ///< guest writes exit to the VMM (KVM_MEM_READONLY)
  bool log_dirty = false;        ///< KVM logs the pages written (KVM_MEM_LOG_DIRTY_PAGES)

  friend bool operator==(const KvmMemory&, const KvmMemory&) = default;
};

/// Which of a machine's address spaces slots are in. Each has slots of its own.
enum class KvmAddressSpace : std::uint8_t {
  normal,  ///< what vCPUs see, and the only one where there is no `smm`
  smm,     ///< what an x86 vCPU in system management mode sees instead
};

/// One slot as KVM knows it, for the calls of KVM that name it.
struct KvmSlot {
  std::uint32_t number;  ///< what KVM calls it: in bits 16 and above, the address space
  GuestRange range;      ///< the guest memory it covers

  friend bool operator==(const KvmSlot&, const KvmSlot&) = default;
};

/// Which pages of a range the guest has written, as merge_dirty_log() and clear_dirty_log() take
/// them.
struct KvmDirtyLog {
  GuestAddress base;                ///< where the range begins
  std::uint64_t unit;               ///< the bytes that each bit covers: the host's page size
  std::vector<std::uint64_t> bits;  ///< bit n of word w: the unit 64 * w + n from the base

  friend bool operator==(const KvmDirtyLog&, const KvmDirtyLog&) = default;
};

/// Sets and clears the memory slots of one virtual machine.
///
/// A range is `known` from the set() that shows it until the clear() that removes it; a section is
/// known from add() to remove() in the same way, and its range can be used in every call but
/// clear().
///
/// Invariant: every slot that it has set in KVM belongs to exactly one known range, slot numbers
/// are leased exactly as long as their range is known, and ranges do not overlap.
///
/// Slot numbers come from a pool. By default that is a pool of its own with all numbers of its
/// address space, and nobody else may set slots there; others that do must share a pool with it and
/// lease their numbers there. The memory behind a range that was set() is not owned: it
/// must stay mapped until the range is cleared or this object is destroyed. A section stays mapped
/// by itself for as long as KVM may have a slot of it.
///
/// A moved-from object holds nothing: its calls are `bad_state`, but for check_invariants(), its
/// limit is 0, and it can be assigned to.
///
/// Threads: one at a time. vCPUs may run meanwhile; they see a range of several slots come and go
/// slot by slot.
class VMSPACE_EXPORT KvmMemslots final : public MemoryListener {
 public:
  /// Takes over the slots of the machine behind `vm_fd` (from KVM_CREATE_VM), numbered from
  /// `slot_numbers`; by default from a pool of its own with every number below KVM's limit. Slots
  /// with free numbers of the pool must not be in use yet; numbers at or above the limit are never
  /// used. The descriptor is duplicated, so the caller may close its own at any time; the machine
  /// lives on in the kernel at least as long as this object.
  ///
  /// An x86 vCPU in system management mode sees the slots of `smm` and no others. A second KvmMemslots,
  /// for these, is a listener beside the first: it shows there what the guest has, and brings what is
  /// written in that mode to the same dirty logs. set() adds what that mode alone sees (SMRAM).
  ///
  /// Errors: `invalid_argument` for a device's descriptor, such as that of /dev/kvm, and for an
  /// address space that is not a named value; `unsupported` when this KVM has no such address space
  /// (KVM_CAP_MULTI_ADDRESS_SPACE); `os` when the descriptor can't be duplicated or does not answer
  /// KVM_CHECK_EXTENSION. A few system calls.
  [[nodiscard]] static Result<KvmMemslots> create(
      int vm_fd, std::optional<RangePool> slot_numbers = {},
      KvmAddressSpace address_space = KvmAddressSpace::normal);

  /// Moves leave an object that may only be assigned to or destroyed.
  KvmMemslots(KvmMemslots&&) noexcept;
  /// The slots held before are cleared, as on destruction.
  KvmMemslots& operator=(KvmMemslots&&) noexcept;
  /// Clears every slot, so that the guest keeps no memory that the host is about to unmap. Their
  /// dirty logs are gone. The number of a slot that KVM refuses to delete stays taken in the pool, and a
  /// section in it stays mapped, for good.
  ~KvmMemslots() override;

  /// Shows `memory` to the guest, in as many slots as it needs; all of it or nothing.
  ///
  /// Errors: `zero_size`; `misaligned` unless base, size and host address are multiples of the
  /// host's page size; `overflow` when either end passes 2^64; `invalid_argument` when the host
  /// address is null; `overlap` with a known range, naming the lowest (for the range itself the
  /// error says what can be switched); `limit_exceeded` when fewer slot numbers are left than it
  /// needs; `unsupported` when it is read-only and this KVM has no read-only slots; `os`, naming
  /// the piece and its slot number, when KVM refuses one. The pieces set before that are taken away
  /// again. If KVM refuses even that (which takes a kernel that is out of memory), the range stays
  /// known: clear() it.
  ///
  /// O(log n), and a system call a slot.
  [[nodiscard]] Result<void> set(const KvmMemory& memory);

  /// Shows a mapped region as it is: a region that may not be written is read-only to the guest.
  /// Errors: `access_denied` for a region that may not be read, since a guest can read every slot;
  /// those of set(const KvmMemory&). The region must live until its range is cleared.
  [[nodiscard]] Result<void> set(const MemoryRegion& region);

  /// Removes what one set() has shown; `range` is exactly its range. When it succeeds, no vCPU
  /// accesses the memory any more, and its dirty log is gone: as with stop_dirty_log(), fetch it
  /// first.
  ///
  /// Errors: `not_found` for any other range; `bad_state` for that of a section, which remove()
  /// takes; `os` when KVM refuses: then the pieces cleared before are set again (where their dirty
  /// log was on, the next fetch reports all of them dirty), the range stays known, and clear() may
  /// be called again.
  ///
  /// O(log n), and a system call a slot, which waits for all vCPUs to notice.
  [[nodiscard]] Result<void> clear(const GuestRange& range);

  /// Has KVM log what the guest writes to a known range from now on; `range` is exactly one that
  /// set() has shown. The slots stay live: vCPUs notice nothing. Does nothing where the log is
  /// already on. The log begins empty: copy the whole range after this returns, then fetch.
  ///
  /// Errors: `not_found` for any other range; `bad_state` when it is shown only in part after a
  /// failed set() or clear(); `os`, naming the piece and its slot number, when KVM refuses. The
  /// pieces switched before that are switched back. If KVM refuses even that, the log is on only in
  /// part: start or stop it again.
  ///
  /// O(log n), and a system call a slot, in which KVM write-protects it.
  [[nodiscard]] Result<void> start_dirty_log(const GuestRange& range);

  /// Ends what start_dirty_log() began, also on live slots, and drops the log: fetch it first, with
  /// the vCPUs stopped if no write may be missed. Does nothing where the log is off. Errors: those
  /// of start_dirty_log(); where a log had ended and was switched on again, the next fetch reports
  /// all of the piece dirty. O(log n), and a system call a slot.
  [[nodiscard]] Result<void> stop_dirty_log(const GuestRange& range);

  /// Fetches what the guest has written to a known range since the last fetch, or since the log
  /// began, and clears it: those pages are logged again from then on. Fetch, then read the memory.
  /// What the host itself writes is in no log of KVM's; see enable_dirty_tracking().
  ///
  /// Errors: `not_found` for any other range; `bad_state` when its log is off, or on only in part;
  /// `os` when KVM refuses. Nothing is lost: what KVM had reported and cleared before it refused is
  /// dirty in the next fetch, as whole slots. Allocates one bit a page; a system call a slot, and
  /// one more after enable_manual_protect().
  [[nodiscard]] Result<KvmDirtyLog> fetch_dirty_log(const GuestRange& range);

  /// Has KVM take a log apart from clearing it (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), for all of this
  /// machine's logs, also those that are on: read_dirty_log() and clear_dirty_log() can be used
  /// then. Whoever sends memory piece by piece clears each piece just before it is read, so that a
  /// page which the guest writes again meanwhile is sent once; and KVM write-protects a piece at a
  /// time. Does nothing when it is on; destruction switches it off. Nobody else switches it.
  ///
  /// The switch is the machine's: with a KvmMemslots for each of its address spaces, call this on
  /// both, and destroy neither while the other has logs to read.
  ///
  /// Errors: `unsupported` when this KVM can't; `os` when it refuses. Two system calls.
  [[nodiscard]] Result<void> enable_manual_protect();

  /// Reads what the guest has written to a known range since it was last cleared, and clears
  /// nothing. A slot of which KVM has lost the log (see clear()) is dirty as a whole, until it is
  /// cleared as a whole or fetched. Errors: those of fetch_dirty_log(); `bad_state` unless
  /// enable_manual_protect() was called. Allocates one bit a page; a system call a slot.
  [[nodiscard]] Result<KvmDirtyLog> read_dirty_log(const GuestRange& range);

  /// Clears the pages whose bits are set: they are logged again from then on. Clear, then read the
  /// memory. `log` is one that read_dirty_log() gave, or a part of one: it begins at a multiple of
  /// 64 pages from the base of a known range, and ends with the range or at such a multiple.
  ///
  /// Errors: `not_found` when `log` does not begin in a known range; `bad_state` as for
  /// read_dirty_log(); `misaligned` when it does not begin at a multiple of 64 pages;
  /// `bad_alignment` when its unit is not the host's page size; `out_of_bounds` for a set bit past
  /// the end of the range; `os` when KVM refuses: pages may be cleared then, so they are to be sent
  /// all the same. O(words), and a system call for each slot with a set bit, in which KVM
  /// write-protects the pages.
  [[nodiscard]] Result<void> clear_dirty_log(const KvmDirtyLog& log);

  /// The slots that KVM has for one known range, in address order. They do not cover a range that
  /// is shown only in part after a failed set() or clear(). Errors: `not_found` for any other
  /// range. O(slots).
  [[nodiscard]] Result<std::vector<KvmSlot>> slots(const GuestRange& range) const;

  /// "kvm"; "kvm smm" for the address space of that mode.
  [[nodiscard]] std::string_view name() const noexcept override;

  /// Says whether KVM could show the sections that are added: errors, each naming the section, are
  /// `access_denied` for one that may not be read, since a guest can read every slot; `unsupported`
  /// for one that may not be written, where this KVM has no read-only slots; `misaligned` unless
  /// guest and host address and size are multiples of the host's page size; `limit_exceeded` when
  /// they need more slots than there are numbers left. The numbers of removed sections count as
  /// left where an added one lies over them, because those are removed first. O(slot numbers), and
  /// O(s log s) in the sections.
  [[nodiscard]] Result<void> prepare(const MemoryChange& change) override;

  /// Shows a section to the guest, read-only unless it may be written, with its dirty log off.
  /// Errors, each naming the section: those of prepare() and set(). Should KVM also refuse to take
  /// away the pieces that it had taken (see set()), they are tried again by the next add() over
  /// them.
  [[nodiscard]] Result<void> add(const MemorySection& section) override;

  /// Removes what add() has shown. Where its dirty log is on, the log is fetched first and merged
  /// into the region's DirtyBitmap, if that is on; should fetching fail, all of the section counts
  /// as dirty. What a vCPU writes after that and before the slot is gone is in no log: where the
  /// memory is to be used again, stop the vCPUs, as a disruptive change does.
  ///
  /// Errors, each naming the section: `not_found` unless add() was given it; those of clear().
  [[nodiscard]] Result<void> remove(const MemorySection& section) override;

  /// start_dirty_log() for a section, with its errors, each naming the section.
  [[nodiscard]] Result<void> log_start(const MemorySection& section) override;
  /// fetch_dirty_log(), merged into the region's DirtyBitmap. Errors: those of fetch_dirty_log(), each
  /// naming the section.
  [[nodiscard]] Result<void> log_sync(const MemorySection& section) override;
  /// Brings the log to the region's DirtyBitmap, as remove() does, and stop_dirty_log(). Errors: those
  /// of stop_dirty_log(), each naming the section.
  [[nodiscard]] Result<void> log_stop(const MemorySection& section) override;

  /// How many slots KVM has for this address space. O(1).
  [[nodiscard]] std::uint32_t limit() const noexcept;
  /// How many of them this object uses. O(1).
  [[nodiscard]] std::uint32_t used() const noexcept;

  /// Checks the invariant, without asking KVM: `corrupt`, with the first broken rule as the reason,
  /// which means a defect of this library or a stray write. O(n).
  [[nodiscard]] Result<void> check_invariants() const noexcept;

 private:
  struct State;
  explicit KvmMemslots(std::unique_ptr<State> state) noexcept;

  [[nodiscard]] Result<void> check_not_moved_from(const char* operation) const;
  /// The mapping of exactly this range; `not_found`, or `bad_state` after a move.
  [[nodiscard]] Result<detail::KvmMapping*> find(const GuestRange& range,
                                                 const char* operation) const;
  /// Shows the memory, and keeps its region, if it has one, for as long as the range is known.
  [[nodiscard]] Result<void> show(const KvmMemory& memory, MemoryRegionPtr region,
                                  const char* operation);
  [[nodiscard]] Result<void> check(const KvmMemory& memory, const char* operation) const;
  void clear_leftovers(const GuestRange& range) noexcept;
  /// The mapping of exactly this range, all of whose log is on.
  [[nodiscard]] Result<detail::KvmMapping*> find_logged(const GuestRange& range,
                                                        const char* operation) const;
  [[nodiscard]] Result<void> check_manual(const char* operation) const;
  [[nodiscard]] Result<void> switch_log(const GuestRange& range, bool on, const char* operation);
  void forget(const GuestRange& range) noexcept;
  void clear_all() noexcept;

  std::unique_ptr<State> state_;  // null only after a move
};

}  // namespace vmspace
