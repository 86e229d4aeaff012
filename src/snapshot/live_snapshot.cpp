// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/live_snapshot.hpp"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <iterator>
#include <new>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/present_parts.hpp"
#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"
#include "os/thread.hpp"
#include "snapshot/file_aliases.hpp"
#include "snapshot/live_snapshot_state.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace {

namespace {

using detail::fail_os;
namespace feature = detail::userfault_feature;

constexpr const char* prepare_operation = "LiveSnapshot::prepare";
constexpr const char* take_operation = "LiveSnapshot::take";

/// What is copied at once in the background, where pages aren't larger.
constexpr std::uint64_t background_chunk = std::uint64_t{2} << 20;

std::uint64_t smallest_page(const GuestMemory& memory) {
  std::uint64_t page = background_chunk;
  for (const auto& region : memory.regions())
    page = std::min(page, region->mapping().page_size());
  return page;
}

std::uint64_t largest_page(const GuestMemory& memory) {
  std::uint64_t page = detail::snapshot_page;
  for (const auto& region : memory.regions())
    page = std::max(page, region->mapping().page_size());
  return page;
}

}  // namespace

LiveSnapshot::State::State(const GuestMemory& guest, SnapshotWriter to,
                           const LiveSnapshotOptions& options)
    : writer(std::move(to)),
      is_differential(writer.has_parent()),
      // No page is saved twice, so that more than the memory has would never be used.
      buffer(std::max(std::min(options.buffer, guest.total_size()), largest_page(guest)),
             smallest_page(guest)),
      chunk(std::max(background_chunk, largest_page(guest))) {
  for (const auto& region : guest.regions()) {
    regions.emplace_back(detail::kept_apart(region), regions.size(), *this);
    by_host.push_back(&regions.back());
  }
  std::ranges::sort(by_host, std::less<>{},
                    [](const LiveRegion* region) { return region->region().host_base(); });
}

LiveSnapshot::State::~State() {
  close();
}

Result<void> LiveSnapshot::State::open(const LiveSnapshotOptions& options) {
  std::uint64_t features = feature::write_protect;
  for (LiveRegion& region : regions) {
    const Backing& backing = region.region().backing();
    if (backing.is_shared() && !options.peers_stopped) {
      return fail({.code = Errc::bad_state,
                   .operation = prepare_operation,
                   .first = detail::operand(region.region().guest_range()),
                   .reason =
                       "what other processes write to shared memory would be missed: stop them "
                       "until the snapshot is complete, and set peers_stopped",
                   .text = region.region().description().name()});
    }
    if (backing.page_kind() != PageKind::anonymous) features |= feature::write_protect_files;
    VMSPACE_TRY(region.claim(prepare_operation));
  }
  const std::uint64_t available = VMSPACE_TRY(Userfault::available(prepare_operation));
  features |= available & feature::write_protect_absent;
  populate = (available & feature::write_protect_absent) == 0;
  if (populate && !detail::kernel_knows_advice(MADV_POPULATE_READ)) {
    return fail(
        {.code = Errc::unsupported,
         .operation = prepare_operation,
         .reason =
             "this kernel can neither protect absent pages (Linux 6.4 and later can) nor bring "
             "them in first (5.14 and later)"});
  }
  Userfault opened = VMSPACE_TRY(Userfault::open(prepare_operation, features));
  const auto shared = std::make_shared<const Userfault>(std::move(opened));
  {
    // Who discards asks for it once a region is claimed.
    const std::lock_guard lock(mutex);
    faults = shared;
  }
  for (const LiveRegion& region : regions)
    VMSPACE_TRY(region.add_to(*shared, prepare_operation));
  return wake.open(prepare_operation);
}

Result<void> LiveSnapshot::State::start_threads() {
  using Body = void* (*)(void*);
  constexpr Body bodies[] = {
      [](void* self) -> void* {
        static_cast<State*>(self)->handle_faults();
        return nullptr;
      },
      [](void* self) -> void* {
        static_cast<State*>(self)->write_pages();
        return nullptr;
      },
  };
  threads.reserve(std::size(bodies));
  for (const Body body : bodies) {
    pthread_t thread{};
    const int failed = detail::start_thread(thread, body, this);
    if (failed != 0) return fail_os(prepare_operation, {}, "pthread_create", failed);
    threads.push_back(thread);
  }
  return {};
}

/// The ranges, each within one region: harvests join what touches.
Result<std::vector<GuestRange>> LiveSnapshot::State::split(
    std::span<const GuestRange> ranges) const {
  const auto refuse = [](const GuestRange& range, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = take_operation,
                 .first = detail::operand(range),
                 .reason = reason});
  };
  std::vector<GuestRange> pieces;
  pieces.reserve(ranges.size());
  const GuestRange* before = nullptr;
  for (const GuestRange& range : ranges) {
    const std::uint64_t base = range.base.value();
    if (range.size == 0 || base % detail::snapshot_page != 0 ||
        range.size % detail::snapshot_page != 0) {
      return refuse(range, "a range must be whole pages of 4096 bytes, at least one");
    }
    if (before != nullptr &&
        (base < before->base.value() || base - before->base.value() < before->size)) {
      return refuse(range, "the ranges must be in ascending order and must not overlap");
    }
    std::optional<GuestAddress> at = range.base;
    for (std::uint64_t rest = range.size; rest != 0;) {
      const MemoryRegion* const region = at ? region_at(*at) : nullptr;
      if (region == nullptr) return refuse(range, "a range must lie within the memory");
      const std::uint64_t size =
          std::min(rest, region->size() - (at->value() - region->base().value()));
      pieces.push_back({.base = *at, .size = size});
      rest -= size;
      at = at->checked_add(size);
    }
    before = &range;
  }
  return pieces;
}

Result<void> LiveSnapshot::State::protect(std::span<const GuestRange> ranges, bool all) {
  const auto userfault = current_faults();
  if (userfault == nullptr) return {};
  for (LiveRegion& region : regions) {
    const std::uint64_t base = region.region().base().value();
    const auto add = [&](RegionPages run, std::vector<GuestRange>* absent) -> Result<void> {
      const std::uint64_t bytes =
          VMSPACE_TRY(region.protect(*userfault, take_operation, run, populate, absent));
      left += bytes;
      counters.protected_bytes += bytes;
      return {};
    };
    if (all) {
      // What is absent is zeros, also where the parent has something else.
      VMSPACE_TRY(add({0, region.region().size()}, is_differential ? &zeros : nullptr));
      continue;
    }
    // Ranges within one huge page make it wait once.
    std::uint64_t done = 0;
    while (!ranges.empty() && region.region().guest_range().contains(ranges.front().base)) {
      const std::uint64_t offset = ranges.front().base.value() - base;
      const RegionPages whole = region.pages().whole_pages(offset, offset + ranges.front().size);
      const RegionPages rest{std::max(whole.offset, done),
                             whole.end() - std::max(whole.offset, done)};
      if (whole.end() > done) VMSPACE_TRY(add(rest, &zeros));
      done = std::max(done, whole.end());
      ranges = ranges.subspan(1);
    }
    detail::for_each_absent_part(region.region(), [&](std::uint64_t offset, std::uint64_t size) {
      zeros.push_back({GuestAddress(base + offset), size});
    });
  }
  return {};
}

std::shared_ptr<const LiveSnapshot::State::Userfault> LiveSnapshot::State::current_faults() const {
  const std::lock_guard lock(mutex);
  return faults;
}

LiveSnapshot::State::LiveRegion* LiveSnapshot::State::find_region(std::uint64_t address) const {
  const auto next =
      std::ranges::upper_bound(by_host, address, std::less<>{}, [](const LiveRegion* region) {
        return reinterpret_cast<std::uintptr_t>(region->region().host_base());
      });
  if (next == by_host.begin()) return nullptr;
  LiveRegion* const region = *std::prev(next);
  return region->offset_of(address) < region->region().size() ? region : nullptr;
}

const MemoryRegion* LiveSnapshot::State::region_at(GuestAddress address) const {
  const auto next = std::ranges::lower_bound(
      regions, address, std::less<>{},
      [](const LiveRegion& region) { return region.region().last_addr(); });
  if (next == regions.end() || address < next->region().base()) return nullptr;
  return &next->region();
}

void LiveSnapshot::State::end_faults() noexcept {
  std::shared_ptr<const Userfault> ended;
  {
    const std::lock_guard lock(mutex);
    ended = std::exchange(faults, nullptr);
  }
  if (ended == nullptr) return;
  // Not left to closing it: the last one to do so may wait for a disk, or be a child that has forked.
  for (const LiveRegion& region : regions)
    region.remove_from(*ended);
  wake.wake();
}

void LiveSnapshot::State::drop(std::uint64_t bytes) noexcept {
  if ((left -= bytes) != 0) return;
  buffer.end();
  end_faults();
}

void LiveSnapshot::State::stop_saving() noexcept {
  end_faults();
  for (LiveRegion& region : regions)
    region.pages().close();
  buffer.close();
}

void LiveSnapshot::State::give_up(const Error& why) noexcept {
  {
    const std::lock_guard lock(mutex);
    if (phase != Phase::ready && phase != Phase::taken) return;
    error = why;
    phase = Phase::written;
  }
  stop_saving();
  changed.notify_all();
}

void LiveSnapshot::State::save_before_discard(LiveRegion& region, std::uint64_t first,
                                              std::uint64_t end) noexcept {
  const auto userfault = current_faults();
  if (userfault == nullptr) return;
  const std::uint64_t page = region.pages().page();
  for (std::uint64_t at = first; at < end;) {
    const RegionPages run = region.pages().take_next(at, end);
    for (at = run.offset; at < run.end(); at += page) {
      if (!save_to_buffer(*userfault, region, {at, page})) return;
      counters.by_discard += page;
    }
  }
  region.pages().wait_finished(first, end);
}

void LiveSnapshot::State::close() noexcept {
  give_up({.code = Errc::bad_state, .operation = wait_operation, .reason = "it was given up"});
  for (const pthread_t thread : threads)
    pthread_join(thread, nullptr);
  threads.clear();
  // All before any is destroyed: a discard that finds an error ends the snapshot for all regions.
  for (LiveRegion& region : regions)
    region.unclaim();
}

LiveSnapshot::LiveSnapshot(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
LiveSnapshot::LiveSnapshot(LiveSnapshot&&) noexcept = default;
LiveSnapshot& LiveSnapshot::operator=(LiveSnapshot&& other) noexcept {
  detail::move_or_leave(state_, std::move(other.state_));
  return *this;
}
LiveSnapshot::~LiveSnapshot() {
  detail::leave_to_maker(state_);
}

Result<LiveSnapshot> LiveSnapshot::prepare(const GuestMemory& memory, SnapshotWriter writer,
                                           const LiveSnapshotOptions& options) {
  VMSPACE_TRY(detail::refuse_file_aliases(prepare_operation, memory));
  auto state = std::make_unique<State>(memory, std::move(writer), options);
  VMSPACE_TRY(state->open(options));
  VMSPACE_TRY(state->start_threads());
  return LiveSnapshot(std::move(state));
}

Result<void> LiveSnapshot::take() {
  return state_->take({}, true);
}

Result<void> LiveSnapshot::take(std::span<const GuestRange> changed) {
  const std::vector<GuestRange> pieces = VMSPACE_TRY(state_->split(changed));
  if (!state_->is_differential) {
    return fail({.code = Errc::invalid_argument,
                 .operation = take_operation,
                 .reason = "without a parent, all of the memory must be taken"});
  }
  return state_->take(pieces, false);
}

Result<void> LiveSnapshot::State::take(std::span<const GuestRange> ranges, bool all) {
  const auto begin = Clock::now();
  {
    const std::lock_guard lock(mutex);
    if (error) return fail(error->in(take_operation));
    if (phase != Phase::ready) {
      return fail({.code = Errc::bad_state,
                   .operation = take_operation,
                   .reason = "the snapshot has been taken already"});
    }
  }
  // Whatever else is saved meanwhile, because a thread was not stopped, this much is left.
  left = 1;
  try {
    if (const auto done = protect(ranges, all); !done) {
      // Which may be because another error has ended it.
      give_up(done.error());
      const std::lock_guard lock(mutex);
      return fail(error->in(take_operation));
    }
  } catch (const std::bad_alloc&) {
    give_up(fail_os(take_operation, {}, "allocating memory for the present pages", ENOMEM).value());
    throw;
  }
  {
    const std::lock_guard lock(mutex);
    if (error) return fail(error->in(take_operation));
    phase = Phase::taken;
  }
  changed.notify_all();
  drop(1);
  counters.stopped = std::chrono::nanoseconds(Clock::now() - begin).count();
  return {};
}

Result<SnapshotId> LiveSnapshot::wait() {
  State& state = *state_;
  {
    std::unique_lock lock(state.mutex);
    if (state.phase == State::Phase::ready || state.phase == State::Phase::over) {
      return fail({.code = Errc::bad_state,
                   .operation = State::wait_operation,
                   .reason = state.phase == State::Phase::ready ? "take() must be called first"
                                                                : "it was waited for already"});
    }
    state.changed.wait(lock, [&] { return state.phase == State::Phase::written; });
  }
  state.close();
  const std::lock_guard lock(state.mutex);
  state.phase = State::Phase::over;
  if (state.error) return fail(state.error->in(State::wait_operation));
  return state.id;
}

bool LiveSnapshot::is_done() const noexcept {
  const std::lock_guard lock(state_->mutex);
  return state_->phase == State::Phase::written || state_->phase == State::Phase::over;
}

LiveSnapshotStatistics LiveSnapshot::statistics() const noexcept {
  const State::Counters& counters = state_->counters;
  return {.stopped = std::chrono::nanoseconds(counters.stopped),
          .protected_bytes = counters.protected_bytes,
          .faults = counters.faults,
          .saved_by_fault = counters.by_fault,
          .saved_by_discard = counters.by_discard,
          .saved_in_background = counters.in_background,
          .longest_wait = std::chrono::nanoseconds(counters.longest_wait)};
}

}  // namespace vmspace
