// SPDX-License-Identifier: Apache-2.0
//
// A lease of something that the kernel did not give back.

#pragma once

#include <utility>

#include "vmspace/allocator/range_pool.hpp"

namespace vmspace::detail {

/// Leaves the range of a lease taken for as long as its pool lives. For destructors whose system
/// call failed: what the kernel still uses must not be leased to anybody else.
inline void abandon(Lease lease) noexcept {
  // A member of a union is not destroyed by itself; nothing is allocated.
  union Kept {
    explicit Kept(Lease&& given) noexcept : held(std::move(given)) {}
    ~Kept() {}
    Lease held;
  };
  static_cast<void>(Kept(std::move(lease)));
}

}  // namespace vmspace::detail
