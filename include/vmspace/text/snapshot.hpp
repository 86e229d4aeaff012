// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the snapshot layer. Include text.hpp, which has all of them.

#pragma once

#include <chrono>
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

/// `0123456789abcdef0123456789abcdef, 0x1000 bytes stored`.
[[nodiscard]] inline std::string to_text(const SavedSnapshot& saved) {
  return detail::concat(to_text(saved.id), ", ", detail::hex(saved.stored), " bytes stored");
}

/// `stopped 14021 us, 0x40000000 protected; saved 0x3000 by 3 faults, 0x0 by discards, 0x3fffd000 in
/// the background; longest wait 35 us`.
[[nodiscard]] inline std::string to_text(const LiveSnapshotStatistics& statistics) {
  const auto microseconds = [](std::chrono::nanoseconds time) {
    return std::to_string(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
  };
  return detail::concat(
      "stopped ", microseconds(statistics.stopped), " us, ",
      detail::hex(statistics.protected_bytes), " protected; saved ",
      detail::hex(statistics.saved_by_fault), " by ", std::to_string(statistics.faults),
      " faults, ", detail::hex(statistics.saved_by_discard), " by discards, ",
      detail::hex(statistics.saved_in_background), " in the background; longest wait ",
      microseconds(statistics.longest_wait), " us");
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
