// SPDX-License-Identifier: Apache-2.0

#include "address_space/map_picture.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace vmspace::detail {

namespace {

constexpr std::size_t max_entries = 64;  ///< with a block of their own
constexpr double scaled_height = 440;    ///< of everything that is to scale, together
constexpr int box_padding = 4;           ///< below what is inside a box
constexpr int spacing = 2;               ///< between boxes
constexpr int slice_height = 2;          ///< of heat

/// In bytes; a double, because the whole domain has 2^64 of them.
double size_of(const Range& range) {
  return static_cast<double>(range.max() - range.min()) + 1;
}

bool is_frame(const MapLine& line) {
  return line.rank == MapLine::aperture || line.rank == MapLine::window;
}

/// Whether the height of an entry's block says its size.
bool is_scaled(const MapLine& line) {
  return !line.parked && (line.rank == MapLine::region || line.rank == MapLine::device);
}

/// Whether the host may have memory for it: device registers that are not mapped never are warm.
bool is_memory(const MapLine& line) {
  return line.rank == MapLine::region && !line.parked &&
         (line.kind != name_of(RegionType::device_memory) || !line.backing.empty());
}

/// Which entries have blocks of their own: the largest, and of equal ones the first, so that whatever
/// is around one that is chosen is chosen, too.
std::vector<bool> choose(const std::vector<MapLine>& lines) {
  if (lines.size() <= max_entries) return std::vector<bool>(lines.size(), true);
  std::vector<std::size_t> order(lines.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto last = order.begin() + max_entries;
  std::nth_element(order.begin(), last, order.end(), [&](std::size_t a, std::size_t b) {
    const double size_a = size_of(lines[a].range);
    const double size_b = size_of(lines[b].range);
    return size_a != size_b ? size_a > size_b : a < b;
  });
  std::vector<bool> chosen(lines.size());
  std::for_each(order.begin(), last, [&](std::size_t i) { chosen[i] = true; });
  return chosen;
}

/// The size of everything that is to scale; what is inside another counts once.
double scaled_bytes(const std::vector<MapLine>& lines) {
  double bytes = 0;
  for (std::size_t i = 0; i < lines.size();) {
    const std::size_t around = i++;
    if (!is_scaled(lines[around])) continue;
    bytes += size_of(lines[around].range);
    while (i < lines.size() && !lines[i].parked && lines[i].depth > lines[around].depth)
      ++i;
  }
  return bytes;
}

class Layout {
 public:
  Layout(const std::vector<MapLine>& lines, int top)
      : lines_(lines), chosen_(choose(lines)), bytes_(scaled_bytes(lines)), y_(top) {}

  MapPicture make(std::uint64_t phys_max) && {
    place_all_in(unchecked_range(0, phys_max), 0, true);
    picture_.end = y_;
    if (at_ < lines_.size()) y_ += header_height;
    while (at_ < lines_.size())
      place_parked();
    picture_.bytes_per_pixel = bytes_ / scaled_height;
    picture_.bottom = y_;
    return std::move(picture_);
  }

 private:
  [[nodiscard]] bool is_at_depth(std::size_t depth) const {
    return at_ < lines_.size() && !lines_[at_].parked && lines_[at_].depth >= depth;
  }

  [[nodiscard]] int height_of(double bytes) const {
    return bytes_ == 0 ? 0 : static_cast<int>(std::lround(bytes * scaled_height / bytes_));
  }

  /// Places the entries at this depth, from at_ on, and what lies between them and at the ends of
  /// `around`.
  void place_all_in(const Range& around, std::size_t depth, bool folds) {
    std::optional<std::uint64_t> next =
        around.min();  // nothing: past the last address that there is
    while (is_at_depth(depth)) {
      const std::uint64_t begin = lines_[at_].range.min();
      if (next && begin > *next) place_gap(unchecked_range(*next, begin - 1), depth, folds);
      const std::uint64_t last = chosen_[at_] ? place_entry(depth) : place_crowd(depth);
      // Device ranges may overlap in any way.
      if (next && last >= *next) next = last == UINT64_MAX ? std::nullopt : std::optional(last + 1);
    }
    if (next && *next <= around.max()) {
      place_gap(unchecked_range(*next, around.max()), depth, folds);
    }
  }

  /// What lies between others: folded in a frame, and part of the block, to scale, in a solid.
  void place_gap(const Range& range, std::size_t depth, bool folds) {
    if (folds) {
      place({.kind = MapBox::fold, .range = range, .depth = depth, .height = fold_height});
    } else {
      y_ += std::max(box_padding, height_of(size_of(range)));
    }
  }

  std::uint64_t place_entry(std::size_t depth) {
    const MapLine& line = lines_[at_++];
    const std::size_t index = picture_.boxes.size();
    MapBox box{.kind = is_frame(line) ? MapBox::frame : MapBox::solid,
               .line = &line,
               .range = line.range,
               .depth = depth};
    box.kinds = line.kind;
    if (is_memory(line)) {
      box.memory = line.range;
      box.memory_bytes = size_of(line.range);
    }
    box.has_inside = is_at_depth(line.depth + 1);
    if (!box.has_inside) {
      const int height = is_scaled(line) ? height_of(size_of(line.range)) : 0;
      box.height = std::max(row_height, height);
      box.is_enlarged = is_scaled(line) && height < row_height;
      place(std::move(box));
      return line.range.max();
    }
    const int begin = y_;
    box.height = header_height;
    place(std::move(box));
    place_all_in(line.range, line.depth + 1, !is_scaled(line));
    const int height = y_ + box_padding - begin;
    picture_.boxes[index].height = height;
    picture_.boxes[index].is_enlarged =
        is_scaled(line) && height > height_of(size_of(line.range)) + header_height;
    y_ = begin + height + spacing;
    return line.range.max();
  }

  /// All entries from at_ on, with what is inside them, up to one that has a block of its own.
  std::uint64_t place_crowd(std::size_t depth) {
    MapBox box{.kind = MapBox::crowd, .range = lines_[at_].range, .depth = depth};
    box.kinds = lines_[at_].kind;
    std::uint64_t last = 0;
    double scaled = 0;
    std::optional<std::size_t>
        counted;  // the depth of what is to scale, which counts what is inside
    for (; is_at_depth(depth) && !chosen_[at_]; ++at_) {
      const MapLine& line = lines_[at_];
      add_to(box, line, line.depth == depth);
      last = std::max(last, line.range.max());
      if (counted && line.depth > *counted) continue;
      counted = is_scaled(line) ? std::optional(line.depth) : std::nullopt;
      if (counted) scaled += size_of(line.range);
    }
    box.range = unchecked_range(box.range.min(), last);
    box.height = std::max(row_height, height_of(scaled));
    box.is_enlarged = height_of(scaled) < row_height;
    place(std::move(box));
    return last;
  }

  static void add_to(MapBox& crowd, const MapLine& line, bool is_outermost) {
    ++crowd.count;
    if (is_outermost) crowd.bytes += size_of(line.range);
    if (line.kind != crowd.kinds) crowd.kinds = {};
    if (!is_memory(line)) return;
    crowd.memory_bytes += size_of(line.range);
    crowd.memory =
        unchecked_range(crowd.memory ? crowd.memory->min() : line.range.min(), line.range.max());
  }

  /// What has no address comes last.
  void place_parked() {
    if (chosen_[at_]) {
      const MapLine& line = lines_[at_++];
      place({.kind = MapBox::solid,
             .line = &line,
             .range = line.range,
             .height = row_height,
             .is_enlarged = true,
             .is_parked = true,
             .kinds = line.kind});
      return;
    }
    MapBox box{.kind = MapBox::crowd, .range = lines_[at_].range, .height = row_height};
    box.kinds = lines_[at_].kind;
    box.is_enlarged = true;
    for (; at_ < lines_.size() && !chosen_[at_]; ++at_)
      add_to(box, lines_[at_], true);
    box.is_parked = true;
    place(std::move(box));
  }

  void place(MapBox box) {
    box.y = y_;
    y_ += box.height + spacing;
    picture_.boxes.push_back(std::move(box));
  }

  const std::vector<MapLine>& lines_;
  std::vector<bool> chosen_;
  double bytes_;
  int y_;
  std::size_t at_ = 0;  ///< the next entry
  MapPicture picture_;
};

}  // namespace

MapPicture lay_out(const std::vector<MapLine>& lines, std::uint64_t phys_max, int top) {
  return Layout(lines, top).make(phys_max);
}

void add_heat(MapPicture& picture, std::span<const PageHeat> heat,
              std::vector<double> MapBox::*slices) {
  if (heat.empty()) return;
  std::vector<MapBox*> memory;  // in address order, disjoint: regions are
  for (MapBox& box : picture.boxes) {
    if (!box.memory) continue;
    // The height of a block with others inside is not that of its memory.
    const bool is_linear = box.kind == MapBox::solid && !box.has_inside;
    (box.*slices)
        .assign(is_linear ? static_cast<std::size_t>(std::max(1, box.height / slice_height)) : 1,
                0.0);
    memory.push_back(&box);
  }
  for (const PageHeat& warm : heat) {
    const Range& range = warm.range;
    const double density =
        warm.density > 0 ? std::min(warm.density, 1.0) : 0;  // and 0 for what is not a number
    auto box = std::ranges::partition_point(
        memory, [&](const MapBox* each) { return each->memory->max() < range.min(); });
    for (; box != memory.end() && (*box)->memory->min() <= range.max(); ++box) {
      const Range& own = *(*box)->memory;
      std::vector<double>& parts = (*box)->*slices;
      const double total = (*box)->memory_bytes;
      const double part = total / static_cast<double>(parts.size());
      const double begin = static_cast<double>(std::max(range.min(), own.min()) - own.min());
      const double end = static_cast<double>(std::min(range.max(), own.max()) - own.min()) + 1;
      if (parts.size() == 1) {
        parts[0] += density * (end - begin) / total;
        continue;
      }
      for (auto i = static_cast<std::size_t>(begin / part); i < parts.size(); ++i) {
        const double slice = static_cast<double>(i) * part;
        if (slice >= end) break;
        parts[i] += density * (std::min(end, slice + part) - std::max(begin, slice)) / part;
      }
    }
  }
  for (MapBox* box : memory) {
    for (double& part : box->*slices)
      part = std::clamp(part, 0.0, 1.0);
  }
}

}  // namespace vmspace::detail
