// SPDX-License-Identifier: Apache-2.0
//
// A structure in guest memory that was checked once, and whose members are then read and written
// without a look-up.
//
//   const auto ring = VMSPACE_TRY(GuestPtr<Ring>(memory, address).pin());
//   const Le16 index = ring.member(&Ring::index).load(std::memory_order_acquire);   // can't fail
//   ring.member(&Ring::flags).store(Le16(1), std::memory_order_relaxed);            // marks its page
//
// It is a plain pointer, and so is as good as GuestMemory::host_address: the map that it was made from
// has to be kept, and keeps the memory. A copy of that map beside the GuestRef is enough; a region that
// is unplugged stays mapped until it goes, and one that is plugged at this address is not seen. So a
// device makes its GuestRefs anew when it gets a new map. FaultGuard does not cover them.
//
// What was checked is where the structure lies, not what it holds: each read is a copy of its own, of
// bytes that the guest may have changed since the last one.

#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/detail/guest_access.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/guest_object.hpp"

namespace vmspace {

class GuestMemory;

namespace detail {

/// Where a member lies in its class, in bytes.
template <typename M, typename Class>
std::uint64_t offset_of(M Class::*which) noexcept {
  // Never read: only the addresses count, and the compiler leaves the object out.
  alignas(Class) std::byte bytes[sizeof(Class)] = {};
  const Class* const object = reinterpret_cast<const Class*>(bytes);
  return static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(&(object->*which)) - bytes);
}

/// The element of a std::array, which is what a GuestPtr or GuestRef to one is indexed for.
template <typename T>
struct ElementOf {};
template <typename T, std::size_t n>
struct ElementOf<std::array<T, n>> {
  using Type = T;
  static constexpr std::size_t count = n;
};
template <typename T>
concept GuestArray = requires {
  typename ElementOf<T>::Type;
};

/// `out_of_bounds` for an index that is not below the count.
[[nodiscard, gnu::cold]] VMSPACE_EXPORT Error index_error(const char* operation,
                                                          std::uint64_t index,
                                                          std::uint64_t count) noexcept;

struct PinnedPlace {
  std::byte* host;
  DirtyBitmap* dirty;  ///< null when for reading
  std::uint64_t offset;
};
/// Where an object lies. Errors: those of GuestPtr::pin, or of pin_const.
[[nodiscard]] VMSPACE_EXPORT Result<PinnedPlace> pin_object(const char* operation,
                                                            const GuestMemory& memory,
                                                            GuestRange range, std::size_t align,
                                                            bool is_written);

}  // namespace detail

/// A T in guest memory, or a const T, which is for reading only: made by GuestPtr::pin and pin_const.
/// A value of three words; any thread may use it, for as long as the map is kept. Every call is O(1) in
/// regions and none fails, except for the index of an element.
///
/// Invariant: the object lies in mapped memory, at a multiple of its alignment.
template <typename T>
requires(GuestObject<std::remove_const_t<T>>) class GuestRef {
  using Object = std::remove_const_t<T>;
  static constexpr bool is_writable = !std::is_const_v<T>;
  template <typename M>
  using Like = std::conditional_t<is_writable, M, const M>;

 public:
  /// A copy of the object, read once, as by GuestMemory::read.
  [[nodiscard]] Object read() const noexcept {
    Object value;
    if constexpr (sizeof(Object) <= detail::inline_copy_limit) {
      detail::load_once(value, place_.host);
    } else {
      detail::copy_from_shared(std::addressof(value), place_.host, sizeof value);
    }
    return value;
  }
  /// Writes the object, as by GuestMemory::write, then marks its pages.
  void write(const Object& value) const noexcept
      requires(is_writable&& WritableGuestObject<Object>) {
    if constexpr (sizeof(Object) <= detail::inline_copy_limit) {
      detail::store_once(place_.host, value);
    } else {
      detail::copy_to_shared(place_.host, std::addressof(value), sizeof value);
    }
    mark();
  }

  /// Reads it in one access of the machine, ordered as GuestMemory::load says. O(1).
  [[nodiscard]] Object load(std::memory_order order) const noexcept requires GuestAtomic<Object> {
    switch (order) {
      case std::memory_order_relaxed: return value_of(__atomic_load_n(word(), __ATOMIC_RELAXED));
      case std::memory_order_consume:
      case std::memory_order_acquire: return value_of(__atomic_load_n(word(), __ATOMIC_ACQUIRE));
      default: return value_of(__atomic_load_n(word(), __ATOMIC_SEQ_CST));
    }
  }
  /// Writes it in one access, then marks its page; ordered as GuestMemory::store says. O(1).
  void store(Object value, std::memory_order order) const noexcept
      requires(is_writable&& GuestAtomic<Object>) {
    switch (order) {
      case std::memory_order_relaxed:
        __atomic_store_n(word(), word_of(value), __ATOMIC_RELAXED);
        break;
      case std::memory_order_release:
        __atomic_store_n(word(), word_of(value), __ATOMIC_RELEASE);
        break;
      default: __atomic_store_n(word(), word_of(value), __ATOMIC_SEQ_CST); break;
    }
    mark();
  }
  /// Stores `desired` if it equals `expected`, in one step; gives what was there before, as
  /// GuestMemory::compare_exchange. O(1).
  [[nodiscard]] Object compare_exchange(Object expected, Object desired) const noexcept
      requires(is_writable&& GuestAtomic<Object>) {
    auto before = word_of(expected);  // overwritten with what was there when it was not equal
    if (__atomic_compare_exchange_n(word(), &before, word_of(desired), false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
      mark();
    }
    return value_of(before);
  }
  /// Sets these bits in one step; gives what was there before, as GuestMemory::fetch_or. O(1).
  [[nodiscard]] Object fetch_or(Object bits) const noexcept
      requires(is_writable&& GuestAtomic<Object>) {
    const auto before = __atomic_fetch_or(word(), word_of(bits), __ATOMIC_SEQ_CST);
    mark();
    return value_of(before);
  }

  /// A member of the object, which must not be one of a packed structure that was aligned by hand.
  template <GuestObject M, typename Class>
  requires(std::same_as<Class, Object>&& std::is_standard_layout_v<Object> &&
           alignof(M) <= alignof(Object))
      [[nodiscard]] GuestRef<Like<M>> member(M Class::*which) const noexcept {
    return part<M>(detail::offset_of(which));
  }
  /// A member that is an array.
  template <GuestObject M, std::size_t n, typename Class>
  requires(std::same_as<Class, Object>&& std::is_standard_layout_v<Object> &&
           alignof(M) <= alignof(Object))
      [[nodiscard]] GuestRef<Like<std::array<M, n>>> member(M (Class::*which)[n]) const noexcept {
    return part<std::array<M, n>>(detail::offset_of(which));
  }
  /// An element of the array. Errors: `out_of_bounds`.
  template <typename A = Object>
  requires(detail::GuestArray<A>)
      [[nodiscard]] Result<GuestRef<Like<typename detail::ElementOf<A>::Type>>> at(
          std::uint64_t index) const {
    using Element = typename detail::ElementOf<A>::Type;
    if (index >= detail::ElementOf<A>::count) [[unlikely]]
      return fail(detail::index_error("GuestRef::at", index, detail::ElementOf<A>::count));
    return part<Element>(index * sizeof(Element));
  }

 private:
  template <GuestObject U>
  friend class GuestPtr;
  template <typename U>
  requires(GuestObject<std::remove_const_t<U>>) friend class GuestRef;

  explicit GuestRef(const detail::PinnedPlace& place) noexcept : place_(place) {}

  template <typename M>
  [[nodiscard]] GuestRef<Like<M>> part(std::uint64_t offset) const noexcept {
    return GuestRef<Like<M>>(detail::PinnedPlace{
        .host = place_.host + offset, .dirty = place_.dirty, .offset = place_.offset + offset});
  }
  void mark() const noexcept { place_.dirty->mark(place_.offset, sizeof(Object)); }

  // An integer of a byte order is accessed as the integer whose bytes it has.
  template <typename A>
  static auto word_type() noexcept {
    if constexpr (GuestInteger<A>) {
      return A{};
    } else {
      return typename A::value_type{};
    }
  }
  [[nodiscard]] auto* word() const noexcept {
    using Word = decltype(word_type<Object>());
    assert(reinterpret_cast<std::uintptr_t>(place_.host) % sizeof(Word) == 0);
    return reinterpret_cast<Word*>(place_.host);
  }
  static auto word_of(Object value) noexcept {
    return std::bit_cast<decltype(word_type<Object>())>(value);
  }
  template <typename Word>
  static Object value_of(Word word) noexcept {
    return std::bit_cast<Object>(word);
  }

  detail::PinnedPlace place_;
};

}  // namespace vmspace
