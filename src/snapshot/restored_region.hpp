// SPDX-License-Identifier: Apache-2.0
//
// One region of a restore: how its page faults are caught, and its pages filled, by kind of memory.
//
//   private: anonymous, hugetlb    registered MISSING             UFFDIO_COPY, UFFDIO_ZEROPAGE
//   shared: memfd, tmpfs, hugetlb  registered MISSING and MINOR   the alias, then UFFDIO_CONTINUE
//
// MINOR alone would let absent pages of a file read as zeros; and a page that was filled through the
// alias, a second mapping of the same part of the file, is not mapped here yet, which MISSING alone
// would not report.
//
// A DirtyScan may share the region while it is restored, which is registered for asynchronous
// write-protection then (WP), too. Pages are filled protected from that on: they don't count as written.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "vmspace/memory/memory_region.hpp"

#include "host/fault_owner.hpp"
#include "host/userfault.hpp"
#include "snapshot/page_ledger.hpp"

namespace vmspace::detail {

/// Threads: what fills pages, from any thread; begin() and end() exclude all other calls.
class RestoredRegion final : public FaultOwner {
 public:
  /// What the restore is told of, from a thread that discards.
  struct Events {
    std::function<void()> on_complete;  ///< nothing is left to do
    std::function<void()> on_returned;  ///< pages were given back for the background
  };

  /// `first_page` is its place in the ledger's numbering. What is referred to outlives it.
  RestoredRegion(MemoryRegionPtr region, std::uint64_t first_page,
                 std::shared_ptr<const Userfault> faults, PageLedger& ledger, const Events& events);
  RestoredRegion(const RestoredRegion&) = delete;
  RestoredRegion& operator=(const RestoredRegion&) = delete;
  ~RestoredRegion() { end(); }

  /// The features of Userfault that regions of this kind need; `unsupported` for kinds of memory
  /// that can't be restored.
  [[nodiscard]] static Result<std::uint64_t> features(const char* operation,
                                                      const MemoryRegion& region);

  /// What the userfaultfd was opened with, of what not every kernel has.
  struct Abilities {
    bool poison = false;
    bool watching = false;  ///< asynchronous write-protection
  };
  /// Claims the region's faults and registers them. Errors: those of LazyRestore::start().
  [[nodiscard]] Result<void> begin(const char* operation, Abilities can);
  /// Undoes as much of that as was done, and wakes everybody; but who shares the region inherits its
  /// registration. Allocates nothing.
  void end() noexcept { claim_ = FaultClaim(); }
  /// After end(), once nobody fills or wakes pages any more: lets go of the userfaultfd.
  void let_go() noexcept { faults_.reset(); }

  [[nodiscard]] const MemoryRegion& region() const noexcept { return *region_; }
  [[nodiscard]] PageRun pages() const noexcept { return pages_; }
  /// How many pages come together at least: one, or a hugetlb page.
  [[nodiscard]] std::uint64_t unit_pages() const noexcept { return unit_ / 4096; }
  /// The run made larger, to whole units.
  [[nodiscard]] PageRun whole_units(PageRun run) const noexcept;
  [[nodiscard]] std::uint64_t offset_of(std::uint64_t page) const noexcept {
    return (page - pages_.first) * 4096;
  }
  [[nodiscard]] GuestRange guest_range(PageRun run) const noexcept;

  struct Filled {
    std::uint64_t bytes;  ///< how many from the beginning are done
    int error;            ///< why not all of them, an errno; or 0
  };
  /// Puts these bytes there, whole units, and wakes who waits for them. What is there already stays.
  [[nodiscard]] Filled fill(std::uint64_t offset, const std::byte* from,
                            std::uint64_t size) const noexcept;
  /// Puts zeros there, for a page that somebody waits for. `scratch` has the size of a unit.
  [[nodiscard]] Filled fill_zeros(std::uint64_t offset, std::byte* scratch) const noexcept;
  /// Lets go on who waits for a page that has been settled: maps what the file has, else zeros.
  void resolve(std::uint64_t offset, std::byte* scratch) const noexcept;
  /// Makes accesses to what is absent of the part raise a signal.
  void poison(std::uint64_t offset, std::uint64_t size) const noexcept;
  void wake(std::uint64_t offset, std::uint64_t size) const noexcept;

  [[nodiscard]] const char* name() const noexcept override { return "LazyRestore"; }
  [[nodiscard]] Result<void> begin_discard(std::uint64_t first, std::uint64_t end) override;
  void end_discard(std::uint64_t first, std::uint64_t end, bool discarded) noexcept override;
  [[nodiscard]] Result<std::shared_ptr<const Userfault>> admit(
      const char* operation, const MemoryMapping& mapping) override;
  void dismiss() noexcept override { is_watched_ = false; }
  void end_claim(bool is_inherited) noexcept override;

 private:
  [[nodiscard]] std::byte* data() const noexcept { return region_->host_base(); }
  [[nodiscard]] Result<void> require_untouched(const char* operation) const;
  [[nodiscard]] Result<void> map_alias(const char* operation);
  [[nodiscard]] PageRun run_at(std::uint64_t first, std::uint64_t end) const noexcept;
  [[nodiscard]] Filled map_filled(std::uint64_t offset, std::uint64_t size) const noexcept;
  template <typename Call>
  [[nodiscard]] Filled repeat(std::uint64_t offset, std::uint64_t size, Call call) const noexcept;

  MemoryRegionPtr region_;
  std::shared_ptr<const Userfault> faults_;
  PageLedger& ledger_;
  const Events& events_;
  PageRun pages_;
  std::uint64_t unit_;
  FaultModes modes_ = FaultModes::missing;
  Abilities can_;
  std::atomic<bool> is_watched_{false};

  // What end() undoes.
  FaultClaim claim_;
  std::byte* alias_ = nullptr;  // shared memory only
  std::atomic<bool> is_registered_{false};
  bool keeps_from_children_ = false;
};

}  // namespace vmspace::detail
