// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/layout_planner.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

#include "address_space/guest_page_size.hpp"

namespace vmspace {

using namespace literals;

namespace {

using detail::guest_page_size;

constexpr std::uint64_t min_below_obstacle = 128_MiB;
constexpr std::uint64_t mmio32_end = 4_GiB;

bool is_known(PlacementKind kind) noexcept {
  switch (kind) {
    case PlacementKind::reserve:
    case PlacementKind::fixed:
    case PlacementKind::ram:
    case PlacementKind::mmio32:
    case PlacementKind::mmio64: return true;
  }
  return false;
}

bool has_base(PlacementKind kind) noexcept {
  return kind == PlacementKind::reserve || kind == PlacementKind::fixed;
}

bool is_mmio(PlacementKind kind) noexcept {
  return kind == PlacementKind::mmio32 || kind == PlacementKind::mmio64;
}

std::uint64_t align_of(const PlacementRequest& request) noexcept {
  if (request.align != 0) return request.align;
  if (request.kind == PlacementKind::ram) return request.size >= 1_GiB ? 1_GiB : 2_MiB;
  return is_mmio(request.kind) ? guest_page_size : 1;
}

/// For whom a plan is made: which call, and what its errors call a request.
struct Caller {
  const char* operation;
  std::string (*label)(const PlacementRequest& request, std::size_t index);
};

/// Makes one plan, in steps that run once each and in this order: check, place_given, place_ram,
/// place_mmio.
///
/// What is left for RAM and for MMIO are the free ranges of two trees. Windows that touch stay two
/// ranges there, so that nothing is placed across the edge between them.
class Planner {
 public:
  Planner(const AddressSpaceLayout& frame, std::span<const PlacementRequest> requests,
          const Caller& caller)
      : frame_(frame), requests_(requests), caller_(caller) {
    for (const PlacementRequest& request : requests_) {
      placements_.push_back(
          {.name = request.name, .kind = request.kind, .pieces = {}, .node = request.node});
    }
    find_ram_areas();
    find_mmio_areas();
  }

  [[nodiscard]] Result<void> check() const {
    std::map<std::string_view, std::size_t> names;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const PlacementRequest& request = requests_[i];
      const auto invalid = [&](Operand operand, const char* reason) {
        return failed(i, {.code = Errc::invalid_argument, .first = operand, .reason = reason});
      };
      if (!is_known(request.kind)) {
        return invalid(Operand::number(static_cast<std::uint64_t>(request.kind)),
                       "no such PlacementKind");
      }
      if (request.name.empty()) return invalid({}, "the name is empty");
      const auto [named, is_new] = names.emplace(request.name, i);
      if (!is_new) {
        return failed(i, {.code = Errc::invalid_argument, .reason = "the name is taken"},
                      named->second);
      }
      if (request.size == 0) return failed(i, {.code = Errc::zero_size});
      if (request.align != 0 && !std::has_single_bit(request.align)) {
        return failed(i, {.code = Errc::bad_alignment, .first = Operand::size(request.align)});
      }
      if (request.base != GuestAddress{} && !has_base(request.kind)) {
        return invalid(Operand::address(request.base.value()),
                       "the base is to be found: leave it 0");
      }
      if (request.kind == PlacementKind::ram) {
        VMSPACE_TRY(check_pages(i, request.size, nullptr));
        VMSPACE_TRY(check_pages(i, request.align, "the alignment and the page size"));
      } else if (request.node != 0) {
        return invalid(Operand::number(request.node), "only RAM has a node: leave it 0");
      }
    }
    return {};
  }

  /// `reserve` and `fixed`.
  Result<void> place_given() {
    IntervalTree<std::size_t> given;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const PlacementRequest& request = requests_[i];
      if (!has_base(request.kind)) continue;
      const auto range = Range::from_base_size(request.base.value(), request.size);
      if (!range) return failed(i, range.error());
      if (!request.base.is_aligned(request.align)) {
        return failed(i, {.code = Errc::misaligned,
                          .first = Operand::address(request.base.value()),
                          .second = Operand::size(request.align),
                          .reason = "the base and the alignment"});
      }
      // Firmware may lie anywhere in the frame but in a hole or across an edge, and so may `fixed`.
      if (request.kind == PlacementKind::fixed) {
        const auto fits = frame_.check_place(RegionType::firmware_memory, *range);
        if (!fits) return failed(i, fits.error());
      } else if (range->max() > frame_.phys_max()) {
        return failed(i, {.code = Errc::out_of_bounds,
                          .first = detail::operand(*range),
                          .second = Operand::range(0, frame_.phys_max()),
                          .reason = "the range must end at or below phys_max"});
      }
      if (const auto inserted = given.insert(*range, i); !inserted) {
        Error error = inserted.error();
        error.reason = "already there";
        return failed(i, error, *given.overlapping(*range).front().value);
      }
      ram_.subtract(*range);
      mmio_.subtract(*range);
      place(i, *range);
    }
    return {};
  }

  Result<void> place_ram() {
    std::optional<NoRam> lacking = fill(min_below_obstacle);
    if (lacking) lacking = fill(0);  // what was left out below obstacles is needed
    if (!lacking) return {};
    Error error{.code = Errc::no_space, .first = Operand::size(requests_[lacking->request].size)};
    if (!frame_.ram_range()) {
      error.reason = "the layout has no RAM";
    } else {
      error.second = detail::operand(*frame_.ram_range());
      if (lacking->largest) error.available = detail::operand(*lacking->largest);
    }
    return failed(lacking->request, error);
  }

  Result<void> place_mmio() {
    std::vector<std::size_t> order(requests_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::erase_if(order, [&](std::size_t i) { return !is_mmio(requests_[i].kind); });
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return std::pair(align_of(requests_[a]), requests_[a].size) >
             std::pair(align_of(requests_[b]), requests_[b].size);
    });
    for (const std::size_t i : order) {
      const PlacementRequest& request = requests_[i];
      Constraint constraint{.size = request.size, .align = align_of(request)};
      if (request.kind == PlacementKind::mmio32) {
        constraint.max = std::min(frame_.phys_max(), mmio32_end - 1);
      } else if (frame_.phys_max() >= mmio32_end) {
        constraint.min = mmio32_end;
        constraint.max = frame_.phys_max();
      } else {
        return failed(i, {.code = Errc::no_space,
                          .first = Operand::size(request.size),
                          .second = Operand::range(0, frame_.phys_max()),
                          .reason = "the layout ends below 4 GiB"});
      }
      const auto range = mmio_.allocate(constraint);
      if (!range) return failed(i, range.error());
      place(i, *range);
    }
    return {};
  }

  LayoutPlan finish() && {
    LayoutPlan plan{.placements = std::move(placements_), .pieces = {}};
    for (std::size_t i = 0; i < plan.placements.size(); ++i) {
      for (const GuestRange& range : plan.placements[i].pieces)
        plan.pieces.push_back({range, i});
    }
    std::sort(
        plan.pieces.begin(), plan.pieces.end(),
        [](const PlannedPiece& a, const PlannedPiece& b) { return a.range.base < b.range.base; });
    return plan;
  }

 private:
  struct Nothing {};
  using Areas = IntervalTree<Nothing>;

  /// Which RAM did not fit, and the largest piece that there was for it.
  struct NoRam {
    std::size_t request;
    std::optional<Range> largest;
  };

  /// The error as the caller's, about this request; `other` is the one in its way.
  [[nodiscard]] tl::unexpected<Error> failed(std::size_t i, Error error,
                                             std::optional<std::size_t> other = {}) const {
    error.operation = caller_.operation;
    error.text = {caller_.label(requests_[i], i), other ? caller_.label(requests_[*other], *other)
                                                        : std::string(error.text.detail())};
    return fail(error);
  }

  Result<void> check_pages(std::size_t i, std::uint64_t bytes, const char* reason) const {
    if (bytes % guest_page_size == 0) return {};
    return failed(i, {.code = Errc::misaligned,
                      .first = Operand::size(bytes),
                      .second = Operand::size(guest_page_size),
                      .reason = reason});
  }

  void place(std::size_t i, const Range& range) {
    placements_[i].pieces.push_back({GuestAddress(range.min()), range.size()});
  }

  static void add(Areas& areas, const Range& range) {
    const auto inserted = areas.insert(range);
    assert(inserted);
    static_cast<void>(inserted);
  }

  void find_ram_areas() {
    if (!frame_.ram_range()) return;
    add(ram_, *frame_.ram_range());
    for (const Aperture& aperture : frame_.apertures()) {
      if (aperture.use != ApertureUse::ram) ram_.subtract(aperture.range);
    }
    for (const Hole& hole : frame_.holes())
      ram_.subtract(hole.range);
  }

  void find_mmio_areas() {
    for (const Aperture& aperture : frame_.apertures()) {
      if (aperture.use == ApertureUse::mmio) add(mmio_, aperture.range);
    }
    for (const Hole& hole : frame_.holes())
      mmio_.subtract(hole.range);
  }

  /// Places RAM in what is left for it. Of an area in which a request does not end, less than
  /// `least` bytes are left unused. Returns the first request that does not fit.
  std::optional<NoRam> fill(std::uint64_t least) {
    const auto areas = ram_.free_ranges();
    auto area = areas.begin();
    std::optional<Range> left;  // of the area, once a request ended in it
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const PlacementRequest& request = requests_[i];
      if (request.kind != PlacementKind::ram) continue;
      placements_[i].pieces.clear();
      const std::uint64_t align = align_of(request);
      std::optional<Range> largest;
      std::uint64_t missing = request.size;
      while (missing != 0) {
        if (area == areas.end()) return NoRam{i, largest};
        const auto room = left.value_or(*area).align_up(align);
        left.reset();
        if (!room) {  // no multiple of the alignment in it
          ++area;
          continue;
        }
        // Compared as last bytes: all of 2^64 bytes have no size.
        const std::uint64_t last = room->max() - room->min();
        if (!largest || last > largest->max() - largest->min()) largest = *room;
        if (missing - 1 <= last) {
          place(i, detail::unchecked_range(room->min(), room->min() + (missing - 1)));
          if (missing - 1 == last) {
            ++area;
          } else {
            left = detail::unchecked_range(room->min() + missing, room->max());
          }
          break;
        }
        const std::uint64_t taken = (last + 1) & ~(align - 1);
        if (taken != 0 && taken >= least) {
          place(i, detail::unchecked_range(room->min(), room->min() + (taken - 1)));
          missing -= taken;
        }
        ++area;
      }
    }
    return std::nullopt;
  }

  const AddressSpaceLayout& frame_;
  std::span<const PlacementRequest> requests_;
  Caller caller_;
  Areas ram_;
  Areas mmio_;
  std::vector<Placement> placements_;
};

Result<LayoutPlan> plan_for(const Caller& caller, const AddressSpaceLayout& frame,
                            std::span<const PlacementRequest> requests) {
  Planner planner(frame, requests, caller);
  VMSPACE_TRY(planner.check());
  VMSPACE_TRY(planner.place_given());
  VMSPACE_TRY(planner.place_ram());
  VMSPACE_TRY(planner.place_mmio());
  return std::move(planner).finish();
}

}  // namespace

std::string_view name_of(PlacementKind kind) noexcept {
  switch (kind) {
    case PlacementKind::reserve: return "reserve";
    case PlacementKind::fixed: return "fixed";
    case PlacementKind::ram: return "ram";
    case PlacementKind::mmio32: return "mmio32";
    case PlacementKind::mmio64: return "mmio64";
  }
  return "unknown";
}

Result<LayoutPlan> plan_layout(const AddressSpaceLayout& frame,
                               std::span<const PlacementRequest> requests) {
  const auto label = [](const PlacementRequest& request, std::size_t index) {
    std::string text(name_of(request.kind));
    return text.append(" ").append(request.name).append(" (request ") + std::to_string(index) + ")";
  };
  return plan_for({"plan_layout", label}, frame, requests);
}

// Of layout.hpp: a plan of RAM alone. Its alignment is a page and not the rule's, so that nodes of
// any size follow each other without a gap.
Result<std::vector<RamPiece>> AddressSpaceLayout::plan_ram(
    std::span<const std::uint64_t> sizes) const {
  constexpr const char* operation = "AddressSpaceLayout::plan_ram";
  if (sizes.empty()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "give the size of at least one node"});
  }
  std::vector<PlacementRequest> nodes;
  for (std::size_t node = 0; node < sizes.size(); ++node) {
    nodes.push_back({.name = "node " + std::to_string(node),
                     .kind = PlacementKind::ram,
                     .size = sizes[node],
                     .align = guest_page_size,
                     .node = static_cast<std::uint32_t>(node)});
  }
  const auto label = [](const PlacementRequest& node, std::size_t) { return node.name; };
  const auto plan = plan_for({operation, label}, *this, nodes);
  if (!plan) {
    Error error = plan.error();
    error.available = {};  // a node may be split: the largest piece is not what would fit
    return fail(error);
  }
  std::vector<RamPiece> pieces;
  for (const auto& [range, node] : plan->pieces)
    pieces.push_back({range.base, range.size, static_cast<std::uint32_t>(node)});
  return pieces;
}

}  // namespace vmspace
