// SPDX-License-Identifier: Apache-2.0
//
// What host memory is made from: a BackingSpec, opened.
//
// A spec is a wish; a Backing is the descriptor that fulfils it, or the decision that none is
// needed (anonymous memory). What can be wrong with the wish is found here, before anything is
// mapped: a file that is too short would otherwise be a SIGBUS in the running guest, and a page
// size that the kernel has no pool for would be small pages without a word.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/spec/backing_spec.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

/// What the kernel makes the memory of; the limits of huge pages and discarding follow from it.
enum class PageKind : std::uint8_t {
  anonymous,  ///< private anonymous pages
  shmem,      ///< pages of a memfd, of tmpfs, or shared anonymous ones
  hugetlb,    ///< pages of a hugetlb pool
  file,       ///< the page cache of a regular file
};

/// An opened backing: a handle whose copies share one descriptor, closed with the last of them.
///
/// Invariant: `size()` bytes from `offset()` exist in the file behind the descriptor, if there is
/// one, when it is opened. A memfd made here is sealed and can't shrink later; what can is told by
/// can_lose_pages(). Immutable: safe to use from any thread.
class VMSPACE_EXPORT Backing {
 public:
  // No moves: moving copies the handle, and leaves both usable.
  Backing(const Backing&) noexcept = default;
  Backing& operator=(const Backing&) noexcept = default;
  ~Backing() = default;

  /// Opens what `spec` describes: `size` bytes that the guest may access with `protection`.
  ///
  /// `protection` decides one thing, whether a shared file is opened for writing: only if the guest
  /// may write to it. Everything else can be written by its mappings, whatever the guest may do;
  /// see is_writable().
  ///
  /// - anon, hugeanon: nothing to open.
  /// - shmem, hugeshmem: a memfd (memfd_create(2)), close-on-exec, not executable where the kernel
  ///   can say so, sealed against shrinking, growing and further seals.
  /// - hugetlbfs: a file made exclusively in the mounted directory `path`, and unlinked.
  /// - file: `path`, for writing only if it is shared and the guest may write; or a duplicate of
  ///   `descriptor`. It must be a regular file; a memfd of somebody else is one.
  ///
  /// Errors: `zero_size`; `limit_exceeded` when offset + size passes 2^63-1, the largest file;
  /// `invalid_argument` for source `none`, for what is no regular file or no hugetlbfs, and for a
  /// page size that the backing does not have; `bad_alignment` for a page size that is no power of
  /// two; `misaligned` when size or offset is no multiple of the page size; `out_of_bounds` for a
  /// file that ends before offset + size; `access_denied` for a descriptor that is not open for
  /// reading, or that the guest shall write through and that is not open for writing or is sealed
  /// against it; `unsupported` where the kernel has no pool of this page size; `os`.
  /// A few system calls.
  [[nodiscard]] static Result<Backing> open(const BackingSpec& spec, std::uint64_t size,
                                            Protection protection = Protection::read_write);

  /// The descriptor, for handing to other processes; -1 for anonymous memory. It stays open for as
  /// long as any copy of this object.
  [[nodiscard]] int descriptor() const noexcept { return state_->descriptor; }
  /// Where in the file the memory begins, in bytes.
  [[nodiscard]] std::uint64_t offset() const noexcept { return state_->offset; }
  /// How many bytes from offset() on may be mapped.
  [[nodiscard]] std::uint64_t size() const noexcept { return state_->size; }
  /// The size in bytes of the pages: of the hugetlb pool, or the machine's base page.
  [[nodiscard]] std::uint64_t page_size() const noexcept { return state_->page_size; }
  [[nodiscard]] MemorySource source() const noexcept { return state_->source; }
  /// What the pages are, also behind a descriptor handed in.
  [[nodiscard]] PageKind page_kind() const noexcept { return state_->kind; }
  [[nodiscard]] bool is_hugetlb() const noexcept { return page_kind() == PageKind::hugetlb; }
  /// Whether mappings of it are MAP_SHARED.
  [[nodiscard]] bool is_shared() const noexcept { return state_->shared; }
  /// Whether a mapping may write. Not to a shared file that is open for reading only or is sealed
  /// against writing; writes to anything else stay in the mapping, or go to memory of our own or to
  /// a file that was opened for that.
  [[nodiscard]] bool is_writable() const noexcept { return state_->writable; }
  /// Whether somebody else may take pages out of it while it is mapped, which is SIGBUS for whoever
  /// touches them then: a file that is not sealed against shrinking can be truncated, and huge pages
  /// can be punched out unless the file is sealed against writing too (F_SEAL_SHRINK, F_SEAL_WRITE
  /// and F_SEAL_FUTURE_WRITE of fcntl(2)). A hole in other files reads as zeros. False for memory
  /// made here: that is lost only by a process that was given the descriptor.
  [[nodiscard]] bool can_lose_pages() const noexcept { return state_->can_lose_pages; }
  /// Whether discarding may punch holes: our own memory always, a file when it was declared so.
  [[nodiscard]] bool is_discardable() const noexcept { return state_->discardable; }
  [[nodiscard]] bool is_anonymous() const noexcept { return state_->descriptor < 0; }

  /// Equal when they are the same opened backing.
  friend bool operator==(const Backing&, const Backing&) = default;

 private:
  struct State {
    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State();

    int descriptor = -1;
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    std::uint64_t page_size = 0;
    MemorySource source = MemorySource::none;
    PageKind kind = PageKind::anonymous;
    bool shared = false;
    bool writable = true;
    bool can_lose_pages = false;
    bool discardable = false;
  };

  explicit Backing(std::shared_ptr<const State> state) noexcept : state_(std::move(state)) {}

  std::shared_ptr<const State> state_;
};

}  // namespace vmspace
