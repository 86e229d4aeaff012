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

/// `2 ranges, 12288 bytes`.
[[nodiscard]] inline std::string to_text(const WorkingSet& set) {
  return detail::concat(std::to_string(set.ranges().size()), " ranges, ",
                        std::to_string(set.total_size()), " bytes");
}

/// `demand 4096 working_set 0 background 8192 zero 0 discarded 0 lost 0 remaining 0 faults 1 errors 0`.
[[nodiscard]] inline std::string to_text(const LazyRestoreStatistics& s) {
  const auto field = [](const char* name, std::uint64_t value) {
    return detail::concat(name, std::to_string(value));
  };
  return detail::concat(field("demand ", s.demand), field(" working_set ", s.working_set),
                        field(" background ", s.background), field(" zero ", s.zero),
                        field(" discarded ", s.discarded), field(" lost ", s.lost),
                        field(" remaining ", s.remaining), field(" faults ", s.faults),
                        field(" errors ", s.errors));
}

}  // namespace vmspace
