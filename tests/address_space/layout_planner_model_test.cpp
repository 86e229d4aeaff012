// SPDX-License-Identifier: Apache-2.0
//
// Plans of random requests (RapidCheck): what the rule promises, and an oracle that tries every page.

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/address_space/layout_planner.hpp"

namespace vmspace::layout_planner_model_test {
namespace {

using Requests = std::vector<PlacementRequest>;
using Pieces = std::vector<GuestRange>;

bool is_mmio(const PlacementRequest& request) {
  return request.kind == PlacementKind::mmio32 || request.kind == PlacementKind::mmio64;
}

// One unit is a page. The space begins 64 pages below 4 GiB, so that few pages have all there is:
// RAM at [0, 40) with a hole at [10, 12) and a window of devices at [20, 28); windows that touch at
// [44, 60) and [60, 84), the second across 4 GiB; a window at [100, 120), after devices at fixed
// addresses at [96, 100).
constexpr std::uint64_t unit = 0x1000;
constexpr std::uint64_t units = 128;
constexpr std::uint64_t four_gib = 64;
constexpr std::uint64_t begin = 0x1'0000'0000 - four_gib * unit;

Range pages(std::uint64_t first, std::uint64_t end) {
  return *Range::make(begin + first * unit, begin + end * unit - 1);
}

AddressSpaceLayout small_frame() {
  return *AddressSpaceLayout::make(
      {.phys_max = pages(0, units).max(),
       .ram = pages(0, 40),
       .apertures = {{"inner", pages(20, 28), ApertureUse::mmio},
                     {"low", pages(44, 60), ApertureUse::mmio},
                     {"across", pages(60, 84), ApertureUse::mmio},
                     {"high", pages(100, 120), ApertureUse::mmio},
                     {"platform", pages(96, 100), ApertureUse::platform}},
       .holes = {{"hole", pages(10, 12)}}});
}

rc::Gen<Requests> small_requests() {
  const auto request = rc::gen::build<PlacementRequest>(
      rc::gen::set(&PlacementRequest::kind,
                   rc::gen::element(PlacementKind::reserve, PlacementKind::fixed,
                                    PlacementKind::ram, PlacementKind::ram, PlacementKind::mmio32,
                                    PlacementKind::mmio64, PlacementKind::mmio64)),
      rc::gen::set(&PlacementRequest::size,
                   rc::gen::map(rc::gen::inRange<std::uint64_t>(1, 8),
                                [](std::uint64_t count) { return count * unit; })),
      rc::gen::set(&PlacementRequest::align,
                   rc::gen::elementOf(std::vector<std::uint64_t>{unit, unit, 2 * unit, 8 * unit})),
      rc::gen::set(&PlacementRequest::base,
                   rc::gen::map(rc::gen::inRange<std::uint64_t>(0, units / 8), [](std::uint64_t n) {
                     return GuestAddress(begin + n * 8 * unit);
                   })));
  return rc::gen::map(rc::gen::container<Requests>(request), [](Requests requests) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      PlacementRequest& made = requests[i];
      made.name = std::to_string(i);
      if (made.kind != PlacementKind::reserve && made.kind != PlacementKind::fixed) made.base = {};
    }
    return requests;
  });
}

/// The rule, page by page.
class Oracle {
 public:
  /// Where each request goes; nothing when they do not all fit.
  static std::optional<std::vector<Pieces>> plan(const Requests& requests) {
    for (const bool splits : {false, true}) {
      Oracle oracle(requests);
      if (!oracle.place_given()) return std::nullopt;
      // Every area is smaller than 128 MiB: no RAM is split, unless it does not fit otherwise.
      if (!oracle.place_ram(splits)) continue;
      if (!oracle.place_mmio()) return std::nullopt;
      return oracle.placed_;
    }
    return std::nullopt;
  }

 private:
  explicit Oracle(const Requests& requests) : requests_(requests), placed_(requests.size()) {}

  /// What part of the frame a page belongs to; no two have an edge between them and are equal.
  static int part_of(std::uint64_t page) {
    constexpr std::uint64_t ends[] = {10, 12, 20, 28, 40, 44, 60, 84, 96, 100, 120, units};
    return static_cast<int>(std::upper_bound(std::begin(ends), std::end(ends), page) - ends);
  }
  static bool is_ram(std::uint64_t page) {
    return page < 40 && !(page >= 10 && page < 12) && !(page >= 20 && page < 28);
  }
  static bool is_window(std::uint64_t page) {
    return (page >= 20 && page < 28) || (page >= 44 && page < 84) || (page >= 100 && page < 120);
  }

  void take(std::size_t i, std::uint64_t first, std::uint64_t count) {
    placed_[i].push_back({GuestAddress(begin + first * unit), count * unit});
    for (std::uint64_t page = first; page < first + count; ++page)
      taken_[page] = true;
  }

  bool place_given() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const PlacementRequest& request = requests_[i];
      const bool is_fixed = request.kind == PlacementKind::fixed;
      if (!is_fixed && request.kind != PlacementKind::reserve) continue;
      const std::uint64_t first = (request.base.value() - begin) / unit;
      const std::uint64_t end = first + request.size / unit;
      if (end > units) return false;
      for (std::uint64_t page = first; page < end; ++page) {
        if (taken_[page]) return false;
        if (!is_fixed) continue;
        if (part_of(page) == part_of(10)) return false;
        const auto in_aperture = [](std::uint64_t at) {
          const int part = part_of(at);
          return part == part_of(20) || part == part_of(44) || part == part_of(60) ||
                 part == part_of(96) || part == part_of(100);
        };
        const bool crosses = part_of(page) != part_of(first);
        if (crosses && (in_aperture(page) || in_aperture(first))) return false;
      }
      take(i, first, request.size / unit);
    }
    return true;
  }

  bool place_ram(bool splits) {
    std::uint64_t next = 0;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const PlacementRequest& request = requests_[i];
      if (request.kind != PlacementKind::ram) continue;
      const std::uint64_t align = request.align / unit;
      std::uint64_t missing = request.size / unit;
      while (missing != 0) {
        const auto free = [&](std::uint64_t page) { return is_ram(page) && !taken_[page]; };
        while (next < units && !(free(next) && next % align == 0))
          ++next;
        if (next == units) return false;
        std::uint64_t end = next;
        while (end < units && free(end) && end - next < missing)
          ++end;
        std::uint64_t count = end - next;
        if (count < missing) count = splits ? count / align * align : 0;
        if (count != 0) take(i, next, count);
        missing -= count;
        next = missing == 0 ? next + count : end;
      }
    }
    return true;
  }

  bool place_mmio() {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (is_mmio(requests_[i])) order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const PlacementRequest& x = requests_[a];
      const PlacementRequest& y = requests_[b];
      if (x.align != y.align) return x.align > y.align;
      if (x.size != y.size) return x.size > y.size;
      return a < b;
    });
    for (const std::size_t i : order) {
      const bool is_low = requests_[i].kind == PlacementKind::mmio32;
      const std::uint64_t align = requests_[i].align / unit;
      const std::uint64_t count = requests_[i].size / unit;
      const auto fits = [&](std::uint64_t first) {
        for (std::uint64_t page = first; page < first + count; ++page) {
          if (page >= units || taken_[page] || !is_window(page)) return false;
          if ((page < four_gib) != is_low || part_of(page) != part_of(first)) return false;
        }
        return true;
      };
      std::uint64_t first = 0;
      while (first < units && !fits(first))
        first += align;
      if (first >= units) return false;
      take(i, first, count);
    }
    return true;
  }

  const Requests& requests_;
  std::vector<bool> taken_ = std::vector<bool>(units);
  std::vector<Pieces> placed_;
};

RC_GTEST_PROP(LayoutPlannerModel, PlansAreTheOracles, ()) {
  const Requests requests = *small_requests();
  const auto plan = plan_layout(small_frame(), requests);
  const auto expected = Oracle::plan(requests);
  RC_TAG(plan.has_value());
  RC_ASSERT(plan.has_value() == expected.has_value());
  if (!plan) {
    const Errc code = plan.error().code;
    RC_ASSERT(code == Errc::no_space || code == Errc::overlap || code == Errc::out_of_bounds);
    return;
  }
  for (std::size_t i = 0; i < requests.size(); ++i)
    RC_ASSERT(plan->placements[i].pieces == (*expected)[i]);
}

// ---- Machines of every size.

AddressSpaceLayout any_pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = *rc::gen::inRange(42U, 53U),
                                      .ecam_buses = *rc::gen::inRange(0U, 257U),
                                      .amd_hole = *rc::gen::arbitrary<bool>()});
}

Requests any_nodes() {
  Requests nodes;
  const auto count = *rc::gen::inRange<std::uint32_t>(1, 5);
  for (std::uint32_t node = 0; node < count; ++node) {
    const auto shift = *rc::gen::inRange(12U, 38U);
    nodes.push_back({.name = "ram" + std::to_string(node),
                     .kind = PlacementKind::ram,
                     .size = *rc::gen::inRange<std::uint64_t>(1, 8) << shift,
                     .node = node});
  }
  return nodes;
}

/// At least so many devices, of which no two have both alignment and size in common.
Requests any_devices(int least = 0) {
  std::map<std::pair<std::uint64_t, std::uint64_t>, PlacementRequest> devices;
  const auto count = *rc::gen::inRange(least, 12);
  for (int i = 0; i < count; ++i) {
    const bool is_low = *rc::gen::arbitrary<bool>();
    const std::uint64_t size = std::uint64_t{1} << *rc::gen::inRange(4U, is_low ? 26U : 38U);
    const std::uint64_t align =
        *rc::gen::elementOf(std::vector<std::uint64_t>{0, 1, 0x1000, 0x20'0000, size});
    devices.try_emplace(
        {align == 0 ? 0x1000 : align, size},
        PlacementRequest{.name = "device" + std::to_string(i),
                         .kind = is_low ? PlacementKind::mmio32 : PlacementKind::mmio64,
                         .size = size,
                         .align = align});
  }
  Requests requests;
  for (auto& [key, device] : devices)
    requests.push_back(std::move(device));
  return requests;
}

Requests operator+(Requests all, const Requests& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

/// Where each name lies.
std::map<std::string, Pieces> by_name(const LayoutPlan& plan) {
  std::map<std::string, Pieces> places;
  for (const Placement& placement : plan.placements)
    places[placement.name] = placement.pieces;
  return places;
}

RC_GTEST_PROP(LayoutPlannerModel, PiecesAreInTheFrameAlignedWholeAndApart, ()) {
  const AddressSpaceLayout frame = any_pc();
  const Requests requests = any_devices() + any_nodes();
  const auto plan = plan_layout(frame, requests);
  RC_ASSERT(plan.has_value());
  std::uint64_t end = 0;
  std::vector<std::uint64_t> sizes(requests.size());
  for (const PlannedPiece& piece : plan->pieces) {
    const PlacementRequest& request = requests[piece.placement];
    const Range range = *piece.range.range();
    RC_ASSERT(range.min() >= end);
    end = range.max() + 1;
    sizes[piece.placement] += piece.range.size;
    RC_ASSERT(piece.range.base.is_aligned(request.align));
    if (request.kind == PlacementKind::ram) {
      RC_ASSERT(piece.range.base.is_aligned(request.size >= 0x4000'0000 ? 0x4000'0000 : 0x20'0000));
      RC_ASSERT(frame.check_place(RegionType::default_memory, range).has_value());
    } else {
      RC_ASSERT(frame.check_place(RegionType::dax_memory, range).has_value());
      RC_ASSERT((range.max() < 0x1'0000'0000) == (request.kind == PlacementKind::mmio32));
    }
  }
  for (std::size_t i = 0; i < requests.size(); ++i) {
    RC_ASSERT(sizes[i] == requests[i].size);
    RC_ASSERT(plan->placements[i].name == requests[i].name);
  }
}

RC_GTEST_PROP(LayoutPlannerModel, DevicesNeverMoveRamNorRamDevices, ()) {
  const AddressSpaceLayout frame = any_pc();
  const Requests nodes = any_nodes();
  const Requests devices = any_devices();
  const auto both = plan_layout(frame, devices + nodes);
  const auto ram = plan_layout(frame, nodes);
  const auto mmio = plan_layout(frame, devices);
  RC_ASSERT(both.has_value() && ram.has_value() && mmio.has_value());
  auto expected = by_name(*ram);
  expected.merge(by_name(*mmio));
  RC_ASSERT(by_name(*both) == expected);
}

RC_GTEST_PROP(LayoutPlannerModel, TheOrderOfDevicesThatDifferDoesNotMatter, ()) {
  const AddressSpaceLayout frame = any_pc();
  const Requests devices = any_devices();
  Requests shuffled = devices;
  for (std::size_t i = shuffled.size(); i > 1; --i)
    std::swap(shuffled[i - 1], shuffled[*rc::gen::inRange<std::size_t>(0, i)]);
  const auto plan = plan_layout(frame, devices);
  const auto other = plan_layout(frame, shuffled);
  RC_ASSERT(plan.has_value() && other.has_value());
  RC_ASSERT(by_name(*plan) == by_name(*other));
}

RC_GTEST_PROP(LayoutPlannerModel, ANewDeviceMovesOnlyThoseThatArePlacedAfterIt, ()) {
  const AddressSpaceLayout frame = any_pc();
  Requests devices = any_devices(1);
  std::reverse(devices.begin(), devices.end());  // as they are placed
  const auto added = *rc::gen::inRange<std::size_t>(0, devices.size());
  const auto plan = plan_layout(frame, devices);
  Requests fewer = devices;
  fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(added));
  const auto before = plan_layout(frame, fewer);
  RC_ASSERT(plan.has_value() && before.has_value());
  for (std::size_t i = 0; i < added; ++i)
    RC_ASSERT(plan->placements[i] == before->placements[i]);
}

}  // namespace
}  // namespace vmspace::layout_planner_model_test
