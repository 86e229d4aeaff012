// SPDX-License-Identifier: Apache-2.0
//
// What host memory is made from: a BackingSpec, opened.
//
// A spec says what is wanted; a Backing is the descriptor that provides it, or the knowledge that
// none is needed (anonymous memory). Whatever is wrong with a spec is found here, before anything
// is mapped: a file that is too short would otherwise be a SIGBUS in the running guest, and a page
// size that the kernel has no pool for would silently become small pages.

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/spec/backing_spec.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

namespace detail {
class PinnedRanges;
}

/// What kind of pages the kernel uses, which decides what huge pages and discarding can do.
enum class PageKind : std::uint8_t {
  anonymous,  ///< private anonymous pages
  shmem,      ///< pages of a memfd, of tmpfs, or shared anonymous ones
  hugetlb,    ///< pages of a hugetlb pool
  file,       ///< the page cache of a regular file
  external,   ///< a device's, or those of memory that something else has mapped: nothing is known
};

/// An opened backing: a handle whose copies share one descriptor, closed with the last of them.
///
/// Invariant: if there is a descriptor, its file had `size()` bytes from `offset()` when it was
/// opened. A memfd created here is sealed and can't shrink later; can_lose_pages() tells of what
/// can. Immutable: safe to use from any thread.
class VMSPACE_EXPORT Backing {
 public:
  // No move operations: moving copies the handle, and both stay usable.
  Backing(const Backing&) noexcept = default;
  Backing& operator=(const Backing&) noexcept = default;
  ~Backing() = default;

  /// Opens what `spec` describes: `size` bytes that the guest may access with `protection`.
  ///
  /// `protection` decides one thing: a shared file is opened for writing only if the guest may
  /// write to it. Mappings of anything else can write, whatever the guest may do; see
  /// is_writable().
  ///
  /// - anon, hugeanon: nothing to open.
  /// - shmem, hugeshmem: a memfd (memfd_create(2)), close-on-exec, not executable where the kernel
  ///   supports that, sealed against shrinking, growing and further seals.
  /// - hugetlbfs: a new file in the mounted directory `path`, unlinked at once.
  /// - file: `path`, for writing only if it is shared and the guest may write; or a duplicate of
  ///   `fd`. It must be a regular file, which a memfd of another process is too.
  /// - device: in the same way, what is not a regular file or a directory. Nobody can be asked how
  ///   much of it there is: MemoryMapping::map finds what the device does not map.
  ///
  /// `name` is what /proc/self/maps shows for a memfd, as in `/memfd:ram0 (deleted)`; by default
  /// `vmspace`. It is cut after 249 bytes, and characters other than printable ASCII, or one of
  /// `\\`, `` ` ``, `$`, `[`, `]`, become underscores.
  ///
  /// Errors: `zero_size`; `limit_exceeded` when offset + size exceeds 2^63-1, the largest file
  /// size; `invalid_argument` for sources `none` and `external`, for a spec without what its source
  /// needs or with what only others use (BackingSpec), for a device that is to be private, for a file
  /// that is not a regular file, for a path that is not in a hugetlbfs, for a page size that the
  /// backing does not have, and for a source, sharing or protection that is unknown; `bad_alignment`
  /// for a page size that is not a power of two; `misaligned` unless size and offset are multiples of
  /// the page size; `out_of_bounds` for a file that ends before offset + size; `access_denied` for a
  /// descriptor that is not open for reading, or, where a shared file is to be written by the guest,
  /// not open for writing or sealed against it; `unsupported` where the kernel has no pool of this
  /// page size; `os`. The error's text has the path. A few system calls.
  [[nodiscard]] static Result<Backing> open(const BackingSpec& spec, std::uint64_t size,
                                            Protection protection = Protection::read_write,
                                            std::string_view name = {});

  /// The descriptor, to be passed to other processes; -1 for anonymous memory. It stays open as
  /// long as any copy of this object lives.
  [[nodiscard]] int fd() const noexcept { return state_->fd; }
  /// Where in the file the memory begins, in bytes.
  [[nodiscard]] std::uint64_t offset() const noexcept { return state_->offset; }
  /// How many bytes from offset() may be mapped.
  [[nodiscard]] std::uint64_t size() const noexcept { return state_->size; }
  /// The page size in bytes: that of the hugetlb pool, or the machine's base page size.
  [[nodiscard]] std::uint64_t page_size() const noexcept { return state_->page_size; }
  /// The source in the spec that was opened.
  [[nodiscard]] MemorySource source() const noexcept { return state_->source; }
  /// The kind of its pages, also of a file that was opened elsewhere.
  [[nodiscard]] PageKind page_kind() const noexcept { return state_->kind; }
  /// Whether its pages come from a hugetlb pool.
  [[nodiscard]] bool is_hugetlb() const noexcept { return page_kind() == PageKind::hugetlb; }
  /// Whether mappings of it are MAP_SHARED.
  [[nodiscard]] bool is_shared() const noexcept { return state_->shared; }
  /// Whether a mapping may write: always, except to a shared file that is open for reading only or
  /// is sealed against writing.
  [[nodiscard]] bool is_writable() const noexcept { return state_->writable; }
  /// Whether another process can remove pages while they are mapped, after which touching them
  /// raises SIGBUS: a file that is not sealed against shrinking can be truncated, and huge pages
  /// can be punched out of one that is not sealed against writing as well (F_SEAL_SHRINK,
  /// F_SEAL_WRITE and F_SEAL_FUTURE_WRITE of fcntl(2)). A hole in any other file reads as zeros.
  /// True for devices too, which may be reset; for external memory it is what its owner says. False
  /// for memory created here, whose pages only a process that was given the descriptor could
  /// remove.
  [[nodiscard]] bool can_lose_pages() const noexcept { return state_->can_lose_pages; }
  /// Whether discarding may punch holes: always in memory created here, in a file if its spec says
  /// so.
  [[nodiscard]] bool is_discardable() const noexcept { return state_->discardable; }
  /// Whether its pages are not the library's to place, to populate or to give back: sources `device`
  /// and `external`.
  [[nodiscard]] bool is_external() const noexcept { return page_kind() == PageKind::external; }
  /// Whether there is no descriptor.
  [[nodiscard]] bool is_anonymous() const noexcept { return state_->fd < 0; }

  /// Equal when they are the same opened backing.
  friend bool operator==(const Backing&, const Backing&) = default;

 private:
  friend class MemoryMapping;

  struct State {
    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State();

    int fd = -1;
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    std::uint64_t page_size = 0;
    MemorySource source = MemorySource::none;
    PageKind kind = PageKind::anonymous;
    bool shared = false;
    bool writable = true;
    bool can_lose_pages = false;
    bool discardable = false;
    std::shared_ptr<detail::PinnedRanges> pins = {};  ///< of the file; null without one
  };

  explicit Backing(std::shared_ptr<const State> state) noexcept : state_(std::move(state)) {}

  std::shared_ptr<const State> state_;
};

}  // namespace vmspace
