// SPDX-License-Identifier: Apache-2.0
//
// What goes over the socket of a handover, version 1. Numbers are little-endian; sizes are in bytes.
//
//   at      size  head
//   0       8     magic: "vmspHAND"
//   8       4     version: 1
//   12      4     number of files, at most 512
//   16      8     size of the map, at most 16 MiB
//   24      8     size of the caller's state
//   32      4     flags: 1, dirty pages are tracked
//   36      4     reserved, 0
//
//   then, for each 253 files or what is left of them, a byte 'F' that comes with their descriptors;
//   the map; if dirty pages are tracked, for each mapped region in address order its bitmap, in 64-bit
//   words, a bit for each 4096 bytes; the caller's state.
//
// The receiver answers with a byte 'R' (ready), and the sender with a byte 'C' (commit).
//
// The map, without padding. A text is its length (4) and its bytes.
//
//   layout   phys_max (8), has_ram (1), ram: first, last (8, 8, both 0 without ram);
//            number of apertures (4), each: name, first, last (8, 8), use (1);
//            number of holes (4), each: name, first, last (8, 8), kind (1)
//   files    each: offset, size, page size (8, 8, 8), discardable (1)
//   regions  number (4), each:
//            name, owner, type (1), base, size (8, 8), protection (1), source (1), path, offset,
//            page size (8, 8), sharing (1), node (4, 0 without one),
//            flags (4): 1 has node, 2 huge pages, 4 hotplug, 8 populate, 16 discardable, 32 described
//                       by a descriptor, 64 parked, 128 mapped, 256 guarded
//            if mapped: file (4), offset in that part of it (8), NUMA mode (1), size of a block, of a
//            slot (8, 8, both 0 without blocks), number of runs (4), each: offset, size (8, 8)
//
// Placed regions come in address order, then parked ones. Each file is that of at least one region.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/present_blocks.hpp"

namespace vmspace::detail {

inline constexpr const char* send_operation = "send_handover";
inline constexpr const char* receive_operation = "receive_handover";

inline constexpr std::array<char, 8> handover_magic{'v', 'm', 's', 'p', 'H', 'A', 'N', 'D'};
inline constexpr std::uint32_t handover_version = 1;
inline constexpr std::uint32_t handover_tracked = 1;  ///< the flag

inline constexpr std::byte handover_files{'F'};
inline constexpr std::byte handover_ready{'R'};
inline constexpr std::byte handover_commit{'C'};

inline constexpr std::uint64_t handover_max_map = std::uint64_t{16} << 20;
inline constexpr std::uint32_t handover_max_regions = 65'536;
/// Parked regions are looked for one by one.
inline constexpr std::uint32_t handover_max_parked = 1024;
/// Apertures and holes are compared with one another.
inline constexpr std::uint32_t handover_max_windows = 256;
inline constexpr std::uint32_t handover_max_runs = 4096;
/// Blocks times runs, of all regions together, since each run makes a new set of blocks: 4 GiB of
/// bits.
inline constexpr std::uint64_t handover_max_block_work = std::uint64_t{1} << 35;
/// Slots, of all regions together, each of which may become a mapping and an entry of tables.
inline constexpr std::uint64_t handover_max_slots = std::uint64_t{1} << 20;
inline constexpr std::uint32_t handover_max_name = 1024;
inline constexpr std::uint32_t handover_max_path = 4095;

struct HandoverHead {
  std::array<char, 8> magic = handover_magic;
  Le32 version = handover_version;
  Le32 files = 0;
  Le64 map_size = 0;
  Le64 state_size = 0;
  Le32 flags = 0;
  Le32 reserved = 0;
};
static_assert(sizeof(HandoverHead) == 40);

/// A descriptor, as a Backing has it.
struct HandoverFile {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint64_t page_size = 0;
  bool discardable = false;
};

/// Where the memory of a mapped region is.
struct HandoverPlace {
  std::uint32_t file = 0;    ///< index
  std::uint64_t offset = 0;  ///< from the file's own
  NumaMode numa_mode = NumaMode::by_default;
  bool guarded = false;
  std::uint64_t block_size = 0;  ///< 0: not in blocks
  std::uint64_t slot_size = 0;
  std::vector<PresentBlocks::Run> present = {};
};

struct HandoverRegion {
  /// Its backing's fd is some number, or unset.
  RegionOptions options = {};
  bool parked = false;
  std::optional<HandoverPlace> place = {};
};

struct HandoverMap {
  LayoutOptions layout = {};
  std::vector<HandoverFile> files = {};
  std::vector<HandoverRegion> regions = {};
};

/// The map as bytes. Errors: `limit_exceeded`; `invalid_argument` for a text that can't be sent.
[[nodiscard]] Result<std::vector<std::byte>> encode_handover(const HandoverMap& map);

/// Checks a head, but for the limits of who receives it. Errors: `corrupt`; `unsupported` for a newer
/// version; `limit_exceeded` for a map that is too long.
[[nodiscard]] Result<void> check_handover_head(const HandoverHead& head);

/// Reads a map of `files` files. What descriptions of layout and regions must satisfy is left to those
/// who make them. Errors: `corrupt`; `limit_exceeded`.
[[nodiscard]] Result<HandoverMap> decode_handover(std::span<const std::byte> bytes,
                                                  std::uint32_t files);

}  // namespace vmspace::detail
