// SPDX-License-Identifier: Apache-2.0
//
// Who has to know which memory the guest has: a hypervisor, an IOMMU, a device in another process.
//
// A listener keeps a table of guest memory somewhere else. VmMemory tells it of every change, before
// readers in this process see it, and takes the change back where a listener refuses it. See
// vm_memory.hpp for the order of the steps.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace vmspace {

/// A stretch of mapped guest memory, as listeners see it: a region, or a part of one. It keeps the
/// region mapped. One that was moved from may only be assigned to or destroyed.
class MemorySection {
 public:
  /// All of a region, which is not null.
  explicit MemorySection(MemoryRegionPtr region) noexcept
      : region_(std::move(region)), offset_(0), size_(region_->size()) {}
  /// The `size` bytes of a region from `offset`, which lie inside of it.
  MemorySection(MemoryRegionPtr region, std::uint64_t offset, std::uint64_t size) noexcept
      : region_(std::move(region)), offset_(offset), size_(size) {}

  /// Where the guest sees it.
  [[nodiscard]] GuestAddress base() const noexcept {
    return GuestAddress(region_->base().value() + offset_);
  }
  /// Bytes; never 0.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// base() and size().
  [[nodiscard]] GuestRange guest_range() const noexcept { return {base(), size_}; }
  /// Where base() is mapped in this process, size() bytes in one piece.
  [[nodiscard]] std::byte* host_base() const noexcept { return region_->host_base() + offset_; }
  /// The descriptor of its memory, borrowed; -1 for anonymous memory.
  [[nodiscard]] int fd() const noexcept { return region_->backing().fd(); }
  /// Where base() is in that descriptor's file, in bytes.
  [[nodiscard]] std::uint64_t file_offset() const noexcept {
    return region_->mapping().file_offset() + offset_;
  }
  /// What the guest may do.
  [[nodiscard]] Protection protection() const noexcept { return region_->protection(); }
  /// What it is to the guest.
  [[nodiscard]] RegionType type() const noexcept { return region_->description().type(); }
  /// The region's name.
  [[nodiscard]] std::string_view name() const noexcept { return region_->description().name(); }
  /// The region that it is part of, or all of.
  [[nodiscard]] const MemoryRegionPtr& region() const noexcept { return region_; }
  /// Where it begins in the region, in bytes.
  [[nodiscard]] std::uint64_t region_offset() const noexcept { return offset_; }

  /// Whether both are the same bytes at the same guest address, whatever they are called.
  friend bool operator==(const MemorySection& a, const MemorySection& b) noexcept {
    return a.base() == b.base() && a.size_ == b.size_ && a.offset_ == b.offset_ &&
           a.region_->shares_memory_with(*b.region_);
  }

 private:
  MemoryRegionPtr region_;
  std::uint64_t offset_;
  std::uint64_t size_;
};

/// In which sections a listener is given a region that is present in parts (MemoryRegion::blocks).
/// Regions without blocks are one section.
enum class SectionUnit : std::uint8_t {
  /// Slots, of which each is there while any of its blocks is: for tables that have room for few
  /// sections. Whoever uses the table reaches the absent blocks of a slot as well.
  slot,
  /// Every present block: for tables that must not have what is absent, such as those that pin it.
  block,
};

/// What one change does to mapped memory. Removed sections that overlap an added one are removed
/// first, and so are those of blocks that are unplugged; all others last.
struct MemoryChange {
  std::span<const MemorySection> removed = {};  ///< in address order
  std::span<const MemorySection> added = {};    ///< in address order
  /// A removal meets an addition, so that there is a moment when neither is there: the gate is
  /// closed from before the first removal until after the publication.
  bool disruptive = false;
};

/// Whom VmMemory tells of changes. It keeps a table of sections somewhere else (in the kernel, in a
/// device, in another process): its own record of the table is what add() and remove() have
/// succeeded with.
///
/// For one change the calls are: prepare(); then remove() for each section and commit(), where
/// there are any to be removed first; then add() for each and commit(); then, once it is published,
/// remove() for each other and commit(). Where some listener refuses, what was done is undone by the
/// opposite calls, and a commit(), in reverse order. (What a listener has not committed yet is undone
/// without one.)
///
/// A call that returns an error, or throws, has changed nothing. Any call may throw; remove() and
/// log_stop() should need no memory, since they are what undoes and frees. A call into the VmMemory
/// that is making the change is an error there (`would_deadlock`).
///
/// Threads: VmMemory makes one call at a time, from the thread that makes the change.
class VMSPACE_EXPORT MemoryListener {
 public:
  virtual ~MemoryListener() = default;

  /// What it is called in errors and pictures, such as "kvm"; valid while the listener lives.
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;

  /// In which sections it wants regions that are present in parts; always the same.
  [[nodiscard]] virtual SectionUnit unit() const noexcept { return SectionUnit::slot; }

  /// Says whether it could make the change: limits, alignments, protections that it can't express.
  /// Changes nothing; an error refuses the change before anything is touched.
  [[nodiscard]] virtual Result<void> prepare(const MemoryChange& change) {
    static_cast<void>(change);
    return {};
  }
  /// Adds a section to the table. An error refuses the change.
  [[nodiscard]] virtual Result<void> add(const MemorySection& section) = 0;
  /// Takes a section that add() was given out of the table; when it has succeeded, nobody reaches
  /// the memory through the table any more. After an error the section is tried again with later
  /// changes, and stays mapped until it is gone.
  [[nodiscard]] virtual Result<void> remove(const MemorySection& section) = 0;
  /// All of the adding, or removing, has been said: a listener that hands over its table as a whole
  /// does it here. After an error none of the additions, or of the removals, counts as done.
  [[nodiscard]] virtual Result<void> commit() { return {}; }

  // The log of what is written through the table, where it can keep one. The calls are made for
  // sections that add() was given. What nobody can log, such as the DMA of a device behind an IOMMU, is
  // in no log: a listener for that leaves these three as they are.

  /// Has writes to the section logged from now on. Does nothing where it is logged already.
  [[nodiscard]] virtual Result<void> log_start(const MemorySection& section) {
    static_cast<void>(section);
    return {};
  }
  /// Marks what was written since the last call in the DirtyBitmap of the section's region, and has it
  /// logged anew; the data is read after this returns. After an error nothing is lost: what was not
  /// marked is by a later call.
  [[nodiscard]] virtual Result<void> log_sync(const MemorySection& section) {
    static_cast<void>(section);
    return {};
  }
  /// Marks what was written, as log_sync() does, and has nothing logged any more. Does nothing where
  /// it is not logged. (remove() marks what was written as well, where it ends a log.)
  [[nodiscard]] virtual Result<void> log_stop(const MemorySection& section) {
    static_cast<void>(section);
    return {};
  }

  /// Whether it has lost its table for good, as when a peer has gone: nobody uses the memory through
  /// it any more. Asked after each of its errors. VmMemory then lets go of it; whether the change
  /// goes on without it says ListenerOptions::required.
  [[nodiscard]] virtual bool is_gone() const noexcept { return false; }

 protected:
  MemoryListener() = default;
  MemoryListener(const MemoryListener&) = default;
  MemoryListener& operator=(const MemoryListener&) = default;
};

}  // namespace vmspace
