// SPDX-License-Identifier: Apache-2.0

#include "snapshot/page_ledger.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "vmspace/base/try.hpp"

#include "snapshot/snapshot_format.hpp"

namespace vmspace::detail {

namespace {

/// How much of the background a thread takes at a time: 64 MiB.
constexpr std::uint64_t stripe_pages = 16384;

constexpr std::uint64_t bit_of(std::uint64_t page) {
  return std::uint64_t{1} << page % 64;
}

}  // namespace

Result<void> PageLedger::open(const char* operation, std::vector<PageRun> areas) {
  const std::uint64_t end = areas.back().end;
  const std::uint64_t extents = (end + pages_per_extent - 1) / pages_per_extent;
  const std::uint64_t bitmap = extents * (pages_per_extent / 8);
  VMSPACE_TRY(settled_.map(operation, bitmap));
  VMSPACE_TRY(demanded_.map(operation, bitmap));
  VMSPACE_TRY(extents_.map(operation, extents));
  discards_.reserve(areas.size());
  areas_ = std::move(areas);
  for (const PageRun& area : areas_)
    remaining_ += area.size();
  return {};
}

bool PageLedger::is_settled(std::uint64_t page) const noexcept {
  const std::uint8_t extent = extents_.as<std::uint8_t>()[page / pages_per_extent];
  if ((extent & all_settled) != 0) return true;
  return (extent & some_settled) != 0 &&
         (settled_.as<std::uint64_t>()[page / 64] & bit_of(page)) != 0;
}

std::uint64_t PageLedger::skip(std::uint64_t from, std::uint64_t end, bool settled) const noexcept {
  while (from < end) {
    const std::uint8_t extent = extents_.as<std::uint8_t>()[from / pages_per_extent];
    if ((extent & (all_settled | some_settled)) != some_settled) {
      if (((extent & all_settled) != 0) == settled) return from;
      from = (from / pages_per_extent + 1) * pages_per_extent;
      continue;
    }
    const std::uint64_t word = settled_.as<std::uint64_t>()[from / 64];
    const std::uint64_t wanted = (settled ? word : ~word) >> from % 64;
    if (wanted != 0) return std::min(end, from + static_cast<unsigned>(std::countr_zero(wanted)));
    from = (from / 64 + 1) * 64;
  }
  return end;
}

const PageRun* PageLedger::cover_of(std::uint64_t page) const noexcept {
  for (const Job& job : jobs_) {
    const bool covers = job.stage == Stage::reading || job.stage == Stage::filling;
    if (covers && job.run.contains(page)) return &job.run;
  }
  for (const PageRun& discard : discards_) {
    if (discard.contains(page)) return &discard;
  }
  return nullptr;
}

std::uint64_t PageLedger::next_cover(std::uint64_t from, std::uint64_t end) const noexcept {
  const auto look_at = [&](const PageRun& run) {
    if (run.first >= from && run.first < end) end = run.first;
  };
  for (const Job& job : jobs_) {
    if (job.stage == Stage::reading || job.stage == Stage::filling) look_at(job.run);
  }
  std::ranges::for_each(discards_, look_at);
  return end;
}

PageRun PageLedger::find_open(PageRun within) const noexcept {
  std::uint64_t at = within.first;
  while ((at = skip(at, within.end, false)) < within.end) {
    const PageRun* const cover = cover_of(at);
    if (cover == nullptr) return {at, skip(at, next_cover(at, within.end), true)};
    at = cover->end;
  }
  return {within.end, within.end};
}

void PageLedger::mark_settled(PageRun run, PageFate fate) noexcept {
  auto* const extents = extents_.as<std::uint8_t>();
  auto* const words = settled_.as<std::uint64_t>();
  const bool is_filled = fate <= PageFate::background;
  for (std::uint64_t at = run.first; at < run.end;) {
    std::uint8_t& extent = extents[at / pages_per_extent];
    const std::uint64_t end = std::min(run.end, (at / pages_per_extent + 1) * pages_per_extent);
    if (end - at == pages_per_extent) {
      extent |= all_settled;
    } else {
      for_each_bit_word(at, end,
                        [&](std::uint64_t word, std::uint64_t bits) { words[word] |= bits; });
      extent |= some_settled;
    }
    if (is_filled) extent |= has_contents;
    at = end;
  }
  pages_[static_cast<std::size_t>(fate)] += run.size();
  remaining_ -= run.size();
}

void PageLedger::mark_brought(PageRun run, PageFate fate, std::uint64_t zeros) noexcept {
  if (zeros == run.size()) return mark_settled(run, PageFate::zero);
  mark_settled(run, fate);
  pages_[static_cast<std::size_t>(fate)] -= zeros;
  pages_[static_cast<std::size_t>(PageFate::zero)] += zeros;
}

PageLedger::Found PageLedger::take_fault(unsigned slot, PageRun unit, PageRun around,
                                         PageRun& job) {
  const std::lock_guard lock(mutex_);
  ++faults_;
  if (is_settled(unit.first)) return Found::settled;
  if (!is_open_) return Found::busy;  // the end wakes everybody
  if (const PageRun* const cover = cover_of(unit.first)) {
    for (Job& other : jobs_) {
      if (&other.run == cover) other.was_waited_for = true;
    }
    return Found::busy;
  }
  auto* const words = demanded_.as<std::uint64_t>();
  for_each_bit_word(unit.first, unit.end,
                    [&](std::uint64_t word, std::uint64_t bits) { words[word] |= bits; });
  extents_.as<std::uint8_t>()[unit.first / pages_per_extent] |= has_demanded;
  // The last open run in `around` that begins at or before the page.
  PageRun run{around.first, around.first};
  do {
    run = find_open({run.end, around.end});
  } while (!run.contains(unit.first));
  jobs_[slot] = {.run = run, .stage = Stage::reading};
  job = run;
  return Found::taken;
}

PageRun PageLedger::take_next(unsigned slot, PageRun within, std::uint64_t most) {
  const std::lock_guard lock(mutex_);
  if (!is_open_) return {within.end, within.end};
  PageRun run = find_open(within);
  run.end = std::min(run.end, run.first + most);
  if (!run.empty()) jobs_[slot] = {.run = run, .stage = Stage::reading};
  return run;
}

bool PageLedger::begin_filling(unsigned slot) {
  const std::lock_guard lock(mutex_);
  Job& job = jobs_[slot];
  job.stage = job.stage == Stage::reading ? Stage::filling : Stage::none;
  return job.stage == Stage::filling;
}

PageLedger::Outcome PageLedger::settle(unsigned slot, PageFate fate, std::uint64_t zeros) {
  const std::lock_guard lock(mutex_);
  Job& job = jobs_[slot];
  mark_brought(job.run, fate, zeros);
  job.stage = Stage::none;
  changed_.notify_all();
  return {.was_waited_for = job.was_waited_for, .is_complete = is_open_ && remaining_ == 0};
}

void PageLedger::settle_first(unsigned slot, std::uint64_t pages, PageFate fate,
                              std::uint64_t zeros) {
  const std::lock_guard lock(mutex_);
  Job& job = jobs_[slot];
  const std::uint64_t middle = job.run.first + pages;
  mark_brought({job.run.first, middle}, fate, zeros);
  job.run.first = middle;
  job.stage = Stage::reading;
  changed_.notify_all();
}

bool PageLedger::drop(unsigned slot) {
  const std::lock_guard lock(mutex_);
  Job& job = jobs_[slot];
  const bool was_revoked = job.stage == Stage::revoked;
  if (!was_revoked) give_back(job.run);
  job.stage = Stage::none;
  changed_.notify_all();
  return was_revoked || job.was_waited_for;
}

void PageLedger::give_back(PageRun run) noexcept {
  if (run.first >= cursor_) return;
  returned_ = returned_.empty()
                  ? run
                  : PageRun{std::min(returned_.first, run.first), std::max(returned_.end, run.end)};
}

PageRun PageLedger::next_stripe() {
  const std::lock_guard lock(mutex_);
  std::uint64_t& at = returned_.empty() ? cursor_ : returned_.first;
  const std::uint64_t stop = returned_.empty() ? areas_.back().end : returned_.end;
  for (const PageRun& area : areas_) {
    const std::uint64_t first = std::max(area.first, at);
    const PageRun left{first, std::min({area.end, stop, first + stripe_pages})};
    if (left.first >= left.end) continue;
    at = left.end;
    if (returned_.first >= returned_.end) returned_ = {};
    return left;
  }
  at = stop;
  returned_ = {};
  return {};
}

bool PageLedger::settle_hole(PageRun hole) {
  const std::lock_guard lock(mutex_);
  if (!is_open_) return false;
  bool is_complete = false;
  for (PageRun run = find_open(hole); !run.empty(); run = find_open({run.end, hole.end})) {
    mark_settled(run, PageFate::zero);
    is_complete = remaining_ == 0;
  }
  if (hole.contains(cursor_)) cursor_ = hole.end;
  return is_complete;
}

void PageLedger::revoke(Job& job) noexcept {
  if (job.stage != Stage::reading) return;
  job.stage = Stage::revoked;
  give_back(job.run);
}

bool PageLedger::is_filled(PageRun run) const noexcept {
  return std::ranges::any_of(
      jobs_, [&](const Job& job) { return job.stage == Stage::filling && job.run.overlaps(run); });
}

void PageLedger::begin_discard(PageRun pages) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !is_losing_; });
  discards_.push_back(pages);
  for (Job& job : jobs_) {
    if (job.run.overlaps(pages)) revoke(job);
  }
  changed_.wait(lock, [&] { return !is_filled(pages); });
}

bool PageLedger::end_discard(PageRun pages, bool discarded) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase_if(discards_, [&](const PageRun& discard) { return discard.first == pages.first; });
  bool is_complete = false;
  if (discarded) {
    for (PageRun run = find_open(pages); !run.empty(); run = find_open({run.end, pages.end})) {
      mark_settled(run, PageFate::discarded);
      is_complete = is_open_ && remaining_ == 0;
    }
  } else {
    give_back(pages);
  }
  changed_.notify_all();
  return is_complete;
}

bool PageLedger::begin_loss() noexcept {
  std::unique_lock lock(mutex_);
  if (!is_open_ || remaining_ == 0) return false;
  is_open_ = false;
  std::ranges::for_each(jobs_, [&](Job& job) { revoke(job); });
  // No job begins any more. Discards do until the last has ended: one that spans regions, as a file's
  // may, begins in each while it goes on in those before, and could not end if it had to wait for us.
  changed_.wait(lock, [&] {
    return discards_.empty() &&
           std::ranges::none_of(jobs_, [](const Job& job) { return job.stage == Stage::filling; });
  });
  is_losing_ = true;
  return true;
}

PageRun PageLedger::next_open(std::uint64_t from) noexcept {
  const std::lock_guard lock(mutex_);
  for (const PageRun& area : areas_) {
    if (area.end <= from) continue;
    const PageRun run = find_open({std::max(area.first, from), area.end});
    if (!run.empty()) return run;
  }
  return {};
}

void PageLedger::settle_lost(PageRun pages) noexcept {
  const std::lock_guard lock(mutex_);
  mark_settled(pages, PageFate::lost);
}

void PageLedger::end_loss() noexcept {
  const std::lock_guard lock(mutex_);
  is_losing_ = false;
  changed_.notify_all();
}

std::uint64_t PageLedger::count_error() noexcept {
  const std::lock_guard lock(mutex_);
  return ++errors_;
}

LazyRestoreStatistics PageLedger::statistics() const noexcept {
  const std::lock_guard lock(mutex_);
  const auto bytes = [&](PageFate fate) {
    return pages_[static_cast<std::size_t>(fate)] * snapshot_page;
  };
  return {.demand = bytes(PageFate::demand),
          .working_set = bytes(PageFate::working_set),
          .background = bytes(PageFate::background),
          .zero = bytes(PageFate::zero),
          .discarded = bytes(PageFate::discarded),
          .lost = bytes(PageFate::lost),
          .remaining = remaining_ * snapshot_page,
          .faults = faults_,
          .errors = errors_};
}

PageRun PageLedger::next_demanded(std::uint64_t from) const noexcept {
  const std::lock_guard lock(mutex_);
  const auto* const words = demanded_.as<std::uint64_t>();
  const std::uint64_t end = areas_.empty() ? 0 : areas_.back().end;
  PageRun run;
  for (std::uint64_t at = from; at < end;) {
    // Extents without any have words that nothing has touched.
    const bool has_any = (extents_.as<std::uint8_t>()[at / pages_per_extent] & has_demanded) != 0;
    const std::uint64_t word = has_any ? words[at / 64] : 0;
    const bool in_run = !run.empty();
    const std::uint64_t rest = (in_run ? ~word : word) >> at % 64;
    const std::uint64_t next = (at / 64 + 1) * 64;
    if (rest != 0) {
      at += static_cast<unsigned>(std::countr_zero(rest));
      if (in_run) return {run.first, at};
      run = {at, at + 1};
      continue;
    }
    at = in_run || has_any ? next : (at / pages_per_extent + 1) * pages_per_extent;
    if (in_run) run.end = at;
  }
  return run;
}

PageRun PageLedger::next_filled(std::uint64_t from) const noexcept {
  const std::lock_guard lock(mutex_);
  const std::uint64_t end = areas_.empty() ? 0 : areas_.back().end;
  const auto has = [&](std::uint64_t page) {
    return (extents_.as<std::uint8_t>()[page / pages_per_extent] & has_contents) != 0;
  };
  std::uint64_t first = from / pages_per_extent * pages_per_extent;
  while (first < end && !has(first))
    first += pages_per_extent;
  std::uint64_t last = first;
  while (last < end && has(last))
    last += pages_per_extent;
  return first < end ? PageRun{first, last} : PageRun{};
}

}  // namespace vmspace::detail
