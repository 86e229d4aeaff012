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
#include "vmspace/host/external_memory.hpp"
#include "vmspace/host/fault_guard.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/present_blocks.hpp"

namespace vmspace {

/// What may be given up to move a region to another guest address; an aggregate for designated
/// initialisers.
struct MoveOptions {
  /// Moves a region that lies in an arena. It stays where it is on the host, so the arena no longer
  /// has it at the place of its guest address. One that is resized leaves the arena.
  bool leave_arena_order = false;
  /// Moves a region to where guest and host address no longer agree modulo the size of a huge page,
  /// so that KVM can map it to the guest only in small pages.
  bool lose_huge_pages = false;

  friend bool operator==(const MoveOptions&, const MoveOptions&) = default;
};

/// What to do with memory whose owner can still remove pages from it (Backing::can_lose_pages), by
/// truncating a file that is not sealed against that, or by punching huge pages out of a hugetlb
/// file. Touching a removed page raises SIGBUS in this process, not in the owner's.
///
/// This library's own memfds of small pages are sealed, and so are those of QEMU's
/// memory-backend-memfd. QEMU's memory-backend-file, in /dev/shm or hugetlbfs, and DPDK's files and
/// memfds are not: serve their guests with a FaultGuard, or, trusting the owner, with `accept`.
enum class Unsealed : std::uint8_t {
  accept,  ///< map it, and take the risk
  refuse,  ///< return `access_denied`
  /// Map it as memory that may fault, if a FaultGuard is installed: an access by GuestMemory or by a
  /// cursor to a removed page is `Errc::fault` then, and every access takes the slow way. Without a
  /// guard, return `access_denied`.
  guard,
};

/// How a region is mapped, beyond what its description says; an aggregate for designated
/// initialisers.
struct MapOptions {
  /// Memory that is open already, instead of opening the region's backing: several regions may
  /// share one. It is mapped from `backing_offset` bytes after its own offset; whether it is shared
  /// and how large its pages are is the backing's. GuestMemory::map gives each region its own part.
  std::optional<Backing> backing = {};
  std::uint64_t backing_offset = 0;  ///< bytes into `backing`; a multiple of its page size
  /// The memory of a region whose source is MemorySource::external, of exactly its size. Others take no
  /// notice.
  std::optional<ExternalMemory> external = {};
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
  /// Leaves regions that ask to be populated to the caller, who can populate several at once.
  bool defer_populate = false;
  PopulateOptions populate = {};  ///< how pages are populated where the region asks for it
  /// What to do with a file that its owner may truncate. Accepted here, since the caller has named the
  /// file; map_regions(), which is told of files by others, asks for a guard.
  Unsealed unsealed = Unsealed::accept;
  /// What GuestMemory::remap may give up for a region that has moved.
  MoveOptions move = {};
  /// Which blocks are present, in a region of the size that these say. Only they are populated, and
  /// this process can't access slots in which none is. Null: all of the region. See MemoryBlocks.
  PresentBlocksPtr blocks = {};
};

class MemoryRegion;

/// How mapped regions are held and handed on.
using MemoryRegionPtr = std::shared_ptr<const MemoryRegion>;

/// A mapped region: a description, and the memory that it describes.
///
/// Invariant: the description has a backing, the mapping is exactly as large as it says, and its
/// base is a multiple of the mapping's page size. The region never changes; its memory is written
/// through host_base().
///
/// Both parts are shared. Several maps of guest memory hold one region, by MemoryRegionPtr; and the
/// regions that at() and with_blocks() make of one another have one memory: mapping and dirty bitmap. The last holder
/// unmaps it. Const calls, also those of mapping(), may be made from any thread.
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
  /// The region holds on to `description`, the object that an AddressSpaceBase holds as well.
  ///
  /// Errors: `invalid_argument` for a null pointer, for a region without a backing, whatever
  /// `options` has, for one of source `external` without memory, or with memory of another size,
  /// for a numa_mode, unsealed or populate.access that is not a named value, needed or not, for a
  /// region that asks for pages of another size than `options.backing` has, and for blocks of a
  /// region of another size; `unsupported` for external memory in an arena, with guard pages or in
  /// blocks; `access_denied` for memory that can lose pages, as `options.unsealed` says;
  /// `misaligned` when these are not multiples of the page size; those of Backing::open,
  /// MemoryMapping::map (`out_of_bounds` also for a region that is not inside the arena),
  /// bind_to_nodes, use_hugepages and populate. Nothing is left of the region then, and the error's
  /// text names the region, its guest range and its file. A few system calls, and the cost of
  /// populate where the region asks for it.
  [[nodiscard]] static Result<MemoryRegionPtr> map(AddressSpaceRegionPtr description,
                                                   const MapOptions& options = {});
  /// Maps memory for which no address space has a description. Errors also: those of
  /// AddressSpaceRegion::make.
  [[nodiscard]] static Result<MemoryRegionPtr> map(RegionOptions description,
                                                   const MapOptions& options = {});

  /// Makes a region of memory that is mapped already, for a caller who takes the steps of map() one
  /// by one. `huge_pages` is what MemoryMapping::use_hugepages() has said. Errors, each naming the
  /// region: `invalid_argument` for a null pointer, for a description without a backing, and when
  /// the mapping is not exactly as large as the region; `misaligned` when the region's base is not a
  /// multiple of the mapping's page size; `access_denied` when this process may not read the mapping,
  /// or may not write it where the guest may. One system call.
  [[nodiscard]] static Result<MemoryRegionPtr> make(AddressSpaceRegionPtr description,
                                                    MemoryMapping mapping,
                                                    Applied huge_pages = Applied::not_applicable);

  /// This region moved to another guest address: a new region that shares its memory, which stays
  /// where it is on the host. While it tracks dirty pages, all of it counts as written, since a
  /// copy of the guest has it at its old address.
  ///
  /// Errors: `bad_state` in an arena, where each region lies at the place of its guest address;
  /// `misaligned` for a move after which guest and host address no longer agree modulo the size of a
  /// huge page, when they did before and one fits in the region (`options` allow either), and unless
  /// `base` is a multiple of the mapping's page size; those of
  /// AddressSpaceRegion::make. Allocates; maps nothing.
  [[nodiscard]] Result<MemoryRegionPtr> at(GuestAddress base,
                                           const MoveOptions& options = {}) const;
  /// Moves the region to the base of `moved`, which must otherwise equal its description, as
  /// AddressSpace::move_region returns it; the new region holds on to `moved`. Errors also:
  /// `invalid_argument` for a null pointer, or a description that differs in more than its base.
  [[nodiscard]] Result<MemoryRegionPtr> at(AddressSpaceRegionPtr moved,
                                           const MoveOptions& options = {}) const;

  /// This region with other blocks present: a new region that shares its memory, of which GuestMemory
  /// finds only those. Null for all of it. Nothing is mapped, or given back: see MemoryBlocks. Errors:
  /// `invalid_argument` for a set of blocks of a region of another size. Allocates.
  [[nodiscard]] Result<MemoryRegionPtr> with_blocks(PresentBlocksPtr blocks) const;
  /// A part of this region as a region of its own, beginning `offset` bytes into it: how a region is
  /// split, cut off at its ends, or moved in parts. Nothing is mapped or copied, and private pages keep
  /// their contents: this region and its parts share the memory, which is unmapped when the last of them
  /// is gone, and stays where it is on the host.
  ///
  /// To remove a part, leave it out of the next map of guest memory, and give its pages back by
  /// `part->mapping().discard(0, part->size())`: users of an older map then find zeros there, and never
  /// a fault. While this region tracks dirty pages, so does the part, and all of it counts as written;
  /// what is written through this region from then on is not in the part's bitmap.
  ///
  /// `part` must otherwise equal the description but for its name, base and size, and for the offset
  /// in a file, which is `offset` higher. Errors, each naming the part: `invalid_argument` for a null
  /// pointer, or a description that differs in more than that; those of MemoryMapping::check_part for
  /// what is not within the region; `unsupported` for a region in blocks; where the part moves, those of
  /// at() and what `options` allow; those of DirtyBitmap::enable. Allocates.
  [[nodiscard]] Result<MemoryRegionPtr> part(AddressSpaceRegionPtr part, std::uint64_t offset,
                                             const MoveOptions& options = {}) const;
  /// This region with another size: a new region that maps the memory again, from the same part of
  /// the same backing, so that both see what either writes. The host address differs. While this one
  /// tracks dirty pages, so does the new one, and all of it counts as written; what is written
  /// through this one from then on is not in the bitmap of the new one.
  ///
  /// `resized` must otherwise equal the description, and is held on to; `options` apply as they do to
  /// map(), but for the backing and `unsealed`, which stays as it was. Errors, each naming the region:
  /// `invalid_argument` for a null pointer, or a description that differs in more than its size;
  /// `unsupported` when the memory is private or anonymous, for a region in blocks, and in an arena
  /// unless MoveOptions::leave_arena_order lets the new region lie outside of it; `out_of_bounds` when
  /// the backing ends before the region does; `bad_state` while a LazyRestore, LiveSnapshot or DirtyScan
  /// has the memory, naming which; those of map() and of DirtyBitmap::enable. Costs what map() does.
  [[nodiscard]] Result<MemoryRegionPtr> with_size(AddressSpaceRegionPtr resized,
                                                  const MapOptions& options = {}) const;

  /// The first guest address.
  [[nodiscard]] GuestAddress base() const noexcept { return description_->base(); }
  /// Bytes; never 0.
  [[nodiscard]] std::uint64_t size() const noexcept { return description_->size(); }
  /// The last address, inclusive.
  [[nodiscard]] GuestAddress last_addr() const noexcept { return description_->last_addr(); }
  /// Base and size.
  [[nodiscard]] GuestRange guest_range() const noexcept { return description_->guest_range(); }
  /// Where base() is mapped in this process, which may access it as mapping().protection() says.
  [[nodiscard]] std::byte* host_base() const noexcept { return memory_->mapping.data(); }
  /// What the guest may do.
  [[nodiscard]] Protection protection() const noexcept { return description_->protection(); }
  /// What it is to the guest.
  [[nodiscard]] const AddressSpaceRegion& description() const noexcept { return *description_; }
  /// As description(), to be kept beyond the life of this region.
  [[nodiscard]] const AddressSpaceRegionPtr& shared_description() const noexcept {
    return description_;
  }
  /// What its memory is made from.
  [[nodiscard]] const Backing& backing() const noexcept { return memory_->mapping.backing(); }
  /// Its memory in this process.
  [[nodiscard]] const MemoryMapping& mapping() const noexcept { return memory_->mapping; }
  /// Whether the kernel took the advice to use transparent huge pages; `not_applicable` also when the
  /// region did not ask for them.
  [[nodiscard]] Applied huge_pages() const noexcept { return memory_->huge_pages; }
  /// Which blocks of it are present; null where all of it always is.
  [[nodiscard]] const PresentBlocksPtr& blocks() const noexcept { return blocks_; }
  /// This region with all of it present, for those who keep a table of it and not of its blocks; null
  /// where that is this region.
  [[nodiscard]] const std::shared_ptr<const MemoryRegion>& without_blocks() const noexcept {
    return whole_;
  }
  /// Whether all of it is present.
  [[nodiscard]] bool is_whole() const noexcept { return blocks_ == nullptr || blocks_->all(); }
  /// Whether its pages may go away under accesses, which are guarded against that: it was mapped with
  /// Unsealed::guard from a backing that can lose pages. Shared by the regions made of it.
  [[nodiscard]] bool may_fault() const noexcept { return memory_->guard.has_value(); }
  /// Whether both are one memory: they are one region, or one was made of the other.
  [[nodiscard]] bool shares_memory_with(const MemoryRegion& other) const noexcept {
    return memory_ == other.memory_;
  }
  /// What this process wrote of it, shared by every map that holds the region; off at first.
  [[nodiscard]] DirtyBitmap& dirty() const noexcept { return memory_->dirty; }
  /// The bitmap together with the memory, which stays mapped as long as anybody holds it.
  [[nodiscard]] std::shared_ptr<DirtyBitmap> shared_dirty() const noexcept {
    return {memory_, &memory_->dirty};
  }

  // Loading images, also where the guest may not write: a VMM fills a ROM before it publishes the
  // memory that the ROM is part of. (GuestMemory refuses every write that the guest may not make.)
  // Loading is not atomic: a reader may see a part of the image. What is written is marked dirty.

  /// Copies `bytes` to `offset`. Errors: `out_of_bounds` for what is not within the region;
  /// `not_found` for what is not in present blocks;
  /// `access_denied` where this process may not write either (see map()); `fault` where a page is gone
  /// of memory that may fault, after a part was written.
  [[nodiscard]] Result<void> load_image(std::uint64_t offset,
                                        std::span<const std::byte> bytes) const;
  /// Reads up to `size` bytes from a descriptor to `offset`; gives how many, fewer at the end of the
  /// file. Errors: those of load_image(); `os`, also after a part was read. As with
  /// read_into_guest(), what was asked for and not given may have been written, and is marked.
  [[nodiscard]] Result<std::uint64_t> load_image_from(int fd, std::uint64_t offset,
                                                      std::uint64_t size) const;

 private:
  struct Memory {
    MemoryMapping mapping;
    Applied huge_pages;
    std::optional<FaultGuard> guard;  // if the memory may fault
    mutable DirtyBitmap dirty;        // thread-safe by itself
  };

  MemoryRegion(AddressSpaceRegionPtr description, std::shared_ptr<const Memory> memory) noexcept
      : description_(std::move(description)), memory_(std::move(memory)) {}
  MemoryRegion(MemoryRegionPtr whole, PresentBlocksPtr blocks) noexcept
      : description_(whole->description_),
        memory_(whole->memory_),
        blocks_(std::move(blocks)),
        whole_(std::move(whole)) {}

  [[nodiscard]] static MemoryRegionPtr of_mapping(AddressSpaceRegionPtr description,
                                                  MemoryMapping mapping, Applied huge_pages,
                                                  std::optional<FaultGuard> guard = {});
  /// The region of `whole` in which these blocks are present; null for all of it.
  [[nodiscard]] static MemoryRegionPtr in_parts(MemoryRegionPtr whole, PresentBlocksPtr blocks);
  [[nodiscard]] Result<void> check_move(const AddressSpaceRegion& moved,
                                        const MoveOptions& options) const;
  /// Whether a part of it may move to `to`.
  [[nodiscard]] Result<void> check_distance(GuestRange from, GuestAddress to,
                                            const MoveOptions& options) const;
  [[nodiscard]] Result<void> check_image(const char* operation, std::uint64_t offset,
                                         std::uint64_t size) const;

  AddressSpaceRegionPtr description_;     // never null
  std::shared_ptr<const Memory> memory_;  // never null
  PresentBlocksPtr blocks_;
  MemoryRegionPtr whole_;  // null if and only if blocks_ is
};

/// Populates all of `regions` at once; see populate(). By default the file of a region that the
/// guest may only read is read, not written. Errors: `invalid_argument` for a null pointer;
/// those of populate(), with the region's name and guest range.
[[nodiscard]] VMSPACE_EXPORT Result<void> populate(std::span<const MemoryRegionPtr> regions,
                                                   PopulateOptions options = {});

}  // namespace vmspace
