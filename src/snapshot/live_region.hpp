// SPDX-License-Identifier: Apache-2.0
//
// A region of which a live snapshot is taken: its claim, its protection, and copies of its pages.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "host/fault_owner.hpp"
#include "host/userfault.hpp"
#include "snapshot/live_pages.hpp"

namespace vmspace::detail {

class LiveRegion;

/// Is told of pages that are about to be discarded.
class DiscardListener {
 public:
  /// Returns when all of [first, end) that waits or is being copied has been, or never will be.
  virtual void save_before_discard(LiveRegion& region, std::uint64_t first,
                                   std::uint64_t end) noexcept = 0;

 protected:
  DiscardListener() = default;
  DiscardListener(const DiscardListener&) = default;
  DiscardListener& operator=(const DiscardListener&) = default;
  ~DiscardListener() = default;
};

/// Stays where it is, since its claim refers to it.
///
/// Threads: claim(), add_to() and protect() on one; the rest may be called at the same time.
class LiveRegion final : public FaultOwner {
 public:
  /// Region number `index`; nothing is done yet.
  LiveRegion(MemoryRegionPtr region, std::size_t index, DiscardListener& listener);
  LiveRegion(const LiveRegion&) = delete;
  LiveRegion& operator=(const LiveRegion&) = delete;
  ~LiveRegion() = default;

  /// Becomes the owner of its faults. Errors: those of FaultClaim::make, naming the region.
  [[nodiscard]] Result<void> claim(const char* operation);
  /// Ends that. Waits for discards that run.
  void unclaim() noexcept { claim_ = {}; }
  /// Registers it for write-protection, where it can be written at all. Errors: those of
  /// Userfault::add, naming the region.
  [[nodiscard]] Result<void> add_to(const Userfault& faults, const char* operation) const;

  /// Protects whatever is present of a run and lets it wait; gives the bytes. What is zeros is added
  /// to `zeros`, if given. `populate`: absent pages can't be protected, so private pages that may be
  /// absent after all are read first. Errors: those of PageScan::next; `os`.
  [[nodiscard]] Result<std::uint64_t> protect(const Userfault& faults, const char* operation,
                                              RegionPages run, bool populate,
                                              std::vector<GuestRange>* zeros);
  /// Ends the protection of pages, and lets their writers go on. Gives an errno, or 0: after an error
  /// they fault again.
  [[nodiscard]] int unprotect(const Userfault& faults, RegionPages run) const noexcept;
  /// Ends it for all of the region.
  void remove_from(const Userfault& faults) const noexcept;

  /// Copies pages that the caller has taken. Errors: `fault`; `os`.
  [[nodiscard]] Result<void> copy(const char* operation, RegionPages run, std::byte* to) const;

  [[nodiscard]] std::size_t index() const noexcept { return index_; }
  [[nodiscard]] const MemoryRegion& region() const noexcept { return *region_; }
  [[nodiscard]] LivePages& pages() noexcept { return pages_; }
  /// Where this address is in the region; its size or more: it is not.
  [[nodiscard]] std::uint64_t offset_of(std::uint64_t host_address) const noexcept {
    return host_address - reinterpret_cast<std::uintptr_t>(region_->host_base());
  }

  [[nodiscard]] const char* name() const noexcept override { return "LiveSnapshot"; }
  [[nodiscard]] bool allows_pins() const noexcept override { return false; }
  [[nodiscard]] Result<void> begin_discard(std::uint64_t first, std::uint64_t end) override;
  void end_discard(std::uint64_t, std::uint64_t, bool) noexcept override {}

 private:
  /// Present pages that were found, not protected yet.
  struct Found {
    std::vector<RegionPages> runs;
    std::uint64_t bytes = 0;
  };
  [[nodiscard]] Result<Found> find_present(const char* operation, RegionPages run) const;
  [[nodiscard]] Result<void> protect_run(const Userfault& faults, const char* operation,
                                         RegionPages run) const;

  MemoryRegionPtr region_;
  std::size_t index_;
  DiscardListener& listener_;
  LivePages pages_;
  bool can_be_written_;
  /// hugetlb pages of a file can't be told from absent ones without reading them. So all of them wait,
  /// and are read by pread(2), which gives zeros for a hole and allocates no page.
  bool is_read_from_file_;
  FaultClaim claim_;
};

}  // namespace vmspace::detail
