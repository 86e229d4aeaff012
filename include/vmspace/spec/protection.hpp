// SPDX-License-Identifier: Apache-2.0
//
// What may be done with memory.

#pragma once

#include <cstdint>

#include "vmspace/base/cxx20.hpp"

namespace vmspace {

/// What the guest may do with a region, or this process with a mapping. Bits combine with `|`.
enum class Protection : std::uint8_t {
  none = 0,
  read = 1,
  write = 2,
  read_write = read | write,
  execute = 4,
};
/// The bits of both.
[[nodiscard]] constexpr Protection operator|(Protection a, Protection b) noexcept {
  return static_cast<Protection>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// Whether all bits of `wanted` are set in `given`.
[[nodiscard]] constexpr bool allows(Protection given, Protection wanted) noexcept {
  return (static_cast<unsigned>(given) & static_cast<unsigned>(wanted)) ==
         static_cast<unsigned>(wanted);
}

}  // namespace vmspace
