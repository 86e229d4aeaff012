// SPDX-License-Identifier: Apache-2.0
//
// Whether a value of an enumeration is one of its enumerators. Values from configurations, files
// and peers arrive through casts, and a cast accepts any number.

#pragma once

#include "vmspace/spec/backing_spec.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

constexpr bool is_known(MemorySource source) noexcept {
  switch (source) {
    case MemorySource::none:
    case MemorySource::anon:
    case MemorySource::shmem:
    case MemorySource::hugeanon:
    case MemorySource::hugeshmem:
    case MemorySource::hugetlbfs:
    case MemorySource::file:
    case MemorySource::device:
    case MemorySource::external: return true;
  }
  return false;
}

constexpr bool is_known(Sharing sharing) noexcept {
  switch (sharing) {
    case Sharing::by_source:
    case Sharing::map_shared:
    case Sharing::map_private: return true;
  }
  return false;
}

/// Protection is a set of bits: each must be known.
constexpr bool is_known(Protection protection) noexcept {
  return allows(Protection::read_write | Protection::execute, protection);
}

}  // namespace vmspace
