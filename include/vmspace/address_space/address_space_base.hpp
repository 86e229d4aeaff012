// SPDX-License-Identifier: Apache-2.0
//
// What every guest physical address is: the regions that were put into a layout, as a value.
//
//   AddressSpaceBase space(layout);
//   VMSPACE_TRY(space.insert_region(
//       {.name = "ram", .size = 3_GiB, .backing = {.source = MemorySource::shmem}}));
//   const auto bar = VMSPACE_TRY(
//       space.place_region({.name = "gpu BAR0", .type = RegionType::device_memory},
//                          {.size = 16_MiB, .align = 16_MiB}, "mmio_high"));
//   VMSPACE_TRY(space.move_regions({{nic, gpu->base()}, {gpu, nic->base()}}));  // the guest swaps BARs
//   if (const AddressSpaceRegion* region = space.find_region(GuestAddress{0x1000})) ...
//   for (const AddressSpaceRegionPtr& region : space) ...
//
// Regions are entries of an IntervalTree whose free ranges are what the layout leaves between its
// holes: looking up, refusing overlaps and finding a free place are one structure. A region never
// changes once it is in, so copies of the space share it, and copying a space costs a pointer a
// region; that is how AddressSpace publishes each change.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/interval_iterator.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// Where one region of a space goes: an address, or none, and then it is parked.
struct RegionMove {
  /// The region as the space has it. It is named by its pointer, so that a move which was decided
  /// before another one is an error, and never moves what has come to lie there since.
  AddressSpaceRegionPtr region = {};
  std::optional<GuestAddress> to = {};  ///< the new base; unset: the region is parked
};

/// The regions of a guest physical address space.
///
/// A region is placed, or it is parked: the space knows it, and it has no address, as a BAR that the
/// guest has not enabled, or has written onto another one and is about to write again. What looks
/// up addresses or walks over the space finds placed regions alone; parked() has the others.
///
/// Invariant: no two placed regions overlap, and each lies where the layout allows its type
/// (AddressSpaceLayout::check_place); a parked region is parked once and not placed; see
/// check_invariants().
///
/// Failure: a call that returns an error, or throws std::bad_alloc, leaves the space as it was.
/// A borrowed region lives until it is removed or moved and every copy of the space that has it is
/// gone; a shared one for as long as it is held. A space that was moved from may only be assigned to
/// or destroyed.
///
/// Threads: const calls may run at the same time; any other call excludes all others. Spaces that
/// share regions are independent.
class VMSPACE_EXPORT AddressSpaceBase {
  using Tree = IntervalTree<AddressSpaceRegionPtr>;

 public:
  /// Walks over regions in address order.
  class Iterator {
   public:
    using iterator_category = std::bidirectional_iterator_tag;
    using value_type = AddressSpaceRegionPtr;
    using difference_type = std::ptrdiff_t;
    using pointer = const AddressSpaceRegionPtr*;
    using reference = const AddressSpaceRegionPtr&;

    Iterator() = default;
    [[nodiscard]] reference operator*() const noexcept { return *(*at_).value; }
    /// A member of the pointer to the region, such as get().
    [[nodiscard]] pointer operator->() const noexcept { return &**this; }
    Iterator& operator++() noexcept {
      ++at_;
      skip_free();
      return *this;
    }
    Iterator operator++(int) noexcept {
      Iterator before = *this;
      ++*this;
      return before;
    }
    Iterator& operator--() noexcept {
      do
        --at_;
      while (at_->value == nullptr);
      return *this;
    }
    Iterator operator--(int) noexcept {
      Iterator before = *this;
      --*this;
      return before;
    }
    /// Whether both are at one region of one space.
    friend bool operator==(const Iterator& a, const Iterator& b) noexcept { return a.at_ == b.at_; }

   private:
    friend AddressSpaceBase;
    Iterator(Tree::Iterator at, Tree::Iterator end) noexcept : at_(at), end_(end) { skip_free(); }
    void skip_free() noexcept {
      while (at_ != end_ && (*at_).value == nullptr)
        ++at_;
    }

    Tree::Iterator at_;
    Tree::Iterator end_;
  };
  using iterator = Iterator;
  using const_iterator = Iterator;

  /// A space without regions.
  explicit AddressSpaceBase(AddressSpaceLayout layout);

  /// Copies share the regions; when assigning finds no memory, the space is as it was. O(n).
  AddressSpaceBase(const AddressSpaceBase&) = default;
  AddressSpaceBase(AddressSpaceBase&&) noexcept = default;
  /// As copying; when it finds no memory, the space is as it was. O(n).
  AddressSpaceBase& operator=(const AddressSpaceBase& other) {
    return *this = AddressSpaceBase(other);
  }
  AddressSpaceBase& operator=(AddressSpaceBase&&) noexcept = default;
  ~AddressSpaceBase() = default;

  /// A space with these regions, in any order. Errors: those of insert_region() for the first that
  /// does not fit. O(n log n).
  [[nodiscard]] static Result<AddressSpaceBase> from_regions(
      AddressSpaceLayout layout, std::vector<AddressSpaceRegionPtr> regions);

  /// Puts a region where it says, and gives it back. Errors, each naming the region:
  /// `invalid_argument` for a null pointer; `bad_state` when it is parked (move_regions() places
  /// it); those of AddressSpaceLayout::check_place; `overlap`, naming the lowest region in the way.
  /// O(log n), and O(p) in the parked regions unless nobody else has the region.
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_region(AddressSpaceRegionPtr region);
  /// Makes a region, puts it where it says, and gives it. Errors: those of AddressSpaceRegion::make;
  /// those of inserting it. O(log n).
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_region(RegionOptions options);

  /// Adds a region as a parked one, whose base means nothing yet, and gives it back: a BAR that the
  /// guest has still to place, or one that was parked when the VM was saved. Errors:
  /// `invalid_argument` for a null pointer; `bad_state`, naming the region, when the space has it
  /// already. O(log n), and O(p) in the parked regions unless nobody else has the region.
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_parked_region(AddressSpaceRegionPtr region);

  /// Takes out the region that begins at `base`, and gives it. `not_found` when none begins there.
  /// O(log n); never allocates.
  [[nodiscard]] Result<AddressSpaceRegionPtr> remove_region(GuestAddress base);
  /// Takes out this very region, placed or parked, and gives it back. Errors: `invalid_argument` for
  /// a null pointer; `not_found`, naming the region, when the space does not have it. O(log n), and
  /// O(p) in the parked regions; never allocates.
  [[nodiscard]] Result<AddressSpaceRegionPtr> remove_region(AddressSpaceRegionPtr region);

  /// Moves the region that begins at `from` to begin at `to`, as when a guest writes a BAR, wholly
  /// or not at all; gives the region at its new place. The new place may overlap the old. Errors:
  /// `not_found` when no region begins at `from`; those of move_regions(). O(log n), and O(p) in the
  /// parked regions; O(n) when the places overlap.
  [[nodiscard]] Result<AddressSpaceRegionPtr> move_region(GuestAddress from, GuestAddress to);

  /// Moves, parks and places again several regions at once, wholly or not at all. Only the end
  /// counts: regions may swap places, and one may go where another of the same set has been. Gives
  /// the regions as they are then, in the order of the moves.
  ///
  /// A region that goes nowhere, is parked, or returns from parking to where it was, stays the same
  /// object; any other is a new one, and the old one is no longer the space's. A parked region still
  /// says in base() where it has been.
  ///
  /// Errors, each naming the region: `invalid_argument` for a null pointer, and for a region that is
  /// named twice; `not_found` when the space does not have this very region; those of
  /// AddressSpaceRegion::make and AddressSpaceLayout::check_place for the new place; `overlap`,
  /// naming both regions, when the new place meets a region that stays, or the new place of another
  /// one. For m moves O(m log(n + m)), and O(m p) in the parked regions; O(n) more when several
  /// regions get addresses, or one that overlaps an old place of the set.
  [[nodiscard]] Result<std::vector<AddressSpaceRegionPtr>> move_regions(
      std::span<const RegionMove> moves);
  /// As above, for moves that are written in braces.
  [[nodiscard]] Result<std::vector<AddressSpaceRegionPtr>> move_regions(
      std::initializer_list<RegionMove> moves) {
    return move_regions(std::span(moves.begin(), moves.size()));
  }

  /// Where place_region() would put a region of this type: `constraint.size` bytes inside the
  /// aperture of this name, which the constraint's min and max narrow. Errors: those of
  /// Constraint::validate; `not_found`, naming the layout's apertures, when it has none of this
  /// name; `bad_state`, naming the types that the aperture takes, when `type` is not among them;
  /// `no_space`, with the largest free piece as what is available. Costs what IntervalTree::find_place
  /// does; allocates nothing but for an error.
  [[nodiscard]] Result<Range> find_place(RegionType type, const Constraint& constraint,
                                         std::string_view aperture) const;
  /// As find_place(), for who is about to put a region there by insert_region(): learns from the search,
  /// so that it costs what IntervalTree::allocate does. Errors: as find_place().
  [[nodiscard]] Result<Range> choose_place(RegionType type, const Constraint& constraint,
                                           std::string_view aperture);

  /// Puts a region where find_place() says, and gives it. The place is also aligned to the
  /// backing's page size. `options.base` must be 0, `options.size` 0 or the constraint's. Errors:
  /// `invalid_argument` when base or size disagree; those of find_place(), each naming the region
  /// or the aperture that is not there; those of AddressSpaceRegion::make. Costs what
  /// IntervalTree::allocate does.
  [[nodiscard]] Result<AddressSpaceRegionPtr> place_region(RegionOptions options,
                                                           Constraint constraint,
                                                           std::string_view aperture);

  /// The region that contains the address, borrowed; null when none does. O(log n).
  [[nodiscard]] const AddressSpaceRegion* find_region(GuestAddress address) const noexcept {
    const AddressSpaceRegionPtr* found = find_pointer(address);
    return found == nullptr ? nullptr : found->get();
  }

  /// The placed regions that have a byte of the range, in address order, as a view that is good until
  /// the next call that changes the space. An empty range has no byte, and one that passes 2^64 ends
  /// there. O(log n).
  [[nodiscard]] IntervalView<Iterator> overlapping(GuestRange range) const noexcept;

  /// Whether the region that contains the address is dax_memory. `not_found` when none does. O(log
  /// n).
  [[nodiscard]] Result<bool> is_dax_region(GuestAddress address) const;
  /// What the guest may do with the region that contains the address. `not_found` when none does.
  /// O(log n).
  [[nodiscard]] Result<Protection> prot_flags(GuestAddress address) const;
  /// The host node of the region that contains the address; nothing when the region sets none,
  /// which is not `not_found`: no region contains the address. O(log n).
  [[nodiscard]] Result<std::optional<std::uint32_t>> numa_node_id(GuestAddress address) const;

  /// The frame that every region was checked against. O(1).
  [[nodiscard]] const AddressSpaceLayout& layout() const noexcept { return *layout_; }

  /// The last address of the highest placed region, inclusive; nothing when there is none.
  [[nodiscard]] std::optional<GuestAddress> last_addr() const noexcept;

  /// How many placed regions there are. O(1).
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Whether no region is placed; parked ones don't count. O(1).
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  /// The placed regions in address order.
  [[nodiscard]] Iterator begin() const noexcept { return {regions_.begin(), regions_.end()}; }
  /// Behind the last of them.
  [[nodiscard]] Iterator end() const noexcept { return {regions_.end(), regions_.end()}; }

  /// The regions without an address, in the order in which they were parked; good until the next
  /// call that changes the space. O(1).
  [[nodiscard]] std::span<const AddressSpaceRegionPtr> parked() const noexcept { return parked_; }

  /// Spaces are equal when their layouts and regions say the same, and the same regions are parked,
  /// in any order. O(n), and O(p^2) in the parked regions.
  friend VMSPACE_EXPORT bool operator==(const AddressSpaceBase& a,
                                        const AddressSpaceBase& b) noexcept;

  /// Checks every rule of the invariant: `corrupt` with the first one that is broken as its reason,
  /// which is a defect of this library or a stray write. O(n log n), and O(p^2) in the parked regions.
  [[nodiscard]] Result<void> check_invariants() const;

 private:
  friend class AddressSpace;  // gives out a region's pointer

  [[nodiscard]] const AddressSpaceRegionPtr* find_pointer(GuestAddress address) const noexcept {
    return regions_.find_value(address.value());
  }
  /// Whether the space has this very region, which is not null, at an address.
  [[nodiscard]] bool is_placed(const AddressSpaceRegionPtr& region) const noexcept {
    const AddressSpaceRegionPtr* found = find_pointer(region->base());
    return found != nullptr && *found == region;
  }
  [[nodiscard]] bool is_parked(const AddressSpaceRegionPtr& region) const noexcept;
  /// The layout's error for the region's place.
  [[nodiscard]] Result<void> check_place(const AddressSpaceRegion& region,
                                         const char* operation) const;
  /// `overlap` when a region that is not in `leaving`, which is sorted, has a part of the place.
  [[nodiscard]] Result<void> check_free(
      const AddressSpaceRegion& region, const char* operation,
      std::span<const AddressSpaceRegion* const> leaving = {}) const;
  /// The error of naming a region that is null, or that is not in the space.
  [[nodiscard]] Result<void> check_has(const AddressSpaceRegionPtr& region,
                                       const char* operation) const;
  /// What the region is after its move; the error of its new place, whatever else lies there.
  [[nodiscard]] Result<AddressSpaceRegionPtr> moved(const RegionMove& move,
                                                    const char* operation) const;
  [[nodiscard]] Result<const AddressSpaceRegion*> region_from(GuestAddress base,
                                                              const char* operation) const;
  [[nodiscard]] Result<const AddressSpaceRegion*> region_at(GuestAddress address,
                                                            const char* operation) const;
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_region(AddressSpaceRegionPtr region,
                                                            const char* operation);
  [[nodiscard]] Result<std::vector<AddressSpaceRegionPtr>> move_regions(
      std::span<const RegionMove> moves, const char* operation);

  std::shared_ptr<const AddressSpaceLayout> layout_;
  Tree regions_;  ///< free: where regions may go; valued: a region, never null
  std::size_t size_ = 0;
  std::vector<AddressSpaceRegionPtr> parked_;  ///< never null
};

/// What changed from one space to another.
struct RegionDiff {
  std::vector<AddressSpaceRegionPtr> removed;  ///< in address order
  std::vector<AddressSpaceRegionPtr> added;    ///< in address order

  /// Whether the two spaces have equal regions at the same addresses. What is parked is not looked at.
  [[nodiscard]] bool empty() const noexcept { return removed.empty() && added.empty(); }
};

/// The regions that only one of the spaces has at an address; a region that was moved or changed in
/// any way is both removed and added, and one that was parked is removed. O(n); a region that both
/// share is compared by its pointer alone.
[[nodiscard]] VMSPACE_EXPORT RegionDiff diff(const AddressSpaceBase& before,
                                             const AddressSpaceBase& after);

}  // namespace vmspace
