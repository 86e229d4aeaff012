// SPDX-License-Identifier: Apache-2.0
//
// The guest physical space as a picture: what memory_map() says, to scale, and which memory is warm.
//
//   std::vector<PageHeat> dirty;  // of the last round of a migration
//   for (const GuestRange& written : VMSPACE_TRY(harvest_dirty(memory))) {
//     const Range range = VMSPACE_TRY(written.range());
//     dirty.push_back({range});
//   }
//   std::ofstream("guest.svg") << memory_map_svg(*space.snapshot(), {.dirty = dirty});

#pragma once

#include <span>
#include <string>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/memory_map.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

/// How much of a range of guest addresses is resident, or dirty.
struct PageHeat {
  Range range;         ///< guest addresses
  double density = 1;  ///< the part of the range, 0 to 1; whatever lies outside of that is clamped
};

/// Options of memory_map_svg().
struct MemoryMapSvgOptions {
  std::string title = {};                     ///< shown above the picture; empty: none
  std::span<const DeviceRange> devices = {};  ///< see MemoryMapOptions
  bool empty_apertures = true;                ///< see MemoryMapOptions
  std::span<const PageHeat> resident = {};    ///< which memory is in RAM; in any order
  std::span<const PageHeat> dirty = {};       ///< which memory was written; in any order
};

/// The map as a complete SVG document, low addresses at the top:
///
/// - Regions and device ranges are blocks, coloured by kind, with name, owner and size, inside the
///   apertures and bridge windows that they belong to. Heights are to one scale. What would be too
///   small to be read is drawn larger, with a dashed outline; holes are folded.
/// - A bar beside a region shows its host node, in a colour and as a number; two more show how much
///   of its memory is resident and how much is dirty, where either is given.
/// - Each block has a tooltip with everything that the row of memory_map() has.
/// - Colours can be told apart by colour-blind readers, and follow a light or dark page.
///
/// The picture is bounded: of more than 64 entries, the largest are drawn, and each run of others
/// between them is one block that says how many they are. Names are escaped as in error messages
/// and for XML, and shortened; the document has no scripts and refers to nothing outside of itself.
///
/// O(n log n) in what is drawn from, and O(log n) for each entry of heat and each slice of the
/// picture that it touches. Ends with a newline. Threads: any, while `space` does not change.
[[nodiscard]] VMSPACE_EXPORT std::string memory_map_svg(const AddressSpaceBase& space,
                                                        const MemoryMapSvgOptions& options = {});

}  // namespace vmspace
