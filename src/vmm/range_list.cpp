// SPDX-License-Identifier: Apache-2.0

#include "vmm/range_list.hpp"

#include <algorithm>
#include <cstdint>

namespace vmspace::detail {

namespace {

GuestRange between(std::uint64_t first, std::uint64_t last) noexcept {
  return {.base = GuestAddress(first), .size = last - first + 1};
}

}  // namespace

RangeList union_of(std::span<const GuestRange> a, std::span<const GuestRange> b) {
  RangeList all;
  all.reserve(a.size() + b.size());
  std::ranges::merge(a, b, std::back_inserter(all), {}, &GuestRange::base, &GuestRange::base);
  std::size_t joined = 0;
  for (std::size_t next = 1; next < all.size(); ++next) {
    GuestRange& before = all[joined];
    // Written so that nothing wraps when `before` ends with the last address.
    if (first_of(all[next]) <= last_of(before) || first_of(all[next]) - last_of(before) == 1) {
      before = between(first_of(before), std::max(last_of(before), last_of(all[next])));
    } else {
      all[++joined] = all[next];
    }
  }
  if (!all.empty()) all.resize(joined + 1);
  return all;
}

RangeList intersection_of(std::span<const GuestRange> a, std::span<const GuestRange> b) {
  RangeList both;
  for (auto one = a.begin(), other = b.begin(); one != a.end() && other != b.end();) {
    if (one->overlaps(*other)) {
      both.push_back(between(std::max(first_of(*one), first_of(*other)),
                             std::min(last_of(*one), last_of(*other))));
    }
    ++(last_of(*one) < last_of(*other) ? one : other);
  }
  return both;
}

}  // namespace vmspace::detail
