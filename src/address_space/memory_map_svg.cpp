// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map_svg.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "vmspace/base/error_text.hpp"

#include "address_space/map_lines.hpp"
#include "address_space/map_picture.hpp"
#include "address_space/map_style.hpp"
#include "base/size_text.hpp"
#include "base/text_table.hpp"

namespace vmspace {

namespace {

using detail::MapBox;
using detail::MapLine;
using detail::MapPicture;

constexpr int margin = 16;
constexpr int column_width = 384;
constexpr int indent_width = 8;
constexpr std::size_t max_indents = 4;
constexpr int lane_width = 58;
constexpr int bar_width = 18;

// -- texts ---------------------------------------------------------------------------------------

/// A printable text as XML. U+FFFE and U+FFFF are characters of UTF-8 that XML does not have.
std::string xml(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = detail::next_unit(text).read;
    const std::string_view unit = text.substr(0, length);
    if (unit == "&") {
      out += "&amp;";
    } else if (unit == "<") {
      out += "&lt;";
    } else if (unit == ">") {
      out += "&gt;";
    } else {
      out += unit == "\xef\xbf\xbe" || unit == "\xef\xbf\xbf" ? "\xef\xbf\xbd" : unit;
    }
    text.remove_prefix(length);
  }
  return out;
}

/// A printable text of at most this many columns; characters beyond ASCII may be two wide.
std::string shortened(std::string_view text, std::size_t columns) {
  const auto width = [](std::string_view unit) { return unit.size() == 1 ? 1U : 2U; };
  std::size_t used = 0;
  std::size_t fits = 0;  // bytes that leave room for an ellipsis
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view unit = text.substr(at, detail::next_unit(text.substr(at)).read);
    used += width(unit);
    if (used > columns) return std::string(text.substr(0, fits)) + "\xe2\x80\xa6";
    at += unit.size();
    if (used < columns) fits = at;
  }
  return std::string(text);
}

std::string size_text(const Range& range) {
  return range == Range::whole_domain() ? "16 EiB" : detail::rounded(range.size());
}

std::string size_text(double bytes) {
  constexpr double whole_domain = 0x1p64;
  return bytes < whole_domain ? detail::rounded(static_cast<std::uint64_t>(bytes))
                              : size_text(Range::whole_domain());
}

std::string joined(std::initializer_list<std::string_view> parts, std::string_view separator) {
  std::string text;
  for (const std::string_view part : parts) {
    if (part.empty()) continue;
    if (!text.empty()) text += separator;
    text += part;
  }
  return text;
}

std::string counted(const MapBox& crowd) {
  const std::string kinds = crowd.kinds.empty() ? "of several kinds" : std::string(crowd.kinds);
  return fmt::format("{} {}, {}", detail::grouped(std::uint64_t{crowd.count}),
                     crowd.count == 1 ? "entry" : "entries", kinds);
}

std::string tooltip(const MapBox& box, bool is_parked) {
  const std::string where = is_parked
                                ? std::string("parked")
                                : fmt::format("{:#x}-{:#x}", box.range.min(), box.range.max());
  if (box.kind == MapBox::crowd) {
    return joined({counted(box), where, size_text(box.bytes)}, "\n");
  }
  const MapLine& line = *box.line;
  const std::string owner = line.owner.empty() ? "" : "owner " + line.owner;
  const std::string node = line.node ? fmt::format("host node {}", *line.node) : "";
  return joined({line.name, where, joined({line.kind, size_text(box.range)}, ", "), owner,
                 line.backing, node, line.remarks},
                "\n");
}

/// Who owns it, where its name does not say so already.
std::string_view owner_of(const MapLine& line) {
  return line.owner == line.name ? std::string_view{} : std::string_view(line.owner);
}

/// How an entry of this kind is drawn.
std::string_view class_of(std::string_view kind) {
  constexpr std::string_view kinds[] = {"ram", "device", "dax", "firmware"};
  return std::ranges::find(kinds, kind) != std::end(kinds) ? kind : "other";
}

// -- drawing -------------------------------------------------------------------------------------

/// A column beside the blocks.
struct Lane {
  std::string_view heading;
  std::string_view css;
  std::vector<double> MapBox::*slices;  ///< null: the host node
};

class Drawing {
 public:
  Drawing(const MapPicture& picture, const MemoryMapSvgOptions& options, std::uint64_t last)
      : picture_(picture) {
    const auto has_node = [](const MapBox& box) {
      return box.kind == MapBox::solid && box.line->node.has_value();
    };
    if (std::ranges::any_of(picture.boxes, has_node)) lanes_.push_back({"node", "", nullptr});
    if (!options.resident.empty()) lanes_.push_back({"resident", "resident", &MapBox::resident});
    if (!options.dirty.empty()) lanes_.push_back({"dirty", "dirty", &MapBox::dirty});
    constexpr std::size_t digit_width = 7;
    constexpr std::size_t min_digits = 10;
    const std::size_t digits = std::max(min_digits, fmt::formatted_size("{:#x}", last));
    column_ = margin + static_cast<int>(digits * digit_width) + 8;
    lanes_at_ = column_ + column_width + 8;
    width_ = lanes_at_ + static_cast<int>(lanes_.size()) * lane_width + margin;
  }

  std::string make(std::string_view title, std::uint64_t phys_max, int top) && {
    const std::string_view name = title.empty() ? "Guest physical memory map" : title;
    if (!title.empty()) put(R"(<text x="{}" y="28" class="title">{}</text>)", margin, xml(title));
    for (std::size_t i = 0; i < lanes_.size(); ++i)
      put(R"(<text x="{}" y="{}" class="soft" text-anchor="middle">{}</text>)", lane_middle(i),
          top - 6, lanes_[i].heading);
    for (const MapBox& box : picture_.boxes)
      draw(box);
    put(R"(<text x="{}" y="{}" class="at" text-anchor="end">{:#x}</text>)", column_ - 8,
        std::max(picture_.end + 5, address_y_ + 12), phys_max);
    const int bottom = draw_legend(picture_.bottom + 22);
    return fmt::format(
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
               "viewBox=\"0 0 {0} {1}\" class=\"vmspace-map\" "
               "role=\"img\">\n<title>{2}</title>\n{3}"
               "<rect width=\"{0}\" height=\"{1}\" class=\"page\"/>\n",
               width_, bottom, xml(name), detail::map_style) +
           body_ + "</svg>\n";
  }

 private:
  template <typename... Values>
  void put(fmt::format_string<Values...> format, Values&&... values) {
    fmt::format_to(std::back_inserter(body_), format, std::forward<Values>(values)...);
    body_ += '\n';
  }

  [[nodiscard]] int lane_middle(std::size_t lane) const {
    return lanes_at_ + static_cast<int>(lane) * lane_width + lane_width / 2;
  }

  /// Beside the column, unless it was said already, or there is no room.
  void put_address(std::uint64_t address, int y) {
    constexpr int line_height = 11;
    if (has_address_ && (address == address_ || y < address_y_ + line_height)) return;
    put(R"(<text x="{}" y="{}" class="at" text-anchor="end">{:#x}</text>)", column_ - 8, y,
        address);
    has_address_ = true;
    address_ = address;
    address_y_ = y;
  }

  void draw(const MapBox& box) {
    const int inset = static_cast<int>(std::min(box.depth, max_indents)) * indent_width;
    const int x = column_ + inset;
    const int width = column_width - 2 * inset;
    const bool is_parked = box.is_parked;
    if (is_parked) {
      put(R"(<text x="{}" y="{}" class="at" text-anchor="end">parked</text>)", column_ - 8,
          box.y + 15);
    } else {
      put_address(box.range.min(), box.y + (box.kind == MapBox::fold ? 12 : 14));
    }
    switch (box.kind) {
      case MapBox::fold: draw_fold(box, x, width); return;
      case MapBox::frame: draw_frame(box, x, width); return;
      case MapBox::solid:
      case MapBox::crowd: draw_block(box, x, width, is_parked); return;
    }
  }

  void draw_fold(const MapBox& box, int x, int width) {
    const std::string size = size_text(box.range);
    const int text = 16 + static_cast<int>(size.size()) * 7;
    const int y = box.y + detail::fold_height / 2;
    const int middle = x + width / 2;
    put_zigzag(x + 4, middle - text / 2, y);
    put_zigzag(middle + text / 2, x + width - 4, y);
    put(R"(<text x="{}" y="{}" class="soft" text-anchor="middle">{}</text>)", middle, y + 4, size);
  }

  void put_zigzag(int from, int to, int y) {
    std::string path = fmt::format("M{} {}", from, y);
    for (int x = from, tooth = 0; x + 6 <= to; x += 6, ++tooth)
      path += tooth % 2 == 0 ? "l6 -3" : "l6 3";
    put(R"(<path d="{}" class="fold"/>)", path);
  }

  void open(const MapBox& box, bool is_parked) {
    put("<g><title>{}</title>", xml(tooltip(box, is_parked)));
    kinds_.push_back(box.kinds);
  }

  void draw_frame(const MapBox& box, int x, int width) {
    open(box, false);
    put(R"(<rect x="{}.5" y="{}.5" width="{}" height="{}" rx="4" class="frame"/>)", x, box.y,
        width - 1, box.height - 1);
    put_label(box, x, width, box.y + 14, joined({owner_of(*box.line), box.line->kind}, ", "),
              "soft");
    body_ += "</g>\n";
  }

  void draw_block(const MapBox& box, int x, int width, bool is_parked) {
    constexpr int two_lines = 42;
    open(box, is_parked);
    const bool is_reserved = box.kind == MapBox::solid && box.line->rank == MapLine::hole;
    const std::string_view css = class_of(kinds_.back());
    const auto put_rect = [&](std::string_view attributes) {
      put(R"(<rect x="{}.5" y="{}.5" width="{}" height="{}" rx="2" {}/>)", x, box.y, width - 1,
          box.height - 1, attributes);
    };
    put_rect(fmt::format(R"(class="{}{}")", css, box.is_enlarged ? " enlarged" : ""));
    if (is_reserved) put_rect(R"svg(fill="url(#vmspace-hatch)")svg");
    if (box.kind == MapBox::crowd) {
      put(R"(<text x="{}" y="{}">{}</text>)", x + 8, box.y + 15, counted(box));
      put_size(size_text(box.bytes), x + width - 8, box.y + 15);
    } else {
      const MapLine& line = *box.line;
      put_label(box, x, width, box.y + 15, is_reserved ? line.kind : owner_of(line), "name");
      if (box.height >= two_lines && !box.has_inside) {
        const std::string text = joined({line.kind, line.backing, line.remarks}, ", ");
        put(R"(<text x="{}" y="{}" class="soft">{}</text>)", x + 8, box.y + 32,
            xml(shortened(text, 48)));
      }
    }
    for (std::size_t i = 0; i < lanes_.size() && !is_parked; ++i)
      draw_lane(lanes_[i], lane_middle(i) - bar_width / 2, box);
    body_ += "</g>\n";
  }

  void put_label(const MapBox& box, int x, int width, int y, std::string_view more,
                 std::string_view css) {
    put(R"(<text x="{}" y="{}"><tspan class="{}">{}</tspan> <tspan dx="4" class="soft">{}</tspan></text>)",
        x + 8, y, css, xml(shortened(box.line->name, 24)), xml(shortened(more, 16)));
    put_size(size_text(box.range), x + width - 8, y);
  }

  void put_size(const std::string& size, int x, int y) {
    put(R"(<text x="{}" y="{}" text-anchor="end">{}</text>)", x, y, size);
  }

  void draw_lane(const Lane& lane, int x, const MapBox& box) {
    if (lane.slices == nullptr) {
      if (box.kind != MapBox::solid || !box.line->node) return;
      const std::uint32_t node = *box.line->node;
      put(R"(<rect x="{}" y="{}" width="6" height="{}" rx="2" fill="{}"/>)", x - 4, box.y + 1,
          box.height - 2, detail::map_node_colours[node % detail::map_node_colours.size()]);
      put(R"(<text x="{}" y="{}">{}</text>)", x + 8, box.y + 15, node);
      return;
    }
    const std::vector<double>& slices = box.*lane.slices;
    if (slices.empty()) return;
    const int height = box.has_inside ? detail::header_height : box.height - 1;
    put(R"(<rect x="{}" y="{}" width="{}" height="{}" class="track"/>)", x, box.y, bar_width,
        height);
    // Alike slices are one; so few shades are as many as the eye tells apart.
    constexpr double shades = 10;
    const auto shade = [&](std::size_t i) {
      const double density = slices[i];
      return density == 0 ? 0 : std::max(1, static_cast<int>(std::lround(density * shades)));
    };
    const auto slice_y = [&](std::size_t i) {
      return static_cast<int>(static_cast<std::size_t>(height) * i / slices.size());
    };
    for (std::size_t i = 0; i < slices.size();) {
      const std::size_t begin = i;
      while (i < slices.size() && shade(i) == shade(begin))
        ++i;
      if (shade(begin) == 0) continue;
      put(R"(<rect x="{}" y="{}" width="{}" height="{}" class="{}" fill-opacity="{:.1f}"/>)", x,
          box.y + slice_y(begin), bar_width, std::max(1, slice_y(i) - slice_y(begin)), lane.css,
          shade(begin) / shades);
    }
  }

  // -- legend --

  /// Draws a legend from `y` on, and gives the height of the picture.
  int draw_legend(int y) {
    constexpr int line_height = 20;
    constexpr int gap = 14;
    legend_x_ = column_;
    legend_y_ = y;
    const auto place = [&](int swatch, std::string_view text) {
      const int width = swatch + 6 + static_cast<int>(text.size()) * 7;
      if (legend_x_ != column_ && legend_x_ + width > width_ - margin) {
        legend_x_ = column_;
        legend_y_ += line_height;
      }
      put(R"(<text x="{}" y="{}" class="soft">{}</text>)", legend_x_ + swatch + 6, legend_y_ + 11,
          text);
      return std::exchange(legend_x_, legend_x_ + width + gap);
    };
    const auto swatch = [&](std::string_view text, std::string_view css) {
      const int x = place(14, text);
      put(R"(<rect x="{}.5" y="{}.5" width="13" height="12" rx="2" class="{}"/>)", x, legend_y_,
          css);
    };
    for (const std::string_view kind : {"ram", "device", "dax", "firmware"}) {
      if (std::ranges::find(kinds_, kind) != kinds_.end()) swatch(kind, kind);
    }
    const auto is_enlarged = [](const MapBox& box) { return box.is_enlarged; };
    if (std::ranges::any_of(picture_.boxes, is_enlarged)) {
      swatch("dashed: larger than to scale", "other enlarged");
    }
    const auto is_fold = [](const MapBox& box) { return box.kind == MapBox::fold; };
    if (std::ranges::any_of(picture_.boxes, is_fold)) {
      const int x = place(24, "folded: nothing there");
      put_zigzag(x, x + 24, legend_y_ + 8);
    }
    for (const Lane& lane : lanes_) {
      if (lane.slices != nullptr)
        draw_shades(lane, place(60, fmt::format("{}, 0 to 100 %", lane.heading)));
    }
    return std::max(legend_y_ + line_height, draw_scale(y)) + margin;
  }

  void draw_shades(const Lane& lane, int x) {
    put(R"(<rect x="{}" y="{}" width="60" height="13" class="track"/>)", x, legend_y_);
    for (int i = 1; i < 6; ++i)
      put(R"(<rect x="{}" y="{}" width="10" height="13" class="{}" fill-opacity="{:.1f}"/>)",
          x + 10 * i, legend_y_, lane.css, i * 0.2);
  }

  /// Draws a bar that is as high as memory of a round size, left of the legend; gives where it ends.
  int draw_scale(int y) {
    constexpr double about = 60;  // pixels
    const double most = picture_.bytes_per_pixel * about;
    if (most < 1) return y;
    const double bytes = std::exp2(std::floor(std::log2(most)));
    const int height = static_cast<int>(std::lround(bytes / picture_.bytes_per_pixel));
    const int x = column_ - 16;
    put(R"(<path d="M{} {}h6m-3 0v{}m-3 0h6" class="scale"/>)", x - 3, y, height);
    put(R"(<text x="{}" y="{}" class="soft" text-anchor="end">{}</text>)", x - 8,
        y + height / 2 + 4, size_text(bytes));
    return y + height;
  }

  const MapPicture& picture_;
  std::vector<Lane> lanes_;
  int column_ = 0;    ///< where blocks begin
  int lanes_at_ = 0;  ///< where the columns beside them do
  int width_ = 0;
  std::string body_;
  std::vector<std::string_view> kinds_;  ///< of what was drawn
  bool has_address_ = false;
  std::uint64_t address_ = 0;  ///< the last one that was written, and where
  int address_y_ = 0;
  int legend_x_ = 0;
  int legend_y_ = 0;
};

}  // namespace

std::string memory_map_svg(const AddressSpaceBase& space, const MemoryMapSvgOptions& options) {
  const std::vector<MapLine> lines = detail::map_lines(
      space, {.devices = options.devices, .empty_apertures = options.empty_apertures});
  const int top = options.title.empty() ? 30 : 62;
  const std::uint64_t phys_max = space.layout().phys_max();
  MapPicture picture = detail::lay_out(lines, phys_max, top);
  detail::add_heat(picture, options.resident, &MapBox::resident);
  detail::add_heat(picture, options.dirty, &MapBox::dirty);
  std::uint64_t last = phys_max;
  for (const MapLine& line : lines)
    last = std::max(last, line.range.max());
  return Drawing(picture, options, last)
      .make(shortened(detail::printable(options.title), 80), phys_max, top);
}

}  // namespace vmspace
