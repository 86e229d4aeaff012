// SPDX-License-Identifier: Apache-2.0
//
// A closed interval of 64-bit numbers: addresses, I/O ports, IRQs, vectors, device ids.
//
// Both bounds are inclusive, because the domain's last member, 2^64-1, has no successor: with an
// exclusive end neither it nor the whole domain could be a range.

#pragma once

#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "vmspace/base/result.hpp"

namespace vmspace {

class Range;

namespace detail {

/// Declared and never defined: a constant Range with inverted bounds calls it, and so does not
/// compile, even with exceptions off.
void range_bounds_are_inverted();

/// Makes a range of bounds that are known to be in order.
constexpr Range unchecked_range(std::uint64_t min, std::uint64_t max) noexcept;

}  // namespace detail

/// A closed interval [min, max], never empty.
///
/// Invariant: min() <= max(). Sizes are in members (bytes, for addresses). Every call is constexpr
/// and O(1); a Range is a value, safe to read from any thread. It can be taken apart:
/// `const auto [min, max] = range;`.
class Range {
 public:
  /// The interval [min, max]. `invalid_range` when min > max.
  [[nodiscard]] static constexpr Result<Range> make(std::uint64_t min, std::uint64_t max) {
    if (min > max) {
      return fail({.code = Errc::invalid_range,
                   .operation = "Range::make",
                   .first = Operand::range(min, max)});
    }
    return Range(min, max);
  }

  /// `size` members from `base`. `zero_size` when size is 0; `overflow` when the last member would
  /// be above 2^64-1.
  [[nodiscard]] static constexpr Result<Range> from_base_size(std::uint64_t base,
                                                              std::uint64_t size) {
    constexpr const char* operation = "Range::from_base_size";
    if (size == 0) {
      return fail(
          {.code = Errc::zero_size, .operation = operation, .second = Operand::address(base)});
    }
    if (size - 1 > std::numeric_limits<std::uint64_t>::max() - base) {
      return fail({.code = Errc::overflow,
                   .operation = operation,
                   .first = Operand::address(base),
                   .second = Operand::size(size)});
    }
    return Range(base, base + (size - 1));
  }

  /// The range whose only member is `value`.
  [[nodiscard]] static constexpr Range point(std::uint64_t value) noexcept {
    return {value, value};
  }

  /// A compile-time constant: `Range::of(0x100, 0x1ff)`. Inverted bounds do not compile.
  [[nodiscard]] static consteval Range of(std::uint64_t min, std::uint64_t max) {
    if (min > max) detail::range_bounds_are_inverted();
    return {min, max};
  }

  /// All 64-bit numbers: [0, 2^64-1].
  [[nodiscard]] static constexpr Range whole_domain() noexcept {
    return {0, std::numeric_limits<std::uint64_t>::max()};
  }

  /// The lowest member.
  [[nodiscard]] constexpr std::uint64_t min() const noexcept { return min_; }
  /// The highest member, inclusive.
  [[nodiscard]] constexpr std::uint64_t max() const noexcept { return max_; }

  /// The number of members; 0 for the whole domain, whose 2^64 members do not fit.
  [[nodiscard]] constexpr std::uint64_t size() const noexcept { return max_ - min_ + 1; }

  /// Whether the number is a member.
  [[nodiscard]] constexpr bool contains(std::uint64_t value) const noexcept {
    return min_ <= value && value <= max_;
  }
  /// Whether every member of `other` is one of this range.
  [[nodiscard]] constexpr bool contains(const Range& other) const noexcept {
    return min_ <= other.min_ && other.max_ <= max_;
  }
  /// Whether the two have a member in common.
  [[nodiscard]] constexpr bool overlaps(const Range& other) const noexcept {
    return min_ <= other.max_ && other.min_ <= max_;
  }

  /// Whether one begins right after the other ends.
  [[nodiscard]] constexpr bool adjacent(const Range& other) const noexcept {
    return (max_ < other.min_ && other.min_ - max_ == 1) ||
           (other.max_ < min_ && min_ - other.max_ == 1);
  }

  /// The members that both have; empty when they do not overlap.
  [[nodiscard]] constexpr std::optional<Range> intersection(const Range& other) const noexcept {
    if (!overlaps(other)) return std::nullopt;
    return Range(min_ > other.min_ ? min_ : other.min_, max_ < other.max_ ? max_ : other.max_);
  }

  /// The part of this range from its first multiple of `align` on. `bad_alignment` when align is not
  /// a power of two (0 means 1, as in a Constraint); `no_space` when it contains no multiple.
  [[nodiscard]] constexpr Result<Range> align_up(std::uint64_t align) const {
    if (align == 0) return *this;
    if (!std::has_single_bit(align)) {
      return fail({.code = Errc::bad_alignment,
                   .operation = "Range::align_up",
                   .first = Operand::size(align),
                   .second = Operand::range(min_, max_)});
    }
    const std::uint64_t gap = (std::uint64_t{0} - min_) & (align - 1);
    if (gap > max_ - min_) {
      return fail({.code = Errc::no_space,
                   .operation = "Range::align_up",
                   .first = Operand::size(align),
                   .second = Operand::range(min_, max_)});
    }
    return Range(min_ + gap, max_);
  }

  /// min() for index 0 and max() for 1: what structured bindings call.
  template <std::size_t index>
  requires(index < 2) [[nodiscard]] constexpr std::uint64_t get() const noexcept {
    return index == 0 ? min_ : max_;
  }

  /// By min, then by max.
  friend constexpr auto operator<=>(const Range&, const Range&) = default;

 private:
  friend constexpr Range detail::unchecked_range(std::uint64_t, std::uint64_t) noexcept;

  constexpr Range(std::uint64_t min, std::uint64_t max) noexcept : min_(min), max_(max) {}

  std::uint64_t min_;
  std::uint64_t max_;
};

namespace detail {

constexpr Range unchecked_range(std::uint64_t min, std::uint64_t max) noexcept {
  return {min, max};
}

constexpr Operand operand(const Range& range) {
  return Operand::range(range.min(), range.max());
}

}  // namespace detail

}  // namespace vmspace

template <>
struct std::tuple_size<vmspace::Range> : std::integral_constant<std::size_t, 2> {};

template <std::size_t index>
struct std::tuple_element<index, vmspace::Range> {
  using type = std::uint64_t;
};

template <>
struct std::hash<vmspace::Range> {
  std::size_t operator()(const vmspace::Range& range) const noexcept {
    // Mixes with an odd constant (2^64 divided by the golden ratio), so that equally long ranges at
    // consecutive addresses spread.
    constexpr std::uint64_t odd = 0x9e37'79b9'7f4a'7c15;
    std::uint64_t mixed = (range.min() * odd) ^ (range.max() + odd);
    mixed = (mixed ^ (mixed >> 32)) * odd;
    return static_cast<std::size_t>(mixed ^ (mixed >> 29));
  }
};
