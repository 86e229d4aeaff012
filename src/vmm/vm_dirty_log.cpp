// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vm_dirty_log.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/dirty_tracking.hpp"

#include "memory/present_parts.hpp"
#include "memory/start_tracking.hpp"
#include "memory/take_dirty.hpp"
#include "vmm/vm_memory_state.hpp"

namespace vmspace {

namespace {

detail::RangeList ranges_of(const GuestMemory& memory) {
  detail::RangeList ranges;
  ranges.reserve(memory.regions().size());
  for (const MemoryRegionPtr& region : memory.regions()) {
    detail::for_each_present_part(
        *region, 0, region->size(), [&](std::uint64_t offset, std::uint64_t size) {
          ranges.push_back({.base = GuestAddress(region->base().value() + offset), .size = size});
        });
  }
  return ranges;
}

}  // namespace

Result<void> VmMemory::State::start_log(const GuestMemory& memory, const char* operation) {
  // Also where a listener throws.
  struct Undo {
    State& state;
    std::vector<DirtyBitmap*> started = {};
    bool is_needed = true;
    ~Undo() {
      if (!is_needed) return;
      for (DirtyBitmap* bitmap : started)
        bitmap->disable();
      state.let_go_of_outgrown();
    }
  } undo{.state = *this};
  VMSPACE_TRY_IN(operation, track_outgrown());
  undo.started = VMSPACE_TRY_IN(operation, detail::start_tracking(memory.regions()));
  VMSPACE_TRY(listeners.start_log(memory, operation));
  undo.is_needed = false;
  return {};
}

Result<void> VmMemory::State::track(const GuestMemory& memory,
                                    std::span<const MemoryRegionPtr> joined) {
  VMSPACE_TRY(detail::start_tracking(memory.regions()));
  for (const MemoryRegionPtr& region : joined)
    region->dirty().mark(0, region->size());
  return {};
}

Result<void> VmMemory::State::track_outgrown() {
  for (OutgrownMemory& each : outgrown) {
    each.kept = each.dirty.lock();
    if (each.kept != nullptr) VMSPACE_TRY(each.kept->enable());
  }
  return {};
}

void VmMemory::State::let_go_of_outgrown() noexcept {
  for (OutgrownMemory& each : outgrown) {
    if (each.kept != nullptr) each.kept->disable();
    each.kept.reset();
  }
}

detail::RangeList VmMemory::State::take_outgrown(const GuestMemory& memory, DirtyHarvest& harvest) {
  detail::RangeList ranges;
  for (OutgrownMemory& each : outgrown) {
    // Looked at first: whoever has let go of it has marked all that it wrote. Letting go of a copy of
    // our own orders the two; a fence would, but ThreadSanitizer does not know fences.
    each.is_unused = each.kept.use_count() <= 1;
    { const auto ordered = each.kept; }
    if (each.kept == nullptr) continue;
    const auto bitmap = each.now.lock();
    const auto now = std::ranges::find_if(memory.regions(), [&](const MemoryRegionPtr& region) {
      return &region->dirty() == bitmap.get();
    });
    for (const DirtyRange& dirty : harvest.take(*each.kept)) {
      // It was unplugged, or parked, and then counts as written when it returns; or it has shrunk.
      if (now == memory.regions().end() || dirty.offset >= (*now)->size()) break;
      ranges.push_back({.base = GuestAddress((*now)->base().value() + dirty.offset),
                        .size = std::min(dirty.size, (*now)->size() - dirty.offset)});
    }
  }
  std::ranges::sort(ranges, {}, &GuestRange::base);
  return ranges;
}

Result<void> VmMemory::State::fan_out(const GuestMemory& memory, const char* operation) {
  VMSPACE_TRY(listeners.sync_log(memory, operation));
  {
    DirtyHarvest harvest;
    auto fresh = VMSPACE_TRY_IN(operation, detail::take_dirty(memory, harvest));
    if (!outgrown.empty()) fresh = detail::union_of(fresh, take_outgrown(memory, harvest));
    if (!fresh.empty()) {
      std::vector<std::shared_ptr<VmDirtyLog::Pending>> ready;
      for (const auto& each : logs) {
        if (auto log = each.lock()) {
          log->pages.reserve(fresh);
          ready.push_back(std::move(log));
        }
      }
      VMSPACE_TRY_IN(operation, harvest.finish());
      for (const auto& log : ready)
        log->pages.add(fresh);
    }
  }
  std::erase_if(outgrown, [](const OutgrownMemory& each) { return each.is_unused; });
  return {};
}

Result<void> VmMemory::State::drop_stopped_logs(const GuestMemory& memory,
                                                const char* operation) noexcept {
  if (logs.empty()) return {};
  std::erase_if(logs, [](const auto& log) { return log.expired(); });
  if (!logs.empty()) return {};
  let_go_of_outgrown();
  const auto done = listeners.stop_log(memory, operation);
  disable_dirty_tracking(memory);
  for (const MemoryRegionPtr& region : parked)
    region->dirty().disable();
  return done;
}

Result<VmDirtyLog> VmMemory::start_dirty_log() const {
  constexpr const char* operation = "VmMemory::start_dirty_log";
  const auto turn = VMSPACE_TRY(state_->map.writer(operation));
  const GuestMemory& memory = turn.current().memory;
  auto pending = std::make_shared<VmDirtyLog::Pending>();
  static_cast<void>(state_->drop_stopped_logs(memory, operation));
  state_->logs.reserve(state_->logs.size() + 1);
  if (state_->logs.empty()) {
    VMSPACE_TRY(state_->start_log(memory, operation));
  } else {
    VMSPACE_TRY(state_->fan_out(memory, operation));  // what was written before is not for it
  }
  state_->logs.push_back(pending);
  return VmDirtyLog(*this, std::move(pending));
}

VmDirtyLog::VmDirtyLog(const VmMemory& memory, std::shared_ptr<Pending> pending) noexcept
    : memory_(memory), pending_(std::move(pending)) {}

VmDirtyLog::VmDirtyLog(VmDirtyLog&& other) noexcept = default;

VmDirtyLog& VmDirtyLog::operator=(VmDirtyLog&& other) noexcept {
  if (this == &other) return *this;
  static_cast<void>(stop());
  memory_ = other.memory_;
  pending_ = std::move(other.pending_);
  return *this;
}

VmDirtyLog::~VmDirtyLog() {
  static_cast<void>(stop());
}

Result<std::vector<GuestRange>> VmDirtyLog::harvest() {
  return harvest(std::optional<GuestRange>());
}

Result<std::vector<GuestRange>> VmDirtyLog::harvest(GuestRange within) {
  return harvest(std::optional(within));
}

/// Without a range, all of memory.
Result<std::vector<GuestRange>> VmDirtyLog::harvest(std::optional<GuestRange> within) {
  constexpr const char* operation = "VmDirtyLog::harvest";
  if (pending_ == nullptr) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .reason = "the log was stopped: start_dirty_log() begins another"});
  }
  if (within && !within->empty()) VMSPACE_TRY_IN(operation, within->range());
  VmMemory::State& state = *memory_->state_;
  const auto turn = VMSPACE_TRY(state.map.writer(operation));
  const GuestMemory& memory = turn.current().memory;
  VMSPACE_TRY(state.fan_out(memory, operation));
  if (within && within->empty()) return std::vector<GuestRange>();
  const std::uint64_t first = within ? within->base.value() : 0;
  const std::uint64_t last =
      within ? first + (within->size - 1) : std::numeric_limits<std::uint64_t>::max();
  // Of what was unplugged since, nothing is left to read.
  detail::RangeList written =
      detail::intersection_of(pending_->pages.ranges_in(first, last), ranges_of(memory));
  written = detail::union_of(written, {});  // adjacent regions were taken apart
  pending_->pages.remove(first, last);
  return written;
}

Result<void> VmDirtyLog::stop() {
  if (pending_ == nullptr) return {};
  pending_.reset();
  constexpr const char* operation = "VmDirtyLog::stop";
  const VmMemory memory = *std::exchange(memory_, std::nullopt);  // what has stopped keeps nothing
  VmMemory::State& state = *memory.state_;
  if (!state.maker.is_this_process()) return {};  // in the parent it goes on
  const auto turn = VMSPACE_TRY(state.map.writer(operation));
  return state.drop_stopped_logs(turn.current().memory, operation);
}

}  // namespace vmspace
