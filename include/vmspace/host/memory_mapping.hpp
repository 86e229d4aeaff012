// SPDX-License-Identifier: Apache-2.0
//
// Host memory of this process: a Backing, mapped.
//
// What is done to memory has an order, and the order is the caller's who uses a MemoryMapping by
// itself (MemoryRegion keeps it for those who do not): map, then bind to NUMA nodes, then advise
// huge pages, and only then populate. A page that exists already heeds neither node nor advice.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/arena.hpp"
#include "vmspace/host/backing.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

/// Whether the kernel took an advice, where doing nothing is no error.
enum class Applied : std::uint8_t {
  applied,
  not_applicable,  ///< this memory, or this machine's settings, make it mean nothing
};

/// Hints of madvise(2) that change no contents.
enum class Advice : std::uint8_t {
  normal,         ///< undoes random and sequential
  random,         ///< read-ahead is of no use
  sequential,     ///< read ahead far, and drop what was read
  cold,           ///< reclaim these pages before others
  page_out,       ///< reclaim these pages now
  no_huge_pages,  ///< no transparent huge pages here
};

/// How memory is bound to host NUMA nodes (mbind(2)).
enum class NumaMode : std::uint8_t {
  by_default,  ///< as the process does; takes no nodes
  preferred,   ///< this one node, while it has free memory
  bind,        ///< these nodes and no others
};

/// A mode and the host nodes it takes.
struct NumaPolicy {
  NumaMode mode = NumaMode::by_default;
  std::vector<std::uint32_t> nodes = {};

  friend bool operator==(const NumaPolicy&, const NumaPolicy&) = default;
};

/// How much of a range is in memory, in bytes.
struct Residency {
  std::uint64_t resident = 0;  ///< in RAM, in pages of any size
  /// Mapped by huge pages, transparent or hugetlb; nothing where this kernel does not tell, or
  /// /proc is not mounted.
  std::optional<std::uint64_t> huge = {};
};

/// What to map, and where; an aggregate for designated initialisers.
struct MappingOptions {
  std::uint64_t size = 0;    ///< bytes; a multiple of the backing's page size
  std::uint64_t offset = 0;  ///< bytes from the backing's own offset; a multiple of its page size
  /// What this process may do with the memory; the guest's protection is the region's.
  Protection protection = Protection::read_write;
  /// The host address is `congruent_to` modulo `align`, a power of two; 0 means the page size.
  /// KVM maps a huge page only where guest and host address agree modulo its size.
  std::uint64_t align = 0;
  std::uint64_t congruent_to = 0;  ///< usually the guest address; a multiple of the page size
  /// An inaccessible page before and after, so that running over an end faults.
  bool guard_pages = false;
  /// Counts the memory against what the kernel may promise to all processes, so that mapping fails
  /// where it can't (vm.overcommit_memory, proc_sys_vm(5)). Off, the default, a guest may be larger
  /// than RAM and swap (MAP_NORESERVE, mmap(2)): guests rarely touch all that they have, and where
  /// pages run out the OOM killer decides. With vm.overcommit_memory=2 the kernel counts in any
  /// case; of a memfd it counts each page when that is touched, which may be SIGBUS unless the
  /// memory is populated before. Pages of a hugetlb pool are always reserved.
  bool reserve = false;
  /// Maps at a fixed place: `arena_offset` bytes into this arena. `align` and `congruent_to` are
  /// then conditions that the place must meet. Guard pages take a page of the arena on either side.
  std::optional<HostArena> arena = {};
  std::uint64_t arena_offset = 0;
};

class MemoryMapping;
struct PopulateOptions;
struct PopulateRange;

namespace detail {

/// populate(), which also tells whose range an error is about; null where it is about none.
[[nodiscard]] Result<void> populate_ranges(std::span<const PopulateRange> ranges,
                                           PopulateOptions options, const MemoryMapping*& failed);

}  // namespace detail

/// A mapping of host memory, unmapped by its destructor.
///
/// Invariant: while it is_mapped(), size() bytes from data() are mapped from the backing, with
/// nothing of anybody else between; otherwise data() is null and size() 0. Offsets are in bytes
/// from data(). Every call that takes (offset, size) first checks them: `bad_state` after close(),
/// `zero_size`, `out_of_bounds`, and `misaligned` unless both are multiples of page_size().
///
/// Moves, never copies. Const calls may be made from several threads at once; the others, like
/// every end of a mapping's life, only while nobody else uses the object.
class VMSPACE_EXPORT MemoryMapping {
 public:
  /// Maps `options.size` bytes of `backing`. Errors: `zero_size`; `limit_exceeded` for what no
  /// address space holds; `misaligned` when size, offset or congruent_to is no multiple of the
  /// backing's page size, or the place in the arena is not as aligned as wanted; `out_of_bounds`
  /// past the backing's end or the arena's; `overlap` in the arena; `bad_alignment`;
  /// `invalid_argument` for unknown protection bits; `access_denied` for writing to a backing that
  /// is not writable, and as mmap(2) says; `unsupported` for a hugetlb page size that the kernel
  /// lacks; `os`: ENOMEM for no room, and for a hugetlb pool with too few free pages, since those
  /// are reserved here. A few system calls.
  [[nodiscard]] static Result<MemoryMapping> map(const Backing& backing,
                                                 const MappingOptions& options);

  MemoryMapping(MemoryMapping&& other) noexcept;
  MemoryMapping& operator=(MemoryMapping&& other) noexcept;
  /// Unmaps, whatever close() might have to say: the page cache keeps what was written.
  ~MemoryMapping();

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  [[nodiscard]] bool is_mapped() const noexcept { return data_ != nullptr; }
  /// What this process may do with the memory.
  [[nodiscard]] Protection protection() const noexcept { return protection_; }
  [[nodiscard]] const Backing& backing() const noexcept { return backing_; }
  /// Where in the descriptor data() is, in bytes: what vhost-user is told.
  [[nodiscard]] std::uint64_t file_offset() const noexcept { return file_offset_; }
  [[nodiscard]] std::uint64_t page_size() const noexcept { return backing_.page_size(); }

  /// Writes a shared, writable regular file back to its device (msync(2)), and unmaps. The first
  /// error is returned: of a failed write-back, although the memory is unmapped then; or of the
  /// unmapping, and then the object is as it was. Closing twice is `bad_state`.
  [[nodiscard]] Result<void> close();

  /// Binds the pages that will come to host nodes (mbind(2)); call it before anything touches the
  /// memory. Errors: `invalid_argument` when mode and number of nodes do not fit; `not_found` for a
  /// node that does not exist, has no memory, or is not allowed to this process; `unsupported`;
  /// `os`. One system call.
  [[nodiscard]] Result<void> bind_to_nodes(NumaPolicy policy);
  [[nodiscard]] const NumaPolicy& numa_policy() const noexcept { return numa_policy_; }

  /// Advises transparent huge pages for all of it (MADV_HUGEPAGE). `not_applicable` when no huge
  /// page fits inside, on hugetlb memory, where the kernel has none, and when the machine's settings
  /// forbid them for this kind of memory; without /sys the settings are not known. Errors: `os`. A
  /// few system calls.
  [[nodiscard]] Result<Applied> use_hugepages();
  /// Keeps all of it out of children that fork (MADV_DONTFORK). Errors: `os`.
  [[nodiscard]] Result<void> use_dontfork();
  /// Keeps all of it out of core dumps (MADV_DONTDUMP). Errors: `os`.
  [[nodiscard]] Result<void> use_dontdump();
  /// Lets the kernel merge equal pages (MADV_MERGEABLE, KSM). `not_applicable` on shared and
  /// hugetlb memory, and where the kernel has no KSM. Errors: `os`.
  [[nodiscard]] Result<Applied> use_mergeable();

  /// Gives a hint for a part. Errors: `unsupported` where the kernel does not know it; `os`.
  [[nodiscard]] Result<void> advise(std::uint64_t offset, std::uint64_t size, Advice advice) const;
  /// Changes what this process may do with all of it (mprotect(2)). Errors: `invalid_argument` for
  /// unknown bits; `access_denied` for writing to a shared mapping of a descriptor that is open for
  /// reading; `os`.
  [[nodiscard]] Result<void> protect(Protection protection);
  /// Keeps a part in RAM (mlock(2)), which also populates it. An error leaves it unlocked: `os`
  /// with ENOMEM, EPERM or EAGAIN above RLIMIT_MEMLOCK.
  [[nodiscard]] Result<void> lock(std::uint64_t offset, std::uint64_t size) const;
  /// Undoes lock(). Errors: `os`.
  [[nodiscard]] Result<void> unlock(std::uint64_t offset, std::uint64_t size) const;
  /// Gives the memory of a part back to the host; later reads give zeros. By backing:
  /// - private anonymous memory: dropped (MADV_DONTNEED); shared: removed (MADV_REMOVE);
  /// - memfd, hugetlbfs: a hole in the file, which every process that maps it sees; a private
  ///   mapping drops its own copies too;
  /// - a shared regular file: a hole, if the backing was declared discardable;
  /// - a private regular file: fresh anonymous memory in its place, since dropping the pages would
  ///   show the file again. It is bound, advised and counted as all of the mapping was; what
  ///   advise() told of a part is lost. Each separate part then is a mapping to the kernel
  ///   (vm.max_map_count).
  ///
  /// No bitmap sees it: under dirty tracking call GuestMemory::mark_dirty() afterwards, so that a
  /// copy of the memory loses the old contents too.
  ///
  /// Discarded hugetlb pages go back to the pool, and only populating again makes it certain that
  /// the pool still has them. Errors: `bad_state` for a file that is not discardable, and for
  /// locked pages; `access_denied` without write protection; `unsupported` where kernel or file
  /// system can't; `os`. Contents are unchanged after an error. O(pages given back).
  [[nodiscard]] Result<void> discard(std::uint64_t offset, std::uint64_t size) const;
  /// Tells how much of a part is in RAM, whoever brought it there: of files and memfd the pages in
  /// the page cache count, mapped here or not. Pages that are only the kernel's shared page of
  /// zeros do not count for anonymous memory (before Linux 6.7, and without /proc, they do).
  /// Errors: `os`. O(pages).
  [[nodiscard]] Result<Residency> residency(std::uint64_t offset, std::uint64_t size) const;
  [[nodiscard]] Result<Residency> residency() const { return residency(0, size_); }
  /// Starts to read a part from its file in the background (MADV_WILLNEED). Errors: `os`.
  [[nodiscard]] Result<void> prefetch(std::uint64_t offset, std::uint64_t size) const;
  /// Writes what was changed back to the file, and waits for it (msync(2)). Does nothing for what
  /// is no shared file. Errors: `os`, EIO when the device failed.
  [[nodiscard]] Result<void> msync() const;
  [[nodiscard]] Result<void> msync(std::uint64_t offset, std::uint64_t size) const;

 private:
  friend Result<void> detail::populate_ranges(std::span<const PopulateRange>, PopulateOptions,
                                              const MemoryMapping*&);

  explicit MemoryMapping(const Backing& backing) noexcept : backing_(backing) {}

  [[nodiscard]] Result<void> check_part(const char* operation, std::uint64_t offset,
                                        std::uint64_t size) const;
  [[nodiscard]] Result<void> give_advice(const char* operation, int advice);
  [[nodiscard]] Result<void> replace_by_zeros(std::uint64_t offset, std::uint64_t size) const;
  [[nodiscard]] Result<std::byte*> reserve(const MappingOptions& options, std::uint64_t align);
  [[nodiscard]] Result<void> map_over(std::byte* place, const MappingOptions& options);
  [[nodiscard]] bool unmap() noexcept;

  Backing backing_;
  std::byte* data_ = nullptr;
  std::uint64_t size_ = 0;
  std::uint64_t file_offset_ = 0;
  // What is given back: the mapping, and around it the guard pages and what alignment cost.
  std::byte* reserved_ = nullptr;
  std::uint64_t reserved_size_ = 0;
  std::optional<HostArena> arena_;
  Protection protection_ = Protection::none;
  bool reserve_ = false;
  NumaPolicy numa_policy_;
  // What the whole mapping was advised (MADV_*), for memory that takes a part's place.
  std::vector<int> advice_;
};

}  // namespace vmspace
