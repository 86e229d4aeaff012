// SPDX-License-Identifier: Apache-2.0
//
// Where everything goes in a picture of the guest physical space: memory_map_svg() without the SVG.
//
// Entries are stacked in address order. What holds memory or registers ("solid") is as high as its
// size says, or as a line of text needs; frames (apertures, bridge windows) are as high as what is in
// them. So the scale is one, and the picture has a height that depends on how many entries are drawn,
// never on how far apart they are.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "vmspace/address_space/memory_map_svg.hpp"
#include "vmspace/allocator/range.hpp"

#include "address_space/map_lines.hpp"

namespace vmspace::detail {

/// What is drawn at one place. Lengths are pixels, and whole.
struct MapBox {
  enum Kind {
    frame,  ///< an aperture or bridge window, around others
    solid,  ///< a region, device range or reserved range
    crowd,  ///< several entries that have no block of their own
    fold,   ///< nothing, however long
  };

  Kind kind;
  const MapLine* line = nullptr;  ///< of a frame or solid
  Range range;
  std::size_t depth = 0;  ///< how many boxes are around it
  int y = 0;
  int height = 0;
  bool is_enlarged = false;  ///< higher than its size
  bool is_parked = false;    ///< has no address
  bool has_inside = false;   ///< other boxes lie inside

  std::string_view kinds = {};  ///< what the entry is, or all of a crowd; empty where they differ

  // Of a crowd.
  std::size_t count = 0;  ///< how many entries
  double bytes = 0;       ///< their sizes

  /// The memory that heat is shown of, where it is a region or has some; from top to bottom, the
  /// same part of it to each slice.
  std::optional<Range> memory = {};
  double memory_bytes = 0;  ///< of a crowd, without what lies between
  std::vector<double> resident = {};
  std::vector<double> dirty = {};
};

/// A picture, from top to bottom; what is inside a box follows it.
struct MapPicture {
  std::vector<MapBox> boxes;
  double bytes_per_pixel = 0;  ///< 0 where nothing is to scale
  int end = 0;                 ///< below the last box that has an address
  int bottom = 0;              ///< below the last box
};

constexpr int row_height = 22;     ///< of the smallest block: a line of text
constexpr int header_height = 20;  ///< of the text of a frame, or of a block with others inside
constexpr int fold_height = 18;

/// Lays out lines as map_lines() gives them, which the picture refers to, from `top` on.
[[nodiscard]] MapPicture lay_out(const std::vector<MapLine>& lines, std::uint64_t phys_max,
                                 int top);

/// Fills one of the two vectors of every box with memory: for each slice, how much of it is warm.
void add_heat(MapPicture& picture, std::span<const PageHeat> heat,
              std::vector<double> MapBox::*slices);

}  // namespace vmspace::detail
