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

/// `0123456789abcdef0123456789abcdef`; `none` for no id.
[[nodiscard]] inline std::string to_text(const SnapshotId& id) {
  return id ? detail::hex(id) : "none";
}

}  // namespace vmspace
