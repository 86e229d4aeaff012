// SPDX-License-Identifier: Apache-2.0
//
// Whether one description can be another one's after a move.

#pragma once

#include "vmspace/address_space/address_space_region.hpp"

namespace vmspace::detail {

/// Whether the two differ in their base at most.
inline bool are_alike_but_for_base(const AddressSpaceRegion& a, const AddressSpaceRegion& b) {
  if (a.size() != b.size() || a.name() != b.name()) return false;  // before anything is copied
  RegionOptions moved = a.options();
  moved.base = b.base();
  return moved == b.options();
}

}  // namespace vmspace::detail
