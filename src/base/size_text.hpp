// SPDX-License-Identifier: Apache-2.0
//
// Sizes for people: exact, and in one unit where they are to be compared by eye.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace vmspace::detail {

/// A unit of sizes.
struct SizeUnit {
  std::uint64_t bytes;
  std::string_view name;  ///< `MiB`
};

/// The largest unit of which a size is a whole number; of several sizes, when they are or-ed, because
/// units are powers of two. Of 0 it is the largest that there is.
[[nodiscard]] const SizeUnit& unit_of(std::uint64_t size) noexcept;

/// Decimal digits with a comma before every third: `3,145,728`.
[[nodiscard]] std::string grouped(std::string digits);
[[nodiscard]] std::string grouped(std::uint64_t number);

/// A size in the largest unit of which there is at least one, rounded down to two decimals: `31.99 TiB`.
[[nodiscard]] std::string rounded(std::uint64_t size);

}  // namespace vmspace::detail
