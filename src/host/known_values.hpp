// SPDX-License-Identifier: Apache-2.0
//
// Whether a value of an enumeration is one of its enumerators; see spec/known_values.hpp.

#pragma once

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/populate.hpp"

namespace vmspace {

constexpr bool is_known(Advice advice) noexcept {
  switch (advice) {
    case Advice::normal:
    case Advice::random:
    case Advice::sequential:
    case Advice::cold:
    case Advice::page_out:
    case Advice::no_huge_pages: return true;
  }
  return false;
}

constexpr bool is_known(NumaMode mode) noexcept {
  switch (mode) {
    case NumaMode::by_default:
    case NumaMode::preferred:
    case NumaMode::bind: return true;
  }
  return false;
}

constexpr bool is_known(PopulateAccess access) noexcept {
  switch (access) {
    case PopulateAccess::by_mapping:
    case PopulateAccess::read:
    case PopulateAccess::write: return true;
  }
  return false;
}

}  // namespace vmspace
