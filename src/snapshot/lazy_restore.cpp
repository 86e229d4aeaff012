// SPDX-License-Identifier: Apache-2.0
//
// LazyRestore's handle, and starting.

#include "vmspace/snapshot/lazy_restore.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/zero_test.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "memory/region_error.hpp"
#include "os/argument_checks.hpp"
#include "os/thread.hpp"
#include "snapshot/file_aliases.hpp"
#include "snapshot/lazy_restore_state.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/thin_out.hpp"

namespace vmspace {

namespace {

using detail::PageRun;
using detail::pages_per_extent;
using detail::RestoredRegion;
using detail::snapshot_page;

constexpr const char* start_operation = "LazyRestore::start";
constexpr std::uint64_t extent_size = pages_per_extent * snapshot_page;

Result<void> check_options(const LazyRestoreOptions& options) {
  const auto refuse = [](Operand what, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = start_operation,
                 .first = what,
                 .reason = reason});
  };
  if (options.threads == 0 || options.threads > detail::PageLedger::max_slots)
    return refuse(Operand::number(options.threads), "the number of threads must be 1 to 64");
  if (options.error_limit == 0) return refuse(Operand::number(0), "error_limit must be at least 1");
  VMSPACE_TRY(detail::require_power_of_two(start_operation, options.fault_size));
  VMSPACE_TRY(detail::require_at_most(start_operation, options.fault_size, extent_size,
                                      "a fault brings 2 MiB at most"));
  if (options.fault_size < snapshot_page)
    return refuse(Operand::size(options.fault_size), "a fault brings at least 4096 bytes");
  if (!options.working_set.ranges().empty() && options.working_set.snapshot() != options.snapshot) {
    return refuse({}, "the working set belongs to another snapshot");
  }
  return {};
}

}  // namespace

LazyRestore::State::State(std::shared_ptr<PageSource> source, const LazyRestoreOptions& options)
    : source_(std::move(source)), options_(options), is_paused_(!options.background) {
  events_.on_complete = [this] {
    {
      // Not to be missed by who waits for the end and finds the threads in the source.
      const std::lock_guard lock(mutex_);
      is_complete_ = true;
    }
    changed_.notify_all();
    wake_threads();
  };
  events_.on_returned = [this] { wake_threads(); };
}

Result<void> LazyRestore::State::start(const GuestMemory& memory) {
  VMSPACE_TRY(detail::refuse_file_aliases(start_operation, memory));
  VMSPACE_TRY(add_regions(memory));
  if (!regions_.empty()) {
    for (const RestoredRegion& region : regions_)
      VMSPACE_TRY(settle_absent_blocks(region));
    VMSPACE_TRY(start_threads());
  }
  // Nothing fails from here on.
  for (const RestoredRegion& region : regions_)
    region.region().dirty().mark(0, region.region().size());
  {
    const std::lock_guard lock(mutex_);
    may_work_ = true;
  }
  changed_.notify_all();
  if (ledger_.statistics().remaining == 0) {
    is_complete_ = true;
    finish();
  }
  return {};
}

Result<void> LazyRestore::State::add_regions(const GuestMemory& memory) {
  std::uint64_t features = 0;
  std::vector<PageRun> areas;
  std::vector<MemoryRegionPtr> restored;
  std::uint64_t next = 0;
  for (const MemoryRegionPtr& region : memory.regions()) {
    if (!allows(region->protection(), Protection::write)) {
      VMSPACE_TRY(compare(*region));
      continue;
    }
    features |= VMSPACE_TRY(RestoredRegion::features(start_operation, *region));
    const auto host_page = reinterpret_cast<std::uintptr_t>(region->host_base()) / snapshot_page;
    next = (next + pages_per_extent - 1) / pages_per_extent * pages_per_extent +
           host_page % pages_per_extent;
    areas.push_back({next, next + region->size() / snapshot_page});
    next = areas.back().end;
    restored.push_back(detail::kept_apart(region));
    buffer_size_ = std::max({buffer_size_, extent_size, region->mapping().page_size()});
  }
  if (restored.empty()) return {};
  const std::uint64_t available = VMSPACE_TRY(detail::Userfault::available(start_operation));
  // A DirtyScan may come, and costs nothing until then.
  namespace feature = detail::userfault_feature;
  constexpr std::uint64_t watching =
      feature::write_protect_async | feature::write_protect_absent | feature::write_protect_files;
  const RestoredRegion::Abilities can{.poison = (available & feature::poison) != 0,
                                      .watching = (available & watching) == watching};
  if (can.poison) features |= feature::poison;
  if (can.watching) features |= watching;
  detail::Userfault faults = VMSPACE_TRY(detail::Userfault::open(start_operation, features));
  faults_ = std::make_shared<const detail::Userfault>(std::move(faults));
  for (std::size_t i = 0; i < restored.size(); ++i) {
    RestoredRegion& region =
        regions_.emplace_back(std::move(restored[i]), areas[i].first, faults_, ledger_, events_);
    by_host_address_.push_back(&region);
  }
  std::ranges::sort(by_host_address_, {}, [](const RestoredRegion* region) {
    return reinterpret_cast<std::uintptr_t>(region->region().host_base());
  });
  VMSPACE_TRY(ledger_.open(start_operation, std::move(areas)));
  VMSPACE_TRY(plan_working_set());
  VMSPACE_TRY(add_workers());  // before regions begin, of which a discard wakes them
  for (RestoredRegion& region : regions_)
    VMSPACE_TRY(region.begin(start_operation, can));
  return {};
}

/// A region that may not be written must hold what the source has for it.
Result<void> LazyRestore::State::compare(const MemoryRegion& region) {
  const auto refuse = [&](const char* reason) {
    return fail(detail::name_region(
        {.code = Errc::access_denied, .operation = start_operation, .reason = reason},
        region.description().name(), detail::operand(region.guest_range()), {}));
  };
  if (!allows(region.protection(), Protection::read)) return refuse("the region must be readable");
  std::vector<std::byte> buffer(std::min(extent_size, region.size()));
  for (std::uint64_t at = 0; at < region.size(); at += buffer.size()) {
    const std::span bytes(buffer.data(), std::min(buffer.size(), region.size() - at));
    const GuestRange range{GuestAddress(region.base().value() + at), bytes.size()};
    const GuestRange data = VMSPACE_TRY(source_.next_data(range));
    if (data.empty()) {
      std::ranges::fill(bytes, std::byte{});
    } else {
      VMSPACE_TRY(source_.read(range.base, bytes));
    }
    bool is_equal = false;
    VMSPACE_TRY(detail::touch_region(start_operation, region, at, bytes.size(), [&] {
      is_equal = std::memcmp(region.host_base() + at, bytes.data(), bytes.size()) == 0;
    }));
    if (!is_equal) return refuse("a read-only region must already hold what the source has");
  }
  return {};
}

/// What was saved must be zeros where the region has a block that is not plugged.
Result<void> LazyRestore::State::settle_absent_blocks(const RestoredRegion& restored) {
  const MemoryRegion& region = restored.region();
  std::vector<std::byte> buffer;
  for (std::uint64_t at = 0; at < region.size();) {
    at += detail::present_after(region, at, region.size() - at);
    const std::uint64_t end = at + detail::absent_after(region, at, region.size() - at);
    if (at == end) continue;
    static_cast<void>(ledger_.settle_hole({restored.pages().first + at / snapshot_page,
                                           restored.pages().first + end / snapshot_page}));
    while (at < end) {
      const GuestRange absent{GuestAddress(region.base().value() + at), end - at};
      const GuestRange data = VMSPACE_TRY(source_.next_data(absent));
      if (data.empty()) break;
      if (!absent.contains(data)) {
        return fail({.code = Errc::corrupt,
                     .operation = start_operation,
                     .first = detail::operand(data),
                     .second = detail::operand(absent),
                     .reason = "the source has named data outside of what it was asked for"});
      }
      buffer.resize(std::min(data.size, extent_size));
      VMSPACE_TRY(source_.read(data.base, buffer));
      if (!is_zero(buffer)) {
        return fail({.code = Errc::bad_state,
                     .operation = start_operation,
                     .first = detail::operand(data),
                     .second = detail::operand(region.guest_range()),
                     .reason = "the source has contents for blocks that are not plugged: plug what "
                               "was plugged when it was saved"});
      }
      at = data.base.value() - region.base().value() + buffer.size();
    }
    at = end;
  }
  return {};
}

/// As runs of the numbering, each within one region.
Result<void> LazyRestore::State::plan_working_set() {
  for (const GuestRange& range : options_.working_set.ranges()) {
    std::uint64_t done = 0;
    for (const RestoredRegion& region : regions_) {
      const MemoryRegion& memory = region.region();
      const std::uint64_t at = range.base.value() + done;
      if (done == range.size || !memory.guest_range().contains(GuestAddress(at))) continue;
      const std::uint64_t offset = at - memory.base().value();
      const std::uint64_t size = std::min(range.size - done, memory.size() - offset);
      const std::uint64_t first = region.pages().first + offset / snapshot_page;
      planned_.push_back(region.whole_units({first, first + size / snapshot_page}));
      done += size;
    }
    if (done != range.size) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = start_operation,
                   .first = detail::operand(range),
                   .reason = "the working set has pages outside of the memory that is restored"});
    }
  }
  return {};
}

Result<void> LazyRestore::State::add_workers() {
  for (unsigned i = 0; i < options_.threads; ++i) {
    Worker& worker = workers_.emplace_back();
    worker.state = this;
    worker.slot = i;
    VMSPACE_TRY(worker.wake.open(start_operation));
    VMSPACE_TRY(worker.buffer.map(start_operation, buffer_size_));
  }
  return {};
}

Result<void> LazyRestore::State::start_threads() {
  for (Worker& worker : workers_) {
    const int error = detail::start_thread(worker.thread, &State::thread_body, &worker);
    if (error != 0) return detail::fail_os(start_operation, {}, "pthread_create", error);
    ++running_;
    ++staying_;
  }
  return {};
}

Result<WorkingSet> LazyRestore::State::working_set() const {
  constexpr const char* recording = "LazyRestore::working_set";
  std::vector<PageRun> runs;
  std::uint64_t gap = 0;
  const auto thin_out = [&] {
    detail::thin_out(runs, WorkingSet::max_ranges, gap, [&](const PageRun& a, const PageRun& b) {
      return region_of(b.first).pages().contains(a.first);
    });
  };
  for (PageRun run = ledger_.next_demanded(0); !run.empty(); run = ledger_.next_demanded(run.end)) {
    // A run may cross into the next region of the numbering.
    for (std::uint64_t at = run.first; at < run.end;) {
      const std::uint64_t end = std::min(run.end, region_of(at).pages().end);
      runs.push_back({at, end});
      at = end;
    }
    if (runs.size() >= 2 * WorkingSet::max_ranges) thin_out();
  }
  runs.insert(runs.end(), planned_.begin(), planned_.end());
  std::ranges::sort(runs, {}, &PageRun::first);
  thin_out();
  std::vector<GuestRange> ranges;
  ranges.reserve(runs.size());
  for (const PageRun& run : runs)
    ranges.push_back(region_of(run.first).guest_range(run));
  return VMSPACE_TRY_IN(recording, WorkingSet::make(options_.snapshot, std::move(ranges)));
}

Result<LazyRestore> LazyRestore::start(const GuestMemory& memory,
                                       std::shared_ptr<PageSource> source,
                                       const LazyRestoreOptions& options) {
  if (source == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = start_operation,
                 .reason = "the source must not be null"});
  }
  VMSPACE_TRY(check_options(options));
  auto state = std::make_unique<State>(std::move(source), options);
  VMSPACE_TRY(state->start(memory));
  return LazyRestore(std::move(state));
}

LazyRestore::LazyRestore(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
LazyRestore::LazyRestore(LazyRestore&& other) noexcept = default;
LazyRestore& LazyRestore::operator=(LazyRestore&& other) noexcept {
  detail::move_or_leave(state_, std::move(other.state_));
  return *this;
}
LazyRestore::~LazyRestore() {
  detail::leave_to_maker(state_);
}

Result<void> LazyRestore::wait(std::chrono::nanoseconds timeout) const {
  return state_->wait(timeout);
}
bool LazyRestore::is_done() const noexcept {
  return state_->is_done();
}
void LazyRestore::pause_background() noexcept {
  state_->pause(true);
}
void LazyRestore::resume_background() noexcept {
  state_->pause(false);
}
void LazyRestore::cancel() noexcept {
  state_->cancel({.code = Errc::bad_state,
                  .operation = "LazyRestore::cancel",
                  .reason = "the restore was cancelled before all pages had come"});
}
LazyRestoreStatistics LazyRestore::statistics() const noexcept {
  return state_->statistics();
}
Result<WorkingSet> LazyRestore::working_set() const {
  return state_->working_set();
}

}  // namespace vmspace
