// SPDX-License-Identifier: Apache-2.0
//
// Which parts of a region are there: memory that a guest is given, and gives back, in equal blocks, as
// with virtio-mem.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

class PresentBlocks;

/// How a region holds on to its blocks; null where all of the region is always there.
using PresentBlocksPtr = std::shared_ptr<const PresentBlocks>;

/// A set of blocks of one region, by their offsets in it.
///
/// Immutable: a change makes a new set, and moving copies. Invariant: the size of a block is a power of
/// two; the sizes of a slot and of the region are multiples of it.
///
/// Threads: every call is const, and may be made from any thread.
class VMSPACE_EXPORT PresentBlocks {
 public:
  /// A stretch of the region, in bytes.
  struct Run {
    std::uint64_t offset;  ///< from the start of the region
    std::uint64_t size;    ///< bytes

    friend bool operator==(const Run&, const Run&) = default;
  };

  // No move operations, which would change what was moved from.
  PresentBlocks(const PresentBlocks&) = default;
  PresentBlocks& operator=(const PresentBlocks&) = default;
  ~PresentBlocks() = default;

  /// No block of a region of `region_size` bytes. A table of guest memory elsewhere that can't follow
  /// blocks one by one has the region in slots of `slot_size` bytes (the last one may be smaller).
  /// Errors: `bad_alignment` unless the size of a block is a power of two; `invalid_argument` when it is
  /// less than 4 KiB; `misaligned` unless the sizes of a slot and of the region are multiples of it; `zero_size` for
  /// either of these. A bit for each block is allocated.
  [[nodiscard]] static Result<PresentBlocksPtr> none(std::uint64_t region_size,
                                                     std::uint64_t block_size,
                                                     std::uint64_t slot_size);

  /// This set and the blocks of `run`. Errors: those of check_run(); `bad_state` when one is present
  /// already. O(blocks of the region / 64).
  [[nodiscard]] Result<PresentBlocksPtr> with(Run run) const;
  /// As above, with the blocks of all runs, one after the other: all of them, or an error. O(blocks of
  /// the region / 64 + runs).
  [[nodiscard]] Result<PresentBlocksPtr> with(std::span<const Run> runs) const;
  /// This set without the blocks of `run`. Errors: those of check_run(); `bad_state` when one is not
  /// present. O(blocks of the region / 64).
  [[nodiscard]] Result<PresentBlocksPtr> without(Run run) const;
  /// Errors: `zero_size`; `misaligned` unless the run consists of whole blocks; `out_of_bounds` when
  /// it is not within the region.
  [[nodiscard]] Result<void> check_run(Run run) const;

  /// The bytes of the whole region.
  [[nodiscard]] std::uint64_t region_size() const noexcept { return region_size_; }
  /// The bytes of a block: a power of two, at least 4 KiB.
  [[nodiscard]] std::uint64_t block_size() const noexcept { return block_size_; }
  /// The bytes of a slot, in which the region is shown to tables that can't follow blocks; a
  /// multiple of the block size.
  [[nodiscard]] std::uint64_t slot_size() const noexcept { return slot_size_; }
  /// The bytes of all present blocks. O(1).
  [[nodiscard]] std::uint64_t present_size() const noexcept { return present_size_; }
  /// Whether all blocks are present. O(1).
  [[nodiscard]] bool all() const noexcept { return present_size_ == region_size_; }

  /// How many of the `size` bytes from `offset` are present, up to the first that is not. What lies
  /// outside of the region is not. O(size / 64 blocks).
  [[nodiscard]] std::uint64_t present_after(std::uint64_t offset,
                                            std::uint64_t size) const noexcept;
  /// How many of the `size` bytes from `offset` are absent, up to the first that is present, or to
  /// the end of the region. O(size / 64 blocks).
  [[nodiscard]] std::uint64_t absent_after(std::uint64_t offset, std::uint64_t size) const noexcept;
  /// How many of the `size` bytes that end at `end` are present, down to the first that is not.
  /// O(size / 64 blocks).
  [[nodiscard]] std::uint64_t present_before(std::uint64_t end, std::uint64_t size) const noexcept;

  /// The runs of present blocks, in order. O(blocks / 64 + runs).
  [[nodiscard]] std::vector<Run> runs() const;
  /// The slots in which any block is present, in order. O(blocks / 64).
  [[nodiscard]] std::vector<Run> slots() const;

  friend bool operator==(const PresentBlocks&, const PresentBlocks&) = default;

 private:
  PresentBlocks() = default;

  [[nodiscard]] Result<PresentBlocksPtr> changed(std::span<const Run> runs, bool to_present,
                                                 const char* operation) const;
  /// Errors: those of with() and without().
  [[nodiscard]] Result<void> check_change(Run run, bool to_present, const char* operation) const;
  void set(Run run, bool to_present) noexcept;
  /// How many of the blocks from `first`, below `end`, are alike: present, or not.
  [[nodiscard]] std::uint64_t alike(std::uint64_t first, std::uint64_t end,
                                    bool present) const noexcept;
  [[nodiscard]] std::uint64_t bytes_alike(std::uint64_t offset, std::uint64_t size,
                                          bool present) const noexcept;
  [[nodiscard]] bool is_present(std::uint64_t block) const noexcept {
    return ((bits_[block / 64] >> (block % 64)) & 1) != 0;
  }

  std::uint64_t region_size_ = 0;
  std::uint64_t block_size_ = 0;
  std::uint64_t slot_size_ = 0;
  std::uint64_t present_size_ = 0;
  std::vector<std::uint64_t> bits_;  ///< one a block; those past the last are 0
};

}  // namespace vmspace
