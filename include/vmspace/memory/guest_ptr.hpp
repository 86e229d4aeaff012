// SPDX-License-Identifier: Apache-2.0
//
// A pointer into guest memory that can't be followed without a check.
//
// Device structures in guest memory are arrays and records: a virtqueue's descriptors, a ring, a
// command. A `GuestPtr<T>` names one of them by its guest address; reading it gives a private copy,
// made once, and what was checked in the copy is what is used (XSA-155 is what happens otherwise).
// There is no operator* and no operator->: an access can fail, and a member that is looked at twice
// may have changed in between.
//
//   const GuestPtr<Descriptor> table(memory, table_address);
//   const auto entry = VMSPACE_TRY(table.at(index, queue_size));
//   const Descriptor descriptor = VMSPACE_TRY(entry.read());

#pragma once

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/guest_ref.hpp"

namespace vmspace {

/// The address of a T in guest memory. A value of two words that refers to a GuestMemory, which has
/// to outlive it; nothing is checked until it is read or written. Any thread may use it.
template <GuestObject T>
class GuestPtr {
 public:
  /// Points at `address`, which is checked only when it is used; the memory has to outlive the
  /// pointer.
  GuestPtr(const GuestMemory& memory, GuestAddress address) noexcept
      : memory_(&memory), address_(address) {}
  // It would point into what is gone at the end of the statement.
  GuestPtr(const GuestMemory&& memory, GuestAddress address) = delete;

  /// Where it points.
  [[nodiscard]] GuestAddress address() const noexcept { return address_; }

  /// A copy of the object, read once. Errors and cost: as GuestMemory::read.
  [[nodiscard]] Result<T> read() const { return memory_->read<T>(address_); }
  /// Writes the object. Errors and cost: as GuestMemory::write.
  [[nodiscard]] Result<void> write(const T& value) const requires WritableGuestObject<T> {
    return memory_->write(address_, value);
  }

  /// One access of the machine, with a memory order. Errors: as GuestMemory::load and store.
  [[nodiscard]] Result<T> load(std::memory_order order) const requires GuestAtomic<T> {
    return memory_->load<T>(address_, order);
  }
  /// As GuestMemory::store.
  [[nodiscard]] Result<void> store(T value, std::memory_order order) const requires GuestAtomic<T> {
    return memory_->store<T>(address_, value, order);
  }
  /// One step of the machine, seq_cst; gives what was there before. Errors: as
  /// GuestMemory::compare_exchange and fetch_or.
  [[nodiscard]] Result<T> compare_exchange(T expected, T desired) const requires GuestAtomic<T> {
    return memory_->compare_exchange<T>(address_, expected, desired);
  }
  /// As GuestMemory::fetch_or.
  [[nodiscard]] Result<T> fetch_or(T bits) const requires GuestAtomic<T> {
    return memory_->fetch_or<T>(address_, bits);
  }

  /// The element `index` of an array of `count` that begins here. Errors: `out_of_bounds` for an
  /// index that is not below the count; `overflow` when the element would begin above 2^64-1.
  [[nodiscard]] Result<GuestPtr> at(std::uint64_t index, std::uint64_t count) const {
    if (index >= count) [[unlikely]]
      return fail(detail::index_error("GuestPtr::at", index, count));
    // The product can't be formed where it would pass 2^64.
    if (index > (std::numeric_limits<std::uint64_t>::max() - address_.value()) / sizeof(T))
        [[unlikely]] {
      return fail({.code = Errc::overflow,
                   .operation = "GuestPtr::at",
                   .first = Operand::address(address_.value()),
                   .second = Operand::number(index)});
    }
    return GuestPtr(*memory_, GuestAddress(address_.value() + index * sizeof(T)));
  }

  /// The element `index` of this array. Errors: those of at(index, count).
  template <typename A = T>
  requires(detail::GuestArray<A>)
      [[nodiscard]] Result<GuestPtr<typename detail::ElementOf<A>::Type>> at(
          std::uint64_t index) const {
    using Element = typename detail::ElementOf<A>::Type;
    return GuestPtr<Element>(*memory_, address_).at(index, detail::ElementOf<A>::count);
  }

  /// A member of the object: `descriptor.member(&Descriptor::flags)`, for looking at one field of a
  /// large structure, or storing one. Errors: `overflow` when it would begin above 2^64-1.
  template <GuestObject M, typename Class>
  requires(std::same_as<Class, T>&& std::is_standard_layout_v<T>)
      [[nodiscard]] Result<GuestPtr<M>> member(M Class::*which) const {
    return part<M>(detail::offset_of(which));
  }
  /// A member that is an array, to be indexed by at(). Errors: as for another.
  template <GuestObject M, std::size_t n, typename Class>
  requires(std::same_as<Class, T>&& std::is_standard_layout_v<T>)
      [[nodiscard]] Result<GuestPtr<std::array<M, n>>> member(M (Class::*which)[n]) const {
    return part<std::array<M, n>>(detail::offset_of(which));
  }

  /// The object, checked once, to be read and written without further checks: see guest_ref.hpp for
  /// how long. Errors: those of every access, for reading and writing; `misaligned` unless the address
  /// is a multiple of alignof(T); `out_of_bounds` also for an object that lies in two regions. O(1).
  [[nodiscard]] Result<GuestRef<T>> pin() const {
    const auto place =
        detail::pin_object("GuestPtr::pin", *memory_, {address_, sizeof(T)}, alignof(T), true);
    if (!place) return fail(place.error());
    return GuestRef<T>(*place);
  }
  /// As pin(), for reading only: also in read-only regions.
  [[nodiscard]] Result<GuestRef<const T>> pin_const() const {
    const auto place = detail::pin_object("GuestPtr::pin_const", *memory_, {address_, sizeof(T)},
                                          alignof(T), false);
    if (!place) return fail(place.error());
    return GuestRef<const T>(*place);
  }

 private:
  template <typename M>
  [[nodiscard]] Result<GuestPtr<M>> part(std::uint64_t offset) const {
    const auto address = address_.checked_add(offset);
    if (!address) [[unlikely]] {
      return fail({.code = Errc::overflow,
                   .operation = "GuestPtr::member",
                   .first = Operand::address(address_.value()),
                   .second = Operand::size(offset)});
    }
    return GuestPtr<M>(*memory_, *address);
  }

  const GuestMemory* memory_;
  GuestAddress address_;
};

}  // namespace vmspace
