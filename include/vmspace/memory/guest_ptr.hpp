// SPDX-License-Identifier: Apache-2.0
//
// A pointer into guest memory that can't be followed without a check.
//
// Device structures in guest memory are arrays and records: a virtqueue's descriptors, a ring, a
// command. A GuestPtr<T> names one of them by its guest address; reading it gives a private copy,
// made once, and what was checked in the copy is what is used (XSA-155 is what happens otherwise).
// There is no operator* and no operator->: an access can fail, and a member that is looked at twice
// may have changed in between.
//
//   const GuestPtr<Descriptor> table(memory, table_address);
//   const auto entry = VMSPACE_TRY(table.at(index, queue_size));
//   const Descriptor descriptor = VMSPACE_TRY(entry.read());

#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// The address of a T in guest memory. A value of two words that refers to a GuestMemory, which has
/// to outlive it; nothing is checked until it is read or written. Any thread may use it.
template <GuestObject T>
class GuestPtr {
 public:
  GuestPtr(const GuestMemory& memory, GuestAddress address) noexcept
      : memory_(&memory), address_(address) {}
  // It would point into what is gone at the end of the statement.
  GuestPtr(const GuestMemory&& memory, GuestAddress address) = delete;

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
  [[nodiscard]] Result<void> store(T value, std::memory_order order) const requires GuestAtomic<T> {
    return memory_->store<T>(address_, value, order);
  }
  /// One step of the machine, seq_cst; gives what was there before. Errors: as
  /// GuestMemory::compare_exchange and fetch_or.
  [[nodiscard]] Result<T> compare_exchange(T expected, T desired) const requires GuestAtomic<T> {
    return memory_->compare_exchange<T>(address_, expected, desired);
  }
  [[nodiscard]] Result<T> fetch_or(T bits) const requires GuestAtomic<T> {
    return memory_->fetch_or<T>(address_, bits);
  }

  /// The element `index` of an array of `count` that begins here. Errors: `out_of_bounds` for an
  /// index that is not below the count; `overflow` when the element would begin above 2^64-1.
  [[nodiscard]] Result<GuestPtr> at(std::uint64_t index, std::uint64_t count) const {
    if (index >= count) [[unlikely]]
      return fail(index_error(index, count));
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

  /// A member of the object: `descriptor.member(&Descriptor::flags)`, for looking at one field of a
  /// large structure, or storing one. Errors: `overflow` when it would begin above 2^64-1.
  template <GuestObject M, typename Class>
  requires(std::same_as<Class, T>&& std::is_standard_layout_v<T>)
      [[nodiscard]] Result<GuestPtr<M>> member(M Class::*which) const {
    const auto address = address_.checked_add(offset_of(which));
    if (!address) [[unlikely]] {
      return fail({.code = Errc::overflow,
                   .operation = "GuestPtr::member",
                   .first = Operand::address(address_.value()),
                   .second = Operand::size(offset_of(which))});
    }
    return GuestPtr<M>(*memory_, *address);
  }

 private:
  [[gnu::cold]] static Error index_error(std::uint64_t index, std::uint64_t count) {
    return {.code = Errc::out_of_bounds,
            .operation = "GuestPtr::at",
            .first = Operand::number(index),
            .second = count == 0 ? Operand{} : Operand::range(0, count - 1)};
  }

  template <typename M, typename Class>
  static std::uint64_t offset_of(M Class::*which) noexcept {
    // Never read: only the addresses count, and the compiler leaves the object out.
    alignas(T) std::byte bytes[sizeof(T)] = {};
    const T* const object = reinterpret_cast<const T*>(bytes);
    return static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(&(object->*which)) -
                                      bytes);
  }

  const GuestMemory* memory_;
  GuestAddress address_;
};

}  // namespace vmspace
