// SPDX-License-Identifier: Apache-2.0
//
// Which types may be read from and written to guest memory as the bytes that they are.
//
// Reading. The guest writes what it likes, so every pattern of bits must be a value: a bool that is
// neither 0 nor 1, or a pointer, would be undefined behaviour on the first use. Nor does a class
// keep what its constructors promise when its bytes come from elsewhere, so only aggregates are
// taken.
//
// Writing. The guest reads every byte, so every byte must be part of the value. Padding holds what
// the stack held before, which may be a secret of the host.
//
// Both can be asked of a whole structure without reflection: in a constant expression,
// std::bit_cast makes no object that has a pointer, a reference or a union anywhere inside, and
// gives no byte that is padding ([bit.cast]). A bool made from all ones is not a constant
// expression, or does not come back as all ones.
//
// What that can't see, and the author of a structure has to avoid, is in its members: enumerations
// without a fixed underlying type, and classes that keep a promise about numbers; with g++, a bool
// behind padding, and pointers and unions in an array; in an object above 16 KiB, a bool. Unions,
// and with clang bit-fields, are refused because they can't be looked into: every_pattern_is_valid
// is for those that were checked by hand.

#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <type_traits>

#include "vmspace/address_space/guest_address.hpp"

namespace vmspace {

/// Whether T may be made of any bytes although the compiler can't tell: for classes with
/// constructors whose every pattern is a value, unions, and structures with either of them or with
/// bit-fields. Specialise it as true for a type of yours that you have checked.
template <typename T>
inline constexpr bool every_pattern_is_valid = false;

/// An address is a number, each pattern of which is a value.
template <>
inline constexpr bool every_pattern_is_valid<GuestAddress> = true;

namespace detail {

/// What is judged in place of T: the element of an array, which is as good as all of it.
template <typename T>
struct Judged {
  using Type = T;
};
template <typename T, std::size_t count>
requires(count > 0) struct Judged<std::array<T, count>> : Judged<T> {
};

/// Above this size constant evaluation may run into a compiler's limits.
inline constexpr std::size_t judged_limit = 16384;

/// All ones, or all zeros for a large T.
template <typename T>
constexpr auto pattern_for() {
  std::array<unsigned char, sizeof(T)> bytes{};
  if constexpr (sizeof(T) <= judged_limit) {
    for (auto& byte : bytes)
      byte = 0xff;
  }
  return bytes;
}

/// Not a constant expression for a T that contains pointers, references or unions.
template <typename T>
constexpr bool is_made_of_bytes() {
  static_cast<void>(std::bit_cast<T>(pattern_for<T>()));
  return true;
}

/// Whether the bytes come back; not a constant expression where one of them is padding.
template <typename T>
constexpr bool gives_bytes_back() {
  constexpr auto bytes = pattern_for<T>();
  const auto back = std::bit_cast<std::array<unsigned char, sizeof(T)>>(std::bit_cast<T>(bytes));
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    if (back[i] != bytes[i]) return false;
  }
  return true;
}

// As arguments of a template, so that an expression that is not constant leaves the concept
// unsatisfied instead of being an error.
template <typename T>
concept MadeOfBytes = requires {
  typename std::enable_if_t<is_made_of_bytes<T>()>;
};
template <typename T>
concept ChangesBytes = sizeof(T) <= judged_limit&& requires {
  typename std::enable_if_t<!gives_bytes_back<T>()>;
};
template <typename T>
concept KeepsBytes = sizeof(T) <= judged_limit&& requires {
  typename std::enable_if_t<gives_bytes_back<T>()>;
};

/// An enumeration with a fixed underlying type, whose every pattern is a value; only of such can an
/// integer be made in braces.
template <typename T>
concept FixedEnum = std::is_enum_v<T> && requires {
  T{0};
};

/// Not long double: the 80 bits of x86 have invalid patterns.
template <typename T>
concept Number = std::is_arithmetic_v<T> && !std::same_as<T, long double>;

template <typename T>
concept JudgedReadable = every_pattern_is_valid<T> ||
    ((Number<T> || FixedEnum<T> || std::is_aggregate_v<T>)&&MadeOfBytes<T> && !ChangesBytes<T>);

}  // namespace detail

/// What can be read from guest memory as it lies there: numbers, enumerations with a fixed
/// underlying type, std::array and structures of these, and types for which every_pattern_is_valid
/// is specialised. Not bool, pointers, or anything that contains them.
template <typename T>
concept GuestObject = std::semiregular<T> && std::is_trivially_copyable_v<T> &&
    detail::JudgedReadable<typename detail::Judged<T>::Type>;

/// What can also be written: a GuestObject without padding.
template <typename T>
concept WritableGuestObject = GuestObject<T> &&
    (std::has_unique_object_representations_v<typename detail::Judged<T>::Type> ||
     detail::KeepsBytes<typename detail::Judged<T>::Type>);

/// An integer that the machine accesses in one piece: 1, 2, 4 or 8 bytes. Not __int128, which GNU
/// dialects count as integral: its accesses may take a lock that the guest knows nothing of.
template <typename T>
concept GuestInteger = std::integral<T> && GuestObject<T> && sizeof(T) <= 8;

/// Such an integer in a class that gives it a byte order: EndianInteger, or the aligned types of
/// Boost.Endian once every_pattern_is_valid says so of them. Its bytes are those of an integer, and
/// that is what is loaded, stored, compared and OR-ed: none of them depends on the order.
template <typename T>
concept GuestEndianInteger = GuestObject<T> && requires {
  typename T::value_type;
} && GuestInteger<typename T::value_type> && sizeof(T) == sizeof(typename T::value_type);

/// What is loaded and stored in one access.
template <typename T>
concept GuestAtomic = GuestInteger<T> || GuestEndianInteger<T>;

}  // namespace vmspace
