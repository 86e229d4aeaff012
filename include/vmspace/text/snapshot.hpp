// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the snapshot layer. Include text.hpp, which has all of them.

#pragma once

#include <string>

#include "vmspace/snapshot.hpp"
#include "vmspace/text/memory.hpp"

namespace vmspace {

/// `0x1000+0x2000 rw- offset 0x1000`.
[[nodiscard]] inline std::string to_text(const SnapshotRegion& region) {
  return detail::concat(detail::base_and_size(region.base.value(), region.size), " ",
                        to_text(region.protection), " offset ", detail::hex(region.offset));
}

}  // namespace vmspace
