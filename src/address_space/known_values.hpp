// SPDX-License-Identifier: Apache-2.0
//
// Whether an enumeration has a name for a value.
//
// Options may come from a peer, a file or a caller's cast, with numbers that name no enumerator.
// The switches have no default, so that the compiler asks for every enumerator that is added.

#pragma once

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/layout.hpp"

namespace vmspace {

constexpr bool is_known(RegionType type) noexcept {
  switch (type) {
    case RegionType::default_memory:
    case RegionType::device_memory:
    case RegionType::dax_memory:
    case RegionType::firmware_memory: return true;
  }
  return false;
}

constexpr bool is_known(ApertureUse use) noexcept {
  switch (use) {
    case ApertureUse::ram:
    case ApertureUse::mmio:
    case ApertureUse::platform: return true;
  }
  return false;
}

constexpr bool is_known(HoleKind kind) noexcept {
  switch (kind) {
    case HoleKind::unused:
    case HoleKind::reserved: return true;
  }
  return false;
}

}  // namespace vmspace
