// SPDX-License-Identifier: Apache-2.0
//
// Host memory of this process: a Backing, mapped.
//
// The order of calls matters: map, then bind to NUMA nodes, then advise huge pages, and only then
// populate, because pages that exist already follow neither binding nor advice. MemoryRegion keeps
// to this order; code that uses a MemoryMapping directly has to keep to it too.

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/arena.hpp"
#include "vmspace/host/backing.hpp"
#include "vmspace/host/external_memory.hpp"
#include "vmspace/host/memory_pin.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

namespace detail {
class FaultClaim;
}

/// Whether advice took effect; that it did not is not an error.
enum class Applied : std::uint8_t {
  applied,
  not_applicable,  ///< it means nothing for this memory, or with this machine's settings
};

/// Advice of madvise(2) that leaves the contents alone.
enum class Advice : std::uint8_t {
  normal,         ///< undoes random and sequential
  random,         ///< reading ahead is useless
  sequential,     ///< read far ahead, and drop what was read
  cold,           ///< reclaim these pages before others
  page_out,       ///< reclaim these pages now
  no_huge_pages,  ///< do not use transparent huge pages
};

/// How memory is bound to host NUMA nodes (mbind(2)).
enum class NumaMode : std::uint8_t {
  by_default,  ///< the policy of the process; takes no nodes
  preferred,   ///< this one node, as long as it has free memory
  bind,        ///< these nodes and no others
};

/// A mode and its host nodes.
struct NumaPolicy {
  NumaMode mode = NumaMode::by_default;   ///< how the nodes are used
  std::vector<std::uint32_t> nodes = {};  ///< of the host; none for by_default

  friend bool operator==(const NumaPolicy&, const NumaPolicy&) = default;
};

/// How much of a range is in memory, in bytes.
struct Residency {
  std::uint64_t resident = 0;  ///< in RAM, in pages of any size
  /// Mapped by huge pages, transparent or hugetlb; nothing where the kernel does not tell, or /proc
  /// is not mounted.
  std::optional<std::uint64_t> huge = {};
};

/// What to map, and where; an aggregate for designated initialisers.
struct MappingOptions {
  std::uint64_t size = 0;    ///< bytes; a multiple of the backing's page size
  std::uint64_t offset = 0;  ///< bytes from the backing's own offset; a multiple of its page size
  /// What this process may do with the memory. What the guest may do is up to the region.
  Protection protection = Protection::read_write;
  /// The host address is congruent to `congruent_to` modulo `align`, a power of two; 0 means the
  /// page size. KVM maps a huge page only where guest and host address are congruent modulo its
  /// size.
  std::uint64_t align = 0;
  std::uint64_t congruent_to = 0;  ///< usually the guest address; a multiple of the page size
  /// An inaccessible page on either side: running over an end faults.
  bool guard_pages = false;
  /// Counts the memory against the kernel's commit limit, so that mapping fails where that is
  /// exceeded (vm.overcommit_memory, proc_sys_vm(5)). By default it does not, and a guest may be
  /// larger than RAM and swap (MAP_NORESERVE, mmap(2)): guests rarely touch all of their memory,
  /// and if pages do run out, the OOM killer decides. With vm.overcommit_memory=2 the kernel counts
  /// in any case, a memfd page by page as it is touched, which may be SIGBUS unless the memory is
  /// populated first. Pages of a hugetlb pool are always reserved.
  bool reserve = false;
  /// Maps at a fixed place, `arena_offset` bytes into this arena. `align` and `congruent_to` are
  /// then conditions that the place must meet. Guard pages take a page of the arena on either side.
  std::optional<HostArena> arena = {};
  std::uint64_t arena_offset = 0;  ///< bytes from the start of the arena; without one, 0
  /// What /proc/self/maps shows for anonymous memory, as in `[anon:ram0]`, where the kernel can
  /// (Linux 5.17); cut after 79 bytes, and otherwise as Backing::open says. Also the tag of its part
  /// in the arena's parts(), by default the name of the backing's source.
  std::string_view name = {};
};

/// A mapping of host memory, unmapped by its destructor.
///
/// Invariant: while it is_mapped(), size() bytes from data() are mapped from the backing, and
/// nothing else lies in between; otherwise data() is null and size() is 0. Offsets are in bytes
/// from data(). Every call that takes (offset, size) has the errors of check_part() too.
///
/// Threads: const calls may run at the same time; any other call, moving and destroying included,
/// excludes all others on this object.
class VMSPACE_EXPORT MemoryMapping {
 public:
  /// Maps `options.size` bytes of `backing`.
  ///
  /// Errors: `zero_size`; `limit_exceeded` for a size or an alignment above 2^62; `misaligned`
  /// unless size, offset and congruent_to are multiples of the backing's page size and the place in
  /// the arena meets the alignment; `unsupported` for a backing of source `external`, and for a
  /// device that maps nothing, or not this part; `out_of_bounds` past the end of the backing or of
  /// the arena; `overlap` with a part of the arena that is taken, naming its holder;
  /// `bad_alignment` unless align is 0 or a power of two; `invalid_argument` for unknown protection
  /// bits, and for an arena_offset without an arena; `access_denied` for writing to a backing that
  /// is not writable, and where mmap(2) says so; `unsupported` for a hugetlb page size that the
  /// kernel lacks; `os`: ENOMEM where the address space is full, or a hugetlb pool has too few free
  /// pages, which are reserved here. A few system calls.
  [[nodiscard]] static Result<MemoryMapping> map(const Backing& backing,
                                                 const MappingOptions& options);

  /// Makes a mapping of memory that something else has mapped, and keeps its owner instead of
  /// unmapping it. After an error the owner is only the caller's. What is about pages is
  /// `unsupported` then (discard, bind_to_nodes, populate, lock, residency), or `not_applicable`.
  /// Errors: `invalid_argument` for a null address and unknown protection bits; `zero_size`;
  /// `limit_exceeded` for a size above 2^62; `misaligned` unless address and size are multiples of
  /// the machine's page size; `overflow` when they pass the end of all addresses; `not_found` unless
  /// all of it is mapped; `os`. One system call.
  [[nodiscard]] static Result<MemoryMapping> adopt(const ExternalMemory& memory);

  /// A part as a mapping of its own, which unmaps nothing: `owner` keeps this one mapped for as long
  /// as the part exists. Private pages are in both, and so are pins, node and advice so far. Giving a
  /// part back to the host is discard()'s to do. See MemoryRegion::part. Errors: those of
  /// check_part(). No system call.
  [[nodiscard]] Result<MemoryMapping> part(std::uint64_t offset, std::uint64_t size,
                                           std::shared_ptr<const void> owner) const;

  /// Moves leave `other` closed. A mapping that is assigned to is unmapped first.
  MemoryMapping(MemoryMapping&& other) noexcept;
  /// As moving; what was mapped here is unmapped first.
  MemoryMapping& operator=(MemoryMapping&& other) noexcept;
  /// Unmaps without reporting errors. What was written stays in the page cache; close() also writes
  /// it back.
  ~MemoryMapping();

  /// Where the memory begins in this process; null when it is not mapped.
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  /// How many bytes are mapped; 0 when it is not mapped.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// False after close(), and of a moved-from object.
  [[nodiscard]] bool is_mapped() const noexcept { return data_ != nullptr; }
  /// What this process may do with the memory.
  [[nodiscard]] Protection protection() const noexcept { return protection_; }
  /// What it is mapped from.
  [[nodiscard]] const Backing& backing() const noexcept { return backing_; }
  /// Where in the backing's file data() is, in bytes: what a vhost-user peer is told.
  [[nodiscard]] std::uint64_t file_offset() const noexcept { return file_offset_; }
  /// The page size of the backing in bytes.
  [[nodiscard]] std::uint64_t page_size() const noexcept { return backing_.page_size(); }
  /// Whether it was mapped at a place in an arena.
  [[nodiscard]] bool is_in_arena() const noexcept { return arena_.has_value(); }

  /// Checks that (offset, size) is a part of the mapping. Errors: `bad_state` after close();
  /// `zero_size`; `out_of_bounds`; `misaligned` unless both are multiples of page_size(). O(1).
  [[nodiscard]] Result<void> check_part(std::uint64_t offset, std::uint64_t size) const;

  /// Writes a shared regular file back to its device (msync(2)), and unmaps. Errors: `bad_state`
  /// when it is not mapped; `os` when writing back failed, and the memory is unmapped all the same;
  /// `os` when unmapping failed, and then the object is as it was.
  [[nodiscard]] Result<void> close();

  /// Binds pages yet to be allocated to host nodes (mbind(2)): call it before anything touches the
  /// memory. Errors: `bad_state` after close(); `invalid_argument` for an unknown mode, or when
  /// mode and number of nodes do not match; `not_found` for a node that does not exist, has no
  /// memory, or is not allowed to this process; `access_denied` in a container that refuses the calls;
  /// `unsupported` where the kernel has no NUMA; `os`. Two system calls.
  [[nodiscard]] Result<void> bind_to_nodes(NumaPolicy policy);
  /// The policy of the last bind_to_nodes() that succeeded.
  [[nodiscard]] const NumaPolicy& numa_policy() const noexcept { return numa_policy_; }

  /// Advises transparent huge pages for all of it (MADV_HUGEPAGE). `not_applicable` when no huge
  /// page fits inside, for hugetlb memory and files, where the kernel has no huge pages, and when
  /// the machine's settings forbid them for this kind of memory; without /sys the settings are not
  /// known. Errors: `bad_state` after close(); `os`. A few system calls.
  [[nodiscard]] Result<Applied> use_hugepages();
  /// Puts the pages of a part into transparent huge pages now (MADV_COLLAPSE, madvise(2)), whatever
  /// the machine's settings say of them: the way to huge pages for a memfd where `shmem_enabled` is
  /// `never`. Pages that are absent are allocated, and what lies outside of whole huge pages stays as
  /// it is. Contents stay too, and others may use the memory meanwhile; collapsing takes as long as
  /// copying it. `not_applicable` for hugetlb memory, where no huge page fits inside, and where address
  /// and offset in the file differ modulo the size of a huge page, so that none could be mapped.
  ///
  /// Errors: `unsupported` before Linux 6.1, for kinds of memory that the kernel does not collapse, and
  /// after Advice::no_huge_pages; `os`: ENOMEM where no huge page is free, EBUSY or EAGAIN where pages
  /// are in use for the moment: what could be collapsed is, and the call may be made again. O(bytes).
  [[nodiscard]] Result<Applied> collapse(std::uint64_t offset, std::uint64_t size) const;
  /// Keeps all of it from forked children (MADV_DONTFORK). A child that destroys its copy of this object
  /// unmaps nothing: what it has at these addresses is something else. Errors: `bad_state` after close();
  /// `os`. One system call.
  [[nodiscard]] Result<void> use_dontfork();
  /// Keeps all of it out of core dumps (MADV_DONTDUMP). Errors: `bad_state` after close(); `os`.
  /// One system call.
  [[nodiscard]] Result<void> use_dontdump();
  /// Lets the kernel merge equal pages (MADV_MERGEABLE, KSM). `not_applicable` for shared and
  /// hugetlb memory, and where the kernel has no KSM. Errors: `bad_state` after close(); `os`. One
  /// system call.
  [[nodiscard]] Result<Applied> use_mergeable();

  /// Gives advice on a part. Errors: `invalid_argument` for unknown advice; `unsupported` where the
  /// kernel does not accept it for this memory; `os`. One system call.
  [[nodiscard]] Result<void> advise(std::uint64_t offset, std::uint64_t size, Advice advice) const;
  /// Changes what this process may do with all of it (mprotect(2)). Errors: `bad_state` after
  /// close(); `invalid_argument` for unknown bits; `access_denied` for writing to a shared file
  /// that is open for reading only; `os`. One system call.
  [[nodiscard]] Result<void> protect(Protection protection);
  /// Makes a part inaccessible to this process (PROT_NONE), so that using it by mistake faults, or
  /// accessible again as protection() says. Each part that differs from its neighbours is a mapping of
  /// its own to the kernel (vm.max_map_count). Errors: `os`. One system call.
  [[nodiscard]] Result<void> set_accessible(std::uint64_t offset, std::uint64_t size,
                                            bool accessible) const;
  /// Keeps a part in RAM (mlock(2)), which also populates it. After an error it is unlocked.
  /// Errors: `os`: ENOMEM, EPERM or EAGAIN above RLIMIT_MEMLOCK. O(bytes).
  [[nodiscard]] Result<void> lock(std::uint64_t offset, std::uint64_t size) const;
  /// Undoes lock(). Errors: `os`. One system call.
  [[nodiscard]] Result<void> unlock(std::uint64_t offset, std::uint64_t size) const;
  /// Gives the memory of a part back to the host; later reads give zeros. By backing:
  /// - private anonymous memory: dropped (MADV_DONTNEED); shared: removed (MADV_REMOVE);
  /// - memfd, hugetlbfs: a hole in the file, seen by every process that maps it; a private mapping
  ///   drops its own copies too;
  /// - a shared regular file: a hole, if the backing was declared discardable;
  /// - a private regular file: fresh anonymous memory in its place, since dropping the pages would
  ///   bring back the file's contents. It is bound, advised and counted like all of the mapping;
  ///   what advise() and set_accessible() said of a part is lost. Each such part is then a mapping of
  ///   its own to the kernel (vm.max_map_count).
  ///
  /// Dirty bitmaps do not notice: under dirty tracking call GuestMemory::mark_dirty() afterwards,
  /// so that a copy of the memory loses the old contents too.
  ///
  /// Memory that is locked is given back too, and stays locked: what is touched later is in RAM from
  /// then on (MADV_DONTNEED_LOCKED). Discarded hugetlb pages go back to the pool, and only populating
  /// again makes sure that the pool still has them.
  ///
  /// Errors: `bad_state` for a file that is not discardable, for pinned memory (see pin()), and for
  /// locked pages of private files and shared anonymous memory; `access_denied` when the mapping may
  /// not be written; `unsupported` where kernel or file system can't, as with locked private pages
  /// before Linux 5.18; `os`. After an error the contents are unchanged. O(pages given back).
  [[nodiscard]] Result<void> discard(std::uint64_t offset, std::uint64_t size) const;
  /// Keeps a part from being discarded: devices access it by DMA. Pins are those of the backing's
  /// file, so that discarding through another mapping of the same Backing is refused as well, and
  /// those of this mapping where there is no file. `holder` names the memory in the error of who
  /// tries; the part need not begin or end with a page. Waits for a discard that runs. Errors:
  /// `bad_state` after close(), and during a LiveSnapshot; `zero_size`; `out_of_bounds`. Allocates. O(log n) in the pins of the
  /// backing, and the pins that lie within this one.
  [[nodiscard]] Result<MemoryPin> pin(std::uint64_t offset, std::uint64_t size,
                                      std::string_view holder) const;
  /// How much of a part is in RAM, whoever brought it there: of files and memfds every page in the
  /// page cache counts, mapped here or not. In anonymous memory the kernel's shared page of zeros
  /// does not count (before Linux 6.7, and without /proc, it does). Errors: `os`. O(pages).
  [[nodiscard]] Result<Residency> residency(std::uint64_t offset, std::uint64_t size) const;
  /// Residency of all of it.
  [[nodiscard]] Result<Residency> residency() const { return residency(0, size_); }
  /// Starts reading a part from its file in the background (MADV_WILLNEED). Errors: `os`. One
  /// system call.
  [[nodiscard]] Result<void> prefetch(std::uint64_t offset, std::uint64_t size) const;
  /// Writes all that was changed back to the file and waits for it (msync(2)); does nothing unless
  /// it is a shared file. Errors: `bad_state` after close(); `os`: EIO when the device failed.
  [[nodiscard]] Result<void> msync() const;
  /// Writes the changed pages of a part back to the file and waits for it (msync(2)); does nothing
  /// unless it is a shared file. Errors: `os`: EIO when the device failed.
  [[nodiscard]] Result<void> msync(std::uint64_t offset, std::uint64_t size) const;

 private:
  friend class detail::FaultClaim;

  explicit MemoryMapping(const Backing& backing);

  /// `unsupported` unless the library may place the pages, and give them back.
  [[nodiscard]] Result<void> require_own_pages(const char* operation) const;
  [[nodiscard]] Result<void> give_advice(const char* operation, int advice);
  [[nodiscard]] Result<void> discard_pages(std::uint64_t offset, std::uint64_t size) const;
  [[nodiscard]] Result<void> replace_by_zeros(std::uint64_t offset, std::uint64_t size) const;
  [[nodiscard]] Result<std::byte*> reserve(const MappingOptions& options, std::uint64_t align);
  [[nodiscard]] Result<void> map_over(std::byte* place, const MappingOptions& options);
  [[nodiscard]] bool unmap() noexcept;
  void unmap_or_abandon() noexcept;
  [[nodiscard]] bool is_kept_from_this_process() const noexcept;

  Backing backing_;
  // By offsets in the file, or where there is none, in this mapping and its parts. Null only after a
  // move.
  std::shared_ptr<detail::PinnedRanges> pins_;
  std::byte* data_ = nullptr;
  std::uint64_t size_ = 0;
  std::uint64_t file_offset_ = 0;
  // What is given back: the mapping, and around it the guard pages and what the alignment cost. Null
  // where something else maps the memory, which owner_ then keeps.
  std::byte* reserved_ = nullptr;
  std::uint64_t reserved_size_ = 0;
  std::shared_ptr<const void> owner_;
  // Both or neither, but that a part() has no lease. The lease ends when the memory is inaccessible
  // again.
  std::optional<HostArena> arena_;
  std::optional<Lease> part_;
  Protection protection_ = Protection::none;
  bool reserve_ = false;
  NumaPolicy numa_policy_;
  pid_t dontfork_process_ = 0;  // the one whose children do not get the memory; 0 when they do
  // The advice given to all of it (MADV_*), for memory that takes the place of a part.
  std::vector<int> advice_;
};

}  // namespace vmspace
