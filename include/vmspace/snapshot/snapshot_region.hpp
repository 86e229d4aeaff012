// SPDX-License-Identifier: Apache-2.0
//
// A region of guest memory as a snapshot describes it.

#pragma once

#include <cstdint>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

/// A region as a snapshot describes it; an aggregate.
struct SnapshotRegion {
  GuestAddress base;      ///< the first guest address; a multiple of 4096
  std::uint64_t size;     ///< bytes
  std::uint64_t offset;   ///< of its bytes in the file; 0 where the file has records
  Protection protection;  ///< what the guest may do

  friend bool operator==(const SnapshotRegion&, const SnapshotRegion&) = default;
};

}  // namespace vmspace
