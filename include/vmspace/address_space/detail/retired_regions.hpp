// SPDX-License-Identifier: Apache-2.0
//
// The regions of an AddressSpace that its next change takes out.

#pragma once

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/region_ledger.hpp"

namespace vmspace::detail {

/// Threads: any call at any time.
class RetiredRegions {
 public:
  /// The regions that a change takes out, while no other change runs. Destroyed before done() was
  /// called, because the change failed, it puts them back for the next one.
  class Removal {
   public:
    explicit Removal(RetiredRegions& retired) noexcept : retired_(retired) {
      if (retired_.empty()) return;
      const std::lock_guard lock(retired_.mutex_);
      regions_.swap(retired_.regions_);
    }
    Removal(const Removal&) = delete;
    Removal& operator=(const Removal&) = delete;
    ~Removal() { retired_.add(std::move(regions_)); }

    /// What to take out; what somebody else has removed meanwhile is gone already, as it should be.
    [[nodiscard]] const RegionList& regions() const noexcept { return regions_; }

    /// All of them are out.
    void done() noexcept {
      if (regions_.empty()) return;
      regions_.clear();
      none_left();
    }
    /// This one is.
    void done(const AddressSpaceRegionPtr& region) noexcept {
      regions_.remove(region);
      if (regions_.empty()) none_left();
    }

   private:
    void none_left() noexcept {
      const std::lock_guard lock(retired_.mutex_);
      retired_.any_.store(!retired_.regions_.empty(), std::memory_order_release);
    }

    RetiredRegions& retired_;
    RegionList regions_;
  };

  void add(RegionList&& regions) noexcept {
    if (regions.empty()) return;
    const std::lock_guard lock(mutex_);
    regions_.splice(regions_.end(), regions);
    any_.store(true, std::memory_order_release);
  }

  /// Whether none are retired, nor about to be taken out by a change that may yet fail.
  [[nodiscard]] bool empty() const noexcept { return !any_.load(std::memory_order_acquire); }

  [[nodiscard]] std::vector<AddressSpaceRegionPtr> list() const {
    const std::lock_guard lock(mutex_);
    return {regions_.begin(), regions_.end()};
  }

 private:
  mutable std::mutex mutex_;
  RegionList regions_;             ///< under the mutex
  std::atomic<bool> any_ = false;  ///< so that a change without retired regions takes no lock
};

}  // namespace vmspace::detail
