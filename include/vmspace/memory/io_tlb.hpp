// SPDX-License-Identifier: Apache-2.0
//
// What a device may reach behind an IOMMU: translations from the addresses that its driver uses
// (IOVAs) to guest memory, given by the VMM and taken back at any time.
//
//   IoTlb tlb = VMSPACE_TRY(IoTlb::make({.on_miss = ask_the_iommu}));      // once a device
//   VMSPACE_TRY(tlb.update({.iova = iova, .guest = range}));              // VHOST_IOTLB_UPDATE
//   VMSPACE_TRY(tlb.invalidate({iova, size}, 1s));                        // VHOST_IOTLB_INVALIDATE
//
//   IoTlbReader reader = tlb.reader();                                    // once a thread
//   IommuView view(reader, memory);                                       // a request: iommu_view.hpp
//
// A translation that was invalidated must not be used any more once the driver is told so: it may have
// given the memory to somebody else. So the translations are a Published value, and a view holds the
// one that it began with: invalidate() publishes one without the range, and then waits until all views
// that began before have ended. Within a view a translation costs a search and no atomic operation,
// and what was translated stays good; beginning and ending one are what a Published::Reader costs.
//
// IOVAs have the type GuestAddress, ranges of them GuestRange: they are what a driver writes into its
// descriptors, which nobody can tell from guest addresses before they are translated.

#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/allocator/detail/decode_table.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/published.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

/// A translation: the addresses from `iova` on, as many as `guest` has bytes, mean `guest`. Any
/// alignment. Either range may end with the last byte, 2^64-1.
struct IoTlbEntry {
  GuestAddress iova = {};  ///< the first address that the device uses
  GuestRange guest = {};   ///< the guest memory that is meant
  /// What the device may do: read, write or both.
  Protection access = Protection::read_write;

  friend bool operator==(const IoTlbEntry&, const IoTlbEntry&) = default;
};

namespace detail {

/// An entry as a look-up reads it: 32 bytes, so that indexing is a shift.
struct IoTlbSlot {
  std::uint64_t first;  ///< in a map, from the map's origin
  std::uint64_t size;
  std::uint64_t guest;           ///< what `first` means
  std::uint64_t age_and_access;  ///< how many came before, and in the lowest two bits a Protection

  /// Whether all of `bytes`, not 0, lie in here and may be accessed.
  [[nodiscard]] bool holds(std::uint64_t at, std::uint64_t bytes, Access access) const noexcept {
    // An address below `first` wraps to a difference above every size.
    return bytes <= size && at - first <= size - bytes && allows_access(access);
  }
  [[nodiscard]] bool contains(std::uint64_t at) const noexcept { return at - first < size; }
  /// One that holds nothing.
  [[nodiscard]] static constexpr IoTlbSlot smallest(std::uint64_t at) noexcept {
    return {.first = at, .size = 0, .guest = 0, .age_and_access = 0};
  }
  [[nodiscard]] bool allows_access(Access access) const noexcept {
    const Protection wanted = access == Access::read ? Protection::read : Protection::write;
    return (age_and_access & static_cast<std::uint64_t>(wanted)) != 0;
  }
};
static_assert(sizeof(IoTlbSlot) == 32);

/// The translations at one time.
struct IoTlbMap {
  /// Shared by copies, and replaced by whoever changes one. Null when there are none.
  std::shared_ptr<const DecodeTable<IoTlbSlot>> table = {};
  Decoder<IoTlbSlot> decoder = DecodeTable<IoTlbSlot>::empty_decoder();
  /// The lowest IOVA: drivers take them from the top of some space, far from 0, where the slots of a
  /// decoder would be too coarse to tell them apart.
  std::uint64_t origin = 0;
  std::uint64_t next_age = 0;

  /// In order of their addresses, which are relative to `origin`; they don't overlap.
  [[nodiscard]] std::span<const IoTlbSlot> slots() const noexcept {
    return table == nullptr ? std::span<const IoTlbSlot>() : table->entries();
  }
};

struct IoTlbState;

}  // namespace detail

/// Gives the translation of an IOVA that the table does not have: an entry that contains it, and
/// allows the access, or an error, with which the access ends. Runs on the thread of the device, on
/// several at once, inside a view: it must not wait for a thread that invalidates.
using IoTlbMiss = std::function<Result<IoTlbEntry>(GuestAddress iova, Access access)>;

/// How a table is made; an aggregate for designated initialisers.
struct IoTlbOptions {
  /// The most entries, as a guest may make a VMM give any number of them. The oldest goes when there
  /// would be more. As many as Linux's vhost has.
  std::size_t max_entries = 2048;
  /// Empty: what is not in the table is `not_found`. Each answer is put into the table as update() puts
  /// one entry: O(max_entries), some 40 us for 2048. So an answer should be as long as the mapping that
  /// it is from, and what a driver is known to use is better given by update(), many at a time.
  IoTlbMiss on_miss = {};
};

class IoTlbReader;

/// The translations of one device, or of all devices in one domain.
///
/// A handle: copies of it are the same table, and moving one copies it. Threads: every call is safe from
/// any thread, but for assigning to a handle that another thread uses; changes are made one after the
/// other. Each copies the table, so that many entries should come in one call.
///
/// Invariant: the entries don't overlap, and there are no more than max_entries.
class VMSPACE_EXPORT IoTlb {
 public:
  // No move operations: moving copies the handle, and both stay usable.
  IoTlb(const IoTlb&) noexcept = default;
  IoTlb& operator=(const IoTlb&) noexcept = default;
  ~IoTlb() = default;

  /// A table without entries. Errors: `invalid_argument` for max_entries that are not 1 to
  /// 15871.
  [[nodiscard]] static Result<IoTlb> make(IoTlbOptions options = {});

  /// Adds entries, in their order, all or none. What they overlap is replaced: of an older entry, the
  /// parts beside the new one stay. Views that have begun go on with the translations that they have;
  /// to replace one that may be in use, invalidate it first, as vhost and virtio-iommu ask for.
  /// Errors: `zero_size` for an empty entry; `overflow` for one whose addresses, on either side,
  /// would pass 2^64; `invalid_argument` for an access other than read, write or both. Waits for
  /// nobody who reads. O(n) in the table, and that again for each entry given.
  [[nodiscard]] Result<void> update(std::span<const IoTlbEntry> entries);
  /// As above, for one entry.
  [[nodiscard]] Result<void> update(const IoTlbEntry& entry) {
    return update(std::span(&entry, 1));
  }

  /// Removes the range from the table: no view that begins from now on has it, and when this returns,
  /// no view that began before is left. Of an entry that it covers in part, the rest stays; a range
  /// that passes 2^64 ends there. Errors: `timed_out` when an earlier view has not ended in time, as
  /// one of the calling thread's own never does: the range is removed all the same, but may be in use
  /// until a repeated call succeeds. O(n), and the wait.
  [[nodiscard]] Result<void> invalidate(GuestRange iova, std::chrono::nanoseconds timeout);
  /// Removes every entry, as invalidate() does.
  [[nodiscard]] Result<void> invalidate_all(std::chrono::nanoseconds timeout);

  /// The entries, by address. For tests and dumps: O(n), allocates.
  [[nodiscard]] std::vector<IoTlbEntry> entries() const;

  /// A reader for one thread of the device. Allocates, takes a lock briefly.
  [[nodiscard]] IoTlbReader reader() const;

  /// `corrupt` when the invariant is broken, with the first broken rule as the reason. For tests; O(n).
  [[nodiscard]] Result<void> check_invariants() const;

 private:
  explicit IoTlb(std::shared_ptr<detail::IoTlbState> state) noexcept : state_(std::move(state)) {}

  std::shared_ptr<detail::IoTlbState> state_;
};

/// One thread's way to the translations; IommuView makes use of it.
///
/// Threads: used by one thread at a time. It must outlive its views, and not be moved while one lives.
class VMSPACE_EXPORT IoTlbReader {
 public:
  /// Moves leave a reader that may only be assigned to or destroyed.
  IoTlbReader(IoTlbReader&&) noexcept = default;
  IoTlbReader& operator=(IoTlbReader&&) noexcept = default;
  ~IoTlbReader() = default;

 private:
  friend class IoTlb;
  friend class IommuView;

  IoTlbReader(std::shared_ptr<detail::IoTlbState> state,
              Published<detail::IoTlbMap>::Reader reader) noexcept
      : state_(std::move(state)), reader_(std::move(reader)) {}

  void begin_view() {
    if (views_++ == 0) map_ = &reader_.current();
  }
  void end_view() noexcept {
    if (--views_ != 0) return;
    missed_count_ = 0;
    reader_.park();
  }

  /// The slot that contains `iova` and allows the access, after a miss if need be. Errors: `not_found`;
  /// `access_denied`; what the callback gave; `invalid_argument` when it gave a wrong entry.
  [[nodiscard]] Result<detail::IoTlbSlot> find(GuestAddress iova, Access access);
  [[nodiscard]] Result<detail::IoTlbSlot> ask(GuestAddress iova, Access access);

  std::shared_ptr<detail::IoTlbState> state_;
  Published<detail::IoTlbMap>::Reader reader_;
  const detail::IoTlbMap* map_ = nullptr;  ///< of the first of the views that live
  std::size_t views_ = 0;

  // What was missed since the first view began, which map_ can't have. They are used like map_ until
  // the views end, and no longer. A few suffice: one that was pushed out is asked for again.
  std::array<detail::IoTlbSlot, 8> missed_;
  std::size_t missed_count_ = 0;  ///< so many came; the oldest are overwritten
};

}  // namespace vmspace
