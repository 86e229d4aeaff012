// SPDX-License-Identifier: Apache-2.0
//
// Where guest memory can be mapped for devices that access it by themselves (DMA): the container of
// VFIO (vfio_container.hpp), or a library of drivers in this process (dma_callbacks.hpp).
// DmaMappings tells it which memory the guest has.

#pragma once

#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// One stretch of guest memory that devices may access; an aggregate of plain values, so that C
/// code can be handed it.
struct DmaMapping {
  std::uint64_t iova = 0;         ///< what devices address it by: its guest physical address
  std::uint64_t size = 0;         ///< bytes
  void* host_address = nullptr;   ///< where it is mapped in this process
  int fd = -1;                    ///< the descriptor of its memory, borrowed; -1 if anonymous
  std::uint64_t file_offset = 0;  ///< where it begins in that descriptor's file, in bytes
  bool read_only = false;         ///< devices may not write it

  friend bool operator==(const DmaMapping&, const DmaMapping&) = default;
};

/// What a target can map, as far as it can be known beforehand.
struct DmaLimits {
  /// Each mapping lies within one of these.
  std::vector<Range> iova_ranges = {Range::whole_domain()};
  /// Guest address, host address and size are multiples of it; a power of two.
  std::uint64_t page_size = 4096;
  /// How many more mappings it has room for now.
  std::uint64_t available = std::numeric_limits<std::uint64_t>::max();

  friend bool operator==(const DmaLimits&, const DmaLimits&) = default;
};

/// Maps guest memory for the DMA of some devices. DmaMappings, which owns it, makes one call at a
/// time.
class VMSPACE_EXPORT DmaTarget {
 public:
  virtual ~DmaTarget() = default;

  /// What it is called in errors, such as "vfio"; valid while it lives.
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;

  /// Asks what can be mapped now. Errors: whatever keeps the target from answering.
  [[nodiscard]] virtual Result<DmaLimits> limits() const = 0;

  /// Lets devices access the memory. After an error, or an exception, they can't.
  [[nodiscard]] virtual Result<void> map(const DmaMapping& mapping) = 0;

  /// Ends what map() began with exactly this mapping. When it succeeds, no device accesses the
  /// memory any more; after an error it is called again later.
  [[nodiscard]] virtual Result<void> unmap(const DmaMapping& mapping) noexcept = 0;

  /// Whether it knows memory by host address alone. Then memory that the guest sees at two
  /// addresses for a while, because it moves, is mapped once for both, and unmapped with the
  /// address that it had last.
  [[nodiscard]] virtual bool is_by_host_address() const noexcept { return false; }

 protected:
  DmaTarget() = default;
  DmaTarget(const DmaTarget&) = default;
  DmaTarget& operator=(const DmaTarget&) = default;
};

}  // namespace vmspace
