// SPDX-License-Identifier: Apache-2.0
//
// Formatters of fmt for the types of vmspace, for programs that use fmt (link vmspace::fmt). No
// other header includes this one.
//
//   Range       [0x100-0x1ff]
//   Constraint  0x4000 aligned to 0x4000 in [0xc0000000-0xffffffff], last_match
//   NodeState   free, allocated, valued
//   Policy      first_match, last_match, best_match
//   Error       its message()
//   a tree      [0x100-0x1ff] nic0 | free 0x300 | [0x500-0x5ff] | gap 0x100 | free 0x100
//
//   GuestAddress        0xfee00000
//   MemorySource        shmem
//   RegionType          ram, device, dax, firmware
//   AddressSpaceRegion  nic0 BAR0 device [0xc0000000-0xc0003fff] none
//   AddressSpaceBase    its memory_map(), of several lines
//
// None takes a format specification beyond fill, align and width: `{:>24}`.

#pragma once

#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "vmspace/address_space.hpp"
#include "vmspace/allocator.hpp"

namespace vmspace::detail {

/// A type's text is made whole, then padded as a string is.
using TextFormatter = fmt::formatter<std::string_view>;

}  // namespace vmspace::detail

// -- base and allocator ------------------------------------------------------------------------

template <>
struct fmt::formatter<vmspace::Range> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(const vmspace::Range& range, Context& context) const {
    return vmspace::detail::TextFormatter::format(
        fmt::format("[{:#x}-{:#x}]", range.min(), range.max()), context);
  }
};

template <>
struct fmt::formatter<vmspace::NodeState> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(vmspace::NodeState state, Context& context) const {
    const auto name = [state] {
      switch (state) {
        case vmspace::NodeState::free: return "free";
        case vmspace::NodeState::allocated: return "allocated";
        case vmspace::NodeState::valued: return "valued";
      }
      return "?";
    };
    return vmspace::detail::TextFormatter::format(name(), context);
  }
};

template <>
struct fmt::formatter<vmspace::Policy> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(vmspace::Policy policy, Context& context) const {
    const auto name = [policy] {
      switch (policy) {
        case vmspace::Policy::first_match: return "first_match";
        case vmspace::Policy::last_match: return "last_match";
        case vmspace::Policy::best_match: return "best_match";
      }
      return "?";
    };
    return vmspace::detail::TextFormatter::format(name(), context);
  }
};

template <>
struct fmt::formatter<vmspace::Constraint> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(const vmspace::Constraint& constraint, Context& context) const {
    return vmspace::detail::TextFormatter::format(
        fmt::format("{:#x} aligned to {:#x} in [{:#x}-{:#x}], {}", constraint.size,
                    constraint.align == 0 ? 1 : constraint.align, constraint.min, constraint.max,
                    constraint.policy),
        context);
  }
};

template <>
struct fmt::formatter<vmspace::Error> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(const vmspace::Error& error, Context& context) const {
    return vmspace::detail::TextFormatter::format(error.message(), context);
  }
};

/// A tree in one line, in address order: a taken range with its value (where fmt can format a T), a
/// free one as its size, and what lies between two ranges and is in neither as a gap.
template <typename T>
struct fmt::formatter<vmspace::IntervalTree<T>> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(const vmspace::IntervalTree<T>& tree, Context& context) const {
    std::string line;
    const auto out = std::back_inserter(line);
    std::optional<std::uint64_t> end;
    for (const auto& entry : tree) {
      if (end) fmt::format_to(out, " | ");
      if (end && entry.range.min() - *end > 1) {
        fmt::format_to(out, "gap {:#x} | ", entry.range.min() - *end - 1);
      }
      end = entry.range.max();
      if (entry.state == vmspace::NodeState::free) {
        // The whole domain is one more than fits.
        if (entry.range == vmspace::Range::whole_domain()) {
          fmt::format_to(out, "free 2^64");
        } else {
          fmt::format_to(out, "free {:#x}", entry.range.size());
        }
        continue;
      }
      fmt::format_to(out, "{}", entry.range);
      if constexpr (fmt::is_formattable<T>::value) {
        if (entry.value != nullptr) fmt::format_to(out, " {}", *entry.value);
      }
    }
    return vmspace::detail::TextFormatter::format(line, context);
  }
};

// -- address space -----------------------------------------------------------------------------

template <>
struct fmt::formatter<vmspace::GuestAddress> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(vmspace::GuestAddress address, Context& context) const {
    return vmspace::detail::TextFormatter::format(fmt::format("{:#x}", address.value()), context);
  }
};

template <>
struct fmt::formatter<vmspace::MemorySource> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(vmspace::MemorySource source, Context& context) const {
    return vmspace::detail::TextFormatter::format(name_of(source), context);
  }
};

template <>
struct fmt::formatter<vmspace::RegionType> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(vmspace::RegionType type, Context& context) const {
    return vmspace::detail::TextFormatter::format(name_of(type), context);
  }
};

template <>
struct fmt::formatter<vmspace::AddressSpaceRegion> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(const vmspace::AddressSpaceRegion& region, Context& context) const {
    return vmspace::detail::TextFormatter::format(
        fmt::format("{} {} {} {}", region.name(), region.type(), region.range(),
                    region.backing().source),
        context);
  }
};

template <>
struct fmt::formatter<vmspace::AddressSpaceBase> : vmspace::detail::TextFormatter {
  template <typename Context>
  auto format(const vmspace::AddressSpaceBase& space, Context& context) const {
    return vmspace::detail::TextFormatter::format(vmspace::memory_map(space), context);
  }
};
