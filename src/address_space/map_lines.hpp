// SPDX-License-Identifier: Apache-2.0
//
// What a map of the guest physical space shows, as text or as a picture.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/memory_map.hpp"
#include "vmspace/allocator/range.hpp"

namespace vmspace::detail {

/// One entry of a map. Texts can be printed. Among equal ranges, the one of the lower rank is around
/// the other.
struct MapLine {
  enum Rank { aperture, hole, window, region, device };

  Range range;
  Rank rank;
  std::string name;
  std::string_view kind;
  std::string owner = {};
  std::string backing = {};
  std::optional<std::uint32_t> node = {};  ///< the host node
  std::string remarks = {};
  std::size_t depth = 0;  ///< how many entries are around it
  bool parked = false;    ///< and then not in its range
};

/// The entries of a space, and device ranges, sorted so that each is followed by those inside it;
/// then what is parked.
[[nodiscard]] std::vector<MapLine> map_lines(const AddressSpaceBase& space,
                                             const MemoryMapOptions& options);

}  // namespace vmspace::detail
