// SPDX-License-Identifier: Apache-2.0
//
// A region of guest memory, mapped: what an AddressSpaceRegion describes, made real.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/arena.hpp"
#include "vmspace/host/backing.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"

namespace vmspace {

/// How a region is mapped, beyond what its description says; an aggregate for designated
/// initialisers.
struct MapOptions {
  /// Memory that is open already, instead of opening the region's backing: several regions may
  /// share one. It is mapped from `backing_offset` bytes after its own offset; whether it is shared
  /// and how large its pages are is the backing's. GuestMemory::map gives each region its own part.
  std::optional<Backing> backing = {};
  std::uint64_t backing_offset = 0;
  /// An inaccessible page before and after, so that running over an end faults.
  bool guard_pages = false;
  /// Lets this process execute what the guest may execute. Off, no mapping is executable, whatever
  /// the regions say: their descriptions may come from a file or from a peer.
  bool host_executable = false;
  /// Counts the memory against the host's overcommit limit; see MappingOptions::reserve. Off, a
  /// guest may be larger than the host's RAM and swap.
  bool reserve = false;
  /// The host address agrees with the guest address modulo this power of two. 0: the size of a huge
  /// page where one fits, so that KVM can map it to the guest as one.
  std::uint64_t align = 0;
  /// Maps the region at its own place in this arena, which begins with the arena's guest_base().
  std::optional<HostArena> arena = {};
  /// How a region that names a NUMA node is bound to it; `by_default` ignores the node.
  NumaMode numa_mode = NumaMode::bind;
  bool dontfork = false;   ///< children that fork do not get it
  bool dontdump = false;   ///< core dumps leave it out
  bool mergeable = false;  ///< the kernel may merge equal pages (KSM)
  /// A region that wants to be populated is left to the caller, who does several at once.
  bool defer_populate = false;
  PopulateOptions populate = {};
};

/// A mapped region: description, backing and mapping, which never change.
///
/// Held as shared_ptr<const MemoryRegion>: several maps of guest memory share it, and the last one
/// to let go unmaps it. What is immutable is the region; the memory is written through host_base().
/// Const calls, also those of mapping(), may be made from any thread.
class VMSPACE_EXPORT MemoryRegion {
 public:
  /// Opens the region's backing and maps all of it, then binds it to its node, advises huge pages,
  /// and populates it, in this order.
  ///
  /// The region's protection is the guest's: GuestMemory checks it and KVM is told. This process
  /// may read and write the memory, so that the VMM can fill a ROM, and execute nothing unless
  /// `host_executable` asks for it. Only where the backing is not writable (a shared file that the
  /// guest may only read) it may read and no more; mapping().protection() tells.
  ///
  /// Errors: `invalid_argument` for a null pointer, and for a region that asks for pages of another size than
  /// `options.backing` has; those of Backing::open, MemoryMapping::map (`out_of_bounds` also for a
  /// region that is not inside the arena), bind_to_nodes, use_hugepages and populate. Nothing is
  /// left of the region then, and the error's text names the region, its guest range and its file.
  /// A few system calls, and the cost of populate where the region wants it.
  [[nodiscard]] static Result<std::shared_ptr<const MemoryRegion>> map(
      AddressSpaceRegionPtr description, const MapOptions& options = {});

  [[nodiscard]] GuestAddress base() const noexcept { return description_->base(); }
  [[nodiscard]] std::uint64_t size() const noexcept { return description_->size(); }
  /// The last address, inclusive.
  [[nodiscard]] GuestAddress last_addr() const noexcept { return description_->last_addr(); }
  /// Where the guest's base() is in this process, which may do what mapping().protection() says.
  [[nodiscard]] std::byte* host_base() const noexcept { return mapping_.data(); }
  /// What the guest may do.
  [[nodiscard]] Protection protection() const noexcept { return description_->protection(); }
  [[nodiscard]] const AddressSpaceRegion& description() const noexcept { return *description_; }
  [[nodiscard]] const Backing& backing() const noexcept { return mapping_.backing(); }
  [[nodiscard]] const MemoryMapping& mapping() const noexcept { return mapping_; }
  /// Whether the region's wish for transparent huge pages was taken; `not_applicable` also where it
  /// had none.
  [[nodiscard]] Applied huge_pages() const noexcept { return huge_pages_; }
  /// What this process wrote of it, shared by every map that holds the region; off at first.
  [[nodiscard]] DirtyBitmap& dirty() const noexcept { return dirty_; }

  // Filling, whatever the guest may do: so does a VMM fill a ROM before it publishes the memory that
  // the region is part of. GuestMemory goes on refusing to write where the guest may not. Who looks
  // at the memory meanwhile sees a part of it; what is written is marked dirty.

  /// Copies `bytes` to `offset`. Errors: `out_of_bounds` for what is not within the region;
  /// `access_denied` where this process may not write either (see map()).
  [[nodiscard]] Result<void> load_image(std::uint64_t offset,
                                        std::span<const std::byte> bytes) const;
  /// Reads up to `size` bytes from a descriptor to `offset`; gives how many, fewer at the end of the
  /// file. Errors: those of load_image(); `os`, also after a part was read. As with
  /// GuestMemory::read_from, what was asked for and not given may have been written, and is marked.
  [[nodiscard]] Result<std::uint64_t> load_image_from(int fd, std::uint64_t offset,
                                                      std::uint64_t size) const;

 private:
  MemoryRegion(AddressSpaceRegionPtr description, MemoryMapping mapping, Applied huge_pages)
      : description_(std::move(description)),
        mapping_(std::move(mapping)),
        huge_pages_(huge_pages),
        dirty_(description_->size()) {}

  [[nodiscard]] Result<void> check_image(const char* operation, std::uint64_t offset,
                                         std::uint64_t size) const;

  AddressSpaceRegionPtr description_;  // never null
  MemoryMapping mapping_;
  Applied huge_pages_;
  mutable DirtyBitmap dirty_;  // thread-safe by itself
};

/// Populates all of `regions` at once; see populate(). By default the file of a region that the
/// guest may only read is read, and not written. Errors: `invalid_argument` for a null pointer;
/// those of populate(), with the region's name and guest range.
[[nodiscard]] VMSPACE_EXPORT Result<void> populate(
    std::span<const std::shared_ptr<const MemoryRegion>> regions, PopulateOptions options = {});

}  // namespace vmspace
