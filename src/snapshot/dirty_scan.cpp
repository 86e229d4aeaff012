// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/dirty_scan.hpp"

#include <mutex>
#include <new>
#include <utility>

#include "vmspace/base/try.hpp"

#include "host/fault_owner.hpp"
#include "host/userfault.hpp"
#include "host/written_pages.hpp"
#include "memory/present_parts.hpp"
#include "os/forked_child.hpp"
#include "snapshot/file_aliases.hpp"
#include "snapshot/inherited_faults.hpp"

namespace vmspace {

using detail::FaultClaim;
using detail::FaultModes;
using detail::InheritedFaults;
using detail::Userfault;
using detail::WrittenPages;

namespace {

constexpr const char* starting = "DirtyScan::start";
constexpr const char* harvesting = "DirtyScan::harvest";

}  // namespace

class DirtyScan::State {
 public:
  explicit State(Userfault faults);
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State();

  const detail::Maker maker;

  [[nodiscard]] Result<void> open() { return inherited_.open(starting); }
  [[nodiscard]] Result<void> watch(const MemoryRegionPtr& region);
  [[nodiscard]] Result<void> start() { return inherited_.start(starting); }
  [[nodiscard]] Result<std::vector<GuestRange>> harvest();

 private:
  class Watched;

  std::shared_ptr<const Userfault> faults_;
  InheritedFaults inherited_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Watched>> regions_;
};

/// One region that is watched.
class DirtyScan::State::Watched final : public detail::FaultOwner {
 public:
  Watched(MemoryRegionPtr region, WrittenPages pages, std::shared_ptr<const Userfault> faults,
          InheritedFaults& inherited)
      : region_(std::move(region)),
        pages_(std::move(pages)),
        faults_(std::move(faults)),
        inherited_(inherited),
        restored_{.mapping = &mapping(), .faults = {}},
        is_mapped_anew_(!mapping().backing().is_shared() && !mapping().backing().is_anonymous()) {}
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
  ~Watched() = default;

  [[nodiscard]] Result<void> start() {
    discarded_.reserve(8);
    claim_ = VMSPACE_TRY(FaultClaim::share(starting, mapping(), *this, restored_.faults));
    if (restored_.faults != nullptr) {
      inherited_.add(restored_);
    } else {
      VMSPACE_TRY(faults().add(starting, data(), mapping().size(), FaultModes::write_protect));
      is_registered_ = true;
    }
    VMSPACE_TRY(find(starting));
    found_.clear();
    return {};
  }

  /// Adds what was written to what was found before, and not reported.
  [[nodiscard]] Result<void> find(const char* operation) {
    const std::lock_guard registered(registering_);
    VMSPACE_TRY(pages_.find(operation, {0, mapping().size()}, WrittenPages::Mode::protect, found_));
    // Afterwards, and what ends later is for the next harvest.
    const std::lock_guard lock(mutex_);
    found_.insert(found_.end(), discarded_.begin(), discarded_.end());
    discarded_.clear();
    detail::join_extents(found_);
    return {};
  }

  [[nodiscard]] const MemoryRegion& region() const noexcept { return *region_; }
  [[nodiscard]] std::span<const Extent> found() const noexcept { return found_; }
  void forget() noexcept { found_.clear(); }

 private:
  [[nodiscard]] const MemoryMapping& mapping() const noexcept { return region_->mapping(); }
  [[nodiscard]] std::byte* data() const noexcept { return mapping().data(); }
  [[nodiscard]] const Userfault& faults() const noexcept {
    return restored_.faults != nullptr ? *restored_.faults : *faults_;
  }

  [[nodiscard]] const char* name() const noexcept override { return "DirtyScan"; }
  [[nodiscard]] bool only_watches() const noexcept override { return true; }
  [[nodiscard]] Result<void> begin_discard(std::uint64_t, std::uint64_t) override {
    {
      // Room for the end, which must not allocate; harvests leave it.
      const std::lock_guard lock(mutex_);
      if (discarded_.size() == discarded_.capacity()) {
        // Who discards the same pages again makes it no longer, however rarely one harvests.
        detail::join_extents(discarded_);
        try {
          discarded_.reserve(2 * discarded_.size());
        } catch (const std::bad_alloc&) {  // see end_discard()
        }
      }
    }
    if (is_mapped_anew_) registering_.lock();  // until the end
    return {};
  }
  void end_discard(std::uint64_t first, std::uint64_t end, bool discarded) noexcept override {
    const Extent part{first - mapping().file_offset(), end - first};
    if (discarded) {
      const std::lock_guard lock(mutex_);
      // Where there was no memory for more: rather too much than a discard that fails.
      if (discarded_.size() == discarded_.capacity()) {
        discarded_.assign(1, {0, mapping().size()});
      } else {
        discarded_.push_back(part);
      }
    }
    if (!is_mapped_anew_) return;
    // Should it fail, so does every harvest. Where nothing was discarded this changes nothing.
    static_cast<void>(
        faults().add(harvesting, data() + part.offset, part.size, FaultModes::write_protect));
    registering_.unlock();
  }

  void inherit() noexcept override {
    is_registered_ = true;
    inherited_.answer(restored_);
  }
  void end_claim(bool) noexcept override {
    // Fails for memory that was mapped anew meanwhile, of which there is nothing to undo.
    if (is_registered_) static_cast<void>(faults().remove(starting, data(), mapping().size()));
  }

  MemoryRegionPtr region_;
  WrittenPages pages_;
  std::shared_ptr<const Userfault> faults_;  ///< the scan's own
  InheritedFaults& inherited_;
  InheritedFaults::Part restored_;  ///< without a userfaultfd where nobody restored it
  bool is_registered_ = false;      ///< and this is who ends that
  /// A discard maps fresh memory in place of a part of a private file. Harvests wait until that is
  /// registered.
  const bool is_mapped_anew_;
  std::mutex registering_;
  std::vector<Extent> found_;  ///< ascending, joined; not reported yet
  std::mutex mutex_;
  std::vector<Extent> discarded_;
  FaultClaim claim_;  ///< ends first
};

DirtyScan::State::State(Userfault faults)
    : faults_(std::make_shared<const Userfault>(std::move(faults))) {}

DirtyScan::State::~State() {
  // What waits while nobody answers any more goes on when the regions are unregistered.
  inherited_.stop();
}

Result<void> DirtyScan::State::watch(const MemoryRegionPtr& region) {
  WrittenPages pages = VMSPACE_TRY(WrittenPages::open(starting, region->mapping()));
  regions_.push_back(
      std::make_unique<Watched>(detail::kept_apart(region), std::move(pages), faults_, inherited_));
  return regions_.back()->start();
}

Result<std::vector<GuestRange>> DirtyScan::State::harvest() {
  const std::lock_guard lock(mutex_);
  for (const auto& watched : regions_)
    VMSPACE_TRY(watched->find(harvesting));
  std::vector<GuestRange> ranges;
  for (const auto& watched : regions_) {
    const MemoryRegion& region = watched->region();
    const auto add = [&](std::uint64_t offset, std::uint64_t size) {
      const GuestAddress base(region.base().value() + offset);
      if (!ranges.empty() && ranges.back().end() == base) {
        ranges.back().size += size;
      } else {
        ranges.push_back({.base = base, .size = size});
      }
    };
    for (const Extent& written : watched->found())
      detail::for_each_present_part(region, written.offset, written.size, add);
  }
  for (const auto& watched : regions_)
    watched->forget();
  return ranges;
}

DirtyScan::DirtyScan(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
DirtyScan::DirtyScan(DirtyScan&& other) noexcept = default;
DirtyScan& DirtyScan::operator=(DirtyScan&& other) noexcept {
  detail::move_or_leave(state_, std::move(other.state_));
  return *this;
}
DirtyScan::~DirtyScan() {
  detail::leave_to_maker(state_);
}

Result<DirtyScan> DirtyScan::start(const GuestMemory& memory) {
  namespace feature = detail::userfault_feature;
  Userfault faults = VMSPACE_TRY(Userfault::open(starting, feature::write_protect_async |
                                                               feature::write_protect_absent |
                                                               feature::write_protect_files));
  VMSPACE_TRY(detail::refuse_file_aliases(starting, memory));
  auto state = std::make_unique<State>(std::move(faults));
  VMSPACE_TRY(state->open());
  for (const MemoryRegionPtr& region : memory.regions()) {
    const MemoryMapping& mapping = region->mapping();
    if (mapping.backing().is_external() || mapping.backing().source() == MemorySource::device) {
      return fail({.code = Errc::unsupported,
                   .operation = starting,
                   .first = detail::operand(region->guest_range()),
                   .reason = "the kernel does not tell who writes memory that it does not manage: "
                             "watch a GuestMemory without this region",
                   .text = region->description().name()});
    }
    if (!allows(mapping.protection(), Protection::write)) continue;  // nobody here can write it
    auto watched = state->watch(region);
    if (watched) continue;
    Error error = watched.error();
    error.second = detail::operand(region->guest_range());
    return fail(error);
  }
  VMSPACE_TRY(state->start());
  return DirtyScan(std::move(state));
}

Result<std::vector<GuestRange>> DirtyScan::harvest() {
  if (state_) return state_->harvest();
  return fail({.code = Errc::bad_state,
               .operation = harvesting,
               .reason = "this DirtyScan was moved from"});
}

}  // namespace vmspace
