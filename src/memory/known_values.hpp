// SPDX-License-Identifier: Apache-2.0
//
// Whether a value of an enumeration of the memory layer is one of its enumerators.

#pragma once

#include "vmspace/memory/memory_region.hpp"

namespace vmspace {

constexpr bool is_known(Unsealed unsealed) noexcept {
  switch (unsealed) {
    case Unsealed::accept:
    case Unsealed::refuse:
    case Unsealed::guard: return true;
  }
  return false;
}

}  // namespace vmspace
