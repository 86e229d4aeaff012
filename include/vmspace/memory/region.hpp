// SPDX-License-Identifier: Apache-2.0
//
// A region of guest memory, mapped: what an AddressSpaceRegion describes, made real.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/region.hpp"
#include "vmspace/memory/backing.hpp"
#include "vmspace/memory/mapping.hpp"
#include "vmspace/result.hpp"

namespace vmspace {

/// How a region is mapped, beyond what its description says; an aggregate for designated
/// initialisers.
struct MapOptions {
  /// Memory that is open already, instead of opening the region's backing: several regions may
  /// share one. It is mapped from `backing_offset` bytes after its own offset.
  std::optional<Backing> backing = {};
  std::uint64_t backing_offset = 0;
  /// An inaccessible page before and after, so that running over an end faults.
  bool guard_pages = false;
};

/// A mapped region: description, backing and mapping, which never change.
///
/// Held as shared_ptr<const MemoryRegion>: several maps of guest memory share it, and the last one
/// to let go unmaps it. What is immutable is the region; the memory is written through host_base().
/// Const calls, also those of mapping(), may be made from any thread.
class MemoryRegion {
 public:
  /// Opens the region's backing and maps all of it. Errors: those of Backing::open and
  /// MemoryMapping::map; `invalid_argument` for a region that has no backing.
  [[nodiscard]] static Result<std::shared_ptr<const MemoryRegion>> map(
      const AddressSpaceRegion& description, const MapOptions& options = {});

  [[nodiscard]] GuestAddress base() const noexcept { return description_.base(); }
  [[nodiscard]] std::uint64_t size() const noexcept { return description_.size(); }
  /// The last address, inclusive.
  [[nodiscard]] GuestAddress last_addr() const noexcept { return description_.last_addr(); }
  /// Where the guest's base() is in this process.
  [[nodiscard]] std::byte* host_base() const noexcept { return mapping_.data(); }
  [[nodiscard]] Protection protection() const noexcept { return description_.protection(); }
  [[nodiscard]] const AddressSpaceRegion& description() const noexcept { return description_; }
  [[nodiscard]] const Backing& backing() const noexcept { return mapping_.backing(); }
  [[nodiscard]] const MemoryMapping& mapping() const noexcept { return mapping_; }

 private:
  MemoryRegion(AddressSpaceRegion description, MemoryMapping mapping)
      : description_(std::move(description)), mapping_(std::move(mapping)) {}

  AddressSpaceRegion description_;
  MemoryMapping mapping_;
};

}  // namespace vmspace
