// SPDX-License-Identifier: Apache-2.0
//
// The address space of a running guest: an AddressSpaceBase that many threads share.
//
//   auto space = VMSPACE_TRY(AddressSpace::create(layout));
//
//   auto reader = space.reader();                                 // a vCPU thread
//   if (const auto* region = reader.current().find_region(gpa)) ...
//   if (const auto region = space.find_region(gpa)) ...            // any other, now and then
//
//   VMSPACE_TRY(space.transact([&](AddressSpaceBase& draft) -> Result<void> {  // a management thread
//     VMSPACE_TRY(draft.remove_region(old_base));
//     VMSPACE_TRY(draft.insert_region(replacement));
//     return {};
//   }));

#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/detail/retired_regions.hpp"
#include "vmspace/address_space/region_ledger.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/published.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

/// A guest physical address space that changes while others read it.
///
/// A handle: copies of it are the same space, and moving one copies it. Every change is made to a
/// copy of the regions and published at once: a reader sees the space before it or after it, and
/// nothing between.
///
/// Threads: every call is safe from any thread, but for assigning to a handle that another thread
/// uses. Changes happen one after the other, none is lost; `would_deadlock` for a change from inside a
/// transaction on the same space. Each costs O(n) for the copy, a pointer a region. See Published for
/// readers, for who destroys what, and for the order in which to change two spaces at once.
class VMSPACE_EXPORT AddressSpace final : public RegionLedger {
 public:
  /// One thread's view of the space, for threads that look at it often; see reader().
  using Reader = Published<AddressSpaceBase>::Reader;

  /// Creates a space with these regions. Errors: those of AddressSpaceBase::from_regions(). O(n log
  /// n).
  [[nodiscard]] static Result<AddressSpace> create(
      AddressSpaceLayout layout, std::vector<AddressSpaceRegionPtr> regions = {}) {
    auto first = VMSPACE_TRY_IN("AddressSpace::create", AddressSpaceBase::from_regions(
                                                            std::move(layout), std::move(regions)));
    return AddressSpace(std::move(first));
  }

  /// A space that begins as a copy of `first`.
  explicit AddressSpace(AddressSpaceBase first)
      : published_(std::move(first)), retired_(std::make_shared<detail::RetiredRegions>()) {}

  // Copies are handles of one space, and moving copies: every handle can be used at any time.
  AddressSpace(const AddressSpace&) = default;
  AddressSpace& operator=(const AddressSpace&) = default;
  ~AddressSpace() override = default;

  /// A reader for one thread: current() is the space now, for one load and one compare. Allocates,
  /// takes a lock briefly.
  [[nodiscard]] Reader reader() const { return published_.reader(); }

  /// The space now, which stays as it is as long as the pointer lives. For cold paths: allocates,
  /// takes a lock briefly. Name the pointer before you borrow from it:
  /// `space.snapshot()->find_region(address)` dangles.
  [[nodiscard]] std::shared_ptr<const AddressSpaceBase> snapshot() const override {
    return published_.snapshot();
  }

  /// The region that contains the address now; null when none does. It stays as it is as long as
  /// the pointer lives, also once it is removed. For cold paths: allocates, as snapshot(). O(log n).
  [[nodiscard]] AddressSpaceRegionPtr find_region(GuestAddress address) const {
    const auto now = snapshot();
    const auto* found = now->find_pointer(address);
    return found == nullptr ? nullptr : *found;
  }

  /// How often the space was published: 1 in the beginning, one more with each change. One load.
  [[nodiscard]] std::uint64_t generation() const noexcept { return published_.generation(); }

  /// Several changes, published at once or not at all: `edit(AddressSpaceBase&)` gives a Result,
  /// and an error of it leaves the space, its generation and its readers as they were.
  template <typename Edit>
  [[nodiscard]] std::invoke_result_t<Edit, AddressSpaceBase&> transact(Edit&& edit) const {
    return change(std::forward<Edit>(edit), "AddressSpace::transact");
  }
  /// RegionLedger::transact.
  [[nodiscard]] Result<void> transact(const RegionLedger::Edit& edit) const override {
    return change(edit, "AddressSpace::transact");
  }

  /// RegionLedger::retire.
  void retire(RegionList&& regions) const noexcept override { retired_->add(std::move(regions)); }
  /// RegionLedger::retired.
  [[nodiscard]] std::vector<AddressSpaceRegionPtr> retired() const override {
    return retired_->list();
  }
  /// RegionLedger::collect.
  [[nodiscard]] Result<void> collect() const override {
    if (retired_->empty()) return {};
    return change([](AddressSpaceBase&) { return Result<void>(); }, "AddressSpace::collect");
  }

  // The calls of AddressSpaceBase, each a transaction of its own, with their errors and those of
  // Published::update.

  /// AddressSpaceBase::insert_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_region(AddressSpaceRegionPtr region) const {
    return VMSPACE_TRY_IN("AddressSpace::insert_region", transact([&](AddressSpaceBase& draft) {
                            return draft.insert_region(std::move(region));
                          }));
  }
  /// AddressSpaceBase::insert_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_region(RegionOptions options) const {
    return VMSPACE_TRY_IN("AddressSpace::insert_region", transact([&](AddressSpaceBase& draft) {
                            return draft.insert_region(std::move(options));
                          }));
  }
  /// AddressSpaceBase::remove_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> remove_region(GuestAddress base) const {
    return VMSPACE_TRY_IN("AddressSpace::remove_region", transact([&](AddressSpaceBase& draft) {
                            return draft.remove_region(base);
                          }));
  }
  /// AddressSpaceBase::insert_parked_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> insert_parked_region(
      AddressSpaceRegionPtr region) const {
    return VMSPACE_TRY_IN("AddressSpace::insert_parked_region",
                          transact([&](AddressSpaceBase& draft) {
                            return draft.insert_parked_region(std::move(region));
                          }));
  }
  /// AddressSpaceBase::remove_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> remove_region(AddressSpaceRegionPtr region) const {
    return VMSPACE_TRY_IN("AddressSpace::remove_region", transact([&](AddressSpaceBase& draft) {
                            return draft.remove_region(std::move(region));
                          }));
  }
  /// AddressSpaceBase::move_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> move_region(GuestAddress from,
                                                          GuestAddress to) const {
    return VMSPACE_TRY_IN("AddressSpace::move_region", transact([&](AddressSpaceBase& draft) {
                            return draft.move_region(from, to);
                          }));
  }
  /// AddressSpaceBase::move_regions, as a transaction.
  [[nodiscard]] Result<std::vector<AddressSpaceRegionPtr>> move_regions(
      std::span<const RegionMove> moves) const {
    return VMSPACE_TRY_IN("AddressSpace::move_regions", transact([&](AddressSpaceBase& draft) {
                            return draft.move_regions(moves);
                          }));
  }
  /// As above, for moves that are written in braces.
  [[nodiscard]] Result<std::vector<AddressSpaceRegionPtr>> move_regions(
      std::initializer_list<RegionMove> moves) const {
    return move_regions(std::span(moves.begin(), moves.size()));
  }
  /// AddressSpaceBase::place_region, as a transaction.
  [[nodiscard]] Result<AddressSpaceRegionPtr> place_region(RegionOptions options,
                                                           const Constraint& constraint,
                                                           std::string_view aperture) const {
    return VMSPACE_TRY_IN("AddressSpace::place_region", transact([&](AddressSpaceBase& draft) {
                            return draft.place_region(std::move(options), constraint, aperture);
                          }));
  }

  /// Waits until nobody sees the space as it was before the last change; see
  /// Published::wait_released().
  [[nodiscard]] Result<void> wait_released(std::chrono::nanoseconds timeout) const {
    VMSPACE_TRY_IN("AddressSpace::wait_released", published_.wait_released(timeout));
    return {};
  }

  /// Whether both are handles of one space.
  [[nodiscard]] bool same_as(const AddressSpace& other) const noexcept {
    return published_.same_as(other.published_);
  }

 private:
  /// Every change: what is retired goes first.
  template <typename Edit>
  [[nodiscard]] std::invoke_result_t<Edit, AddressSpaceBase&> change(Edit&& edit,
                                                                     const char* operation) const {
    if constexpr (std::is_same_v<std::remove_cvref_t<Edit>, RegionLedger::Edit>) {
      if (!edit) {
        return fail({.code = Errc::invalid_argument,
                     .operation = operation,
                     .reason = "the edit must not be empty"});
      }
    }
    return published_.update(
        [&](AddressSpaceBase& draft) {
          // Ends before the next change begins, which finds what this one puts back.
          detail::RetiredRegions::Removal removal(*retired_);
          for (const AddressSpaceRegionPtr& region : removal.regions())
            static_cast<void>(draft.remove_region(region));
          auto result = std::forward<Edit>(edit)(draft);
          if (result) removal.done();  // publishing can't fail
          return result;
        },
        operation);
  }

  Published<AddressSpaceBase> published_;
  std::shared_ptr<detail::RetiredRegions> retired_;  ///< never null; one for all handles
};

}  // namespace vmspace
