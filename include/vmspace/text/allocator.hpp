// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the allocator's types. Include text.hpp, which has all of them.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vmspace/allocator.hpp"
#include "vmspace/text/base.hpp"

namespace vmspace {

/// `[0x100-0x1ff]`, both ends inclusive.
[[nodiscard]] inline std::string to_text(const Range& range) {
  return detail::concat("[", detail::hex(range.min()), "-", detail::hex(range.max()), "]");
}

/// The enumerator's name: `free`, `allocated`, `valued`.
[[nodiscard]] inline std::string to_text(NodeState state) {
  switch (state) {
    case NodeState::free: return "free";
    case NodeState::allocated: return "allocated";
    case NodeState::valued: return "valued";
  }
  return "?";
}

/// The enumerator's name: `first_match`, `last_match`, `best_match`.
[[nodiscard]] inline std::string to_text(AllocPolicy policy) {
  switch (policy) {
    case AllocPolicy::first_match: return "first_match";
    case AllocPolicy::last_match: return "last_match";
    case AllocPolicy::best_match: return "best_match";
  }
  return "?";
}

/// `0x4000 aligned to 0x4000 in [0xc0000000-0xffffffff], last_match`.
[[nodiscard]] inline std::string to_text(const Constraint& constraint) {
  return detail::concat(detail::hex(constraint.size), " aligned to ",
                        detail::hex(constraint.align == 0 ? 1 : constraint.align), " in [",
                        detail::hex(constraint.min), "-", detail::hex(constraint.max), "], ",
                        to_text(constraint.policy));
}

/// `3 free (0x300, largest 0x100), 1 allocated, 2 valued (0x600 taken)`.
[[nodiscard]] inline std::string to_text(const IntervalTreeStats& stats) {
  return detail::concat(
      std::to_string(stats.free_ranges), " free (", detail::hex(stats.free_amount), ", largest ",
      detail::hex(stats.largest_free), "), ", std::to_string(stats.allocated_ranges),
      " allocated, ", std::to_string(stats.valued_ranges), " valued (",
      detail::hex(stats.taken_amount), " taken)");
}

/// `[0x100-0x1ff] valued nic0`; the value as in a Result's text.
template <typename T, typename Print = detail::PrintPlain>
[[nodiscard]] std::string to_text(const IntervalEntry<T>& entry, const Print& print = {}) {
  std::string text = detail::concat(to_text(entry.range), " ", to_text(entry.state));
  if (entry.value == nullptr) return text;
  const std::string value = detail::value_text(*entry.value, print);
  return value.empty() ? text : detail::concat(text, " ", value);
}

/// A tree in one line, in address order: a taken range with its value, a free one as its size, and
/// what lies between two ranges and is in neither as a gap:
/// `[0x100-0x1ff] nic0 | free 0x300 | [0x500-0x5ff] | gap 0x100 | free 0x100`.
template <typename T, typename Print = detail::PrintPlain>
[[nodiscard]] std::string to_text(const IntervalTree<T>& tree, const Print& print = {}) {
  std::string line;
  std::optional<std::uint64_t> end;
  for (const auto& entry : tree) {
    if (end) line.append(" | ");
    if (end && entry.range.min() - *end > 1) {
      line.append("gap ").append(detail::hex(entry.range.min() - *end - 1)).append(" | ");
    }
    end = entry.range.max();
    if (entry.state == NodeState::free) {
      // The whole domain is one more than fits.
      const bool whole = entry.range == Range::whole_domain();
      line.append("free ").append(whole ? "2^64" : detail::hex(entry.range.size()));
      continue;
    }
    line.append(to_text(entry.range));
    if (entry.value == nullptr) continue;
    const std::string value = detail::value_text(*entry.value, print);
    if (!value.empty()) line.append(" ").append(value);
  }
  return line;
}

/// `[0x100-0x1ff] nic0`.
[[nodiscard]] inline std::string to_text(const RangeHolder& holder) {
  return detail::concat(to_text(holder.range), " ", holder.tag);
}

/// `[0x100-0x1ff] nic0`, or `released` when it holds nothing.
[[nodiscard]] inline std::string to_text(const Lease& lease) {
  if (!lease.is_held()) return "released";
  return to_text(RangeHolder{lease.range(), lease.tag()});
}

/// The name, then the ranges as in a tree's text: `mmio: [0x100-0x1ff] nic0 | free 0x300`.
[[nodiscard]] inline std::string to_text(const RangePool& pool) {
  return detail::concat(pool.name(), ": ", to_text(pool.snapshot()));
}

}  // namespace vmspace
