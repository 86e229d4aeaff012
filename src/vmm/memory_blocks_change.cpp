// SPDX-License-Identifier: Apache-2.0
//
// Plugging and unplugging blocks, step by step; see memory_blocks.hpp.

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "vmspace/base/detail/deadline.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/host/populate.hpp"

#include "vmm/memory_blocks_state.hpp"

namespace vmspace {

using detail::BlockDifference;

namespace {

using Run = PresentBlocks::Run;
using Turn = Published<VmMap>::Writer;

Error name_blocks(const Error& error, const char* operation, const MemoryRegion& region) noexcept {
  Error named = error.in(operation);
  named.text = error.text.with_subject(region.description().name());
  return named;
}

}  // namespace

/// Keeps other changes of the region away while no turn is held.
class MemoryBlocks::State::Claim {
 public:
  /// In a turn.
  Claim(State& blocks, AddressSpaceRegionPtr region) : blocks_(blocks), region_(std::move(region)) {
    blocks_.vm().changing.push_back(region_);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  ~Claim() {
    if (region_ == nullptr) return;
    const auto turn = blocks_.vm().map.writer();  // fails when this thread has it already
    end();
  }
  /// In a turn. Readers will lack what tables have of `region`: unless it is undone, the region stays
  /// claimed until it is.
  void readers_lack(const MemoryRegionPtr& region) {
    blocks_.vm().listeners.keep(region);
    lost_ = region->blocks();
  }
  /// In a turn.
  void settled() noexcept {
    blocks_.vm().listeners.forget_kept(*blocks_.whole);
    lost_.reset();
  }
  /// In a turn.
  void end() noexcept {
    if (lost_ != nullptr) {
      blocks_.lost_ = std::move(lost_);
    } else {
      auto& changing = blocks_.vm().changing;
      const auto at = std::ranges::find(changing, region_);
      if (at != changing.end()) changing.erase(at);
    }
    region_.reset();
  }

 private:
  State& blocks_;
  AddressSpaceRegionPtr region_;
  PresentBlocksPtr lost_;
};

Result<MemoryRegionPtr> MemoryBlocks::State::find(const GuestMemory& in,
                                                  const char* operation) const {
  for (const MemoryRegionPtr& region : in.regions()) {
    if (region->shares_memory_with(*whole)) return region;
  }
  return fail({.code = Errc::not_found,
               .operation = operation,
               .reason = "the region was unplugged, or is parked",
               .text = whole->description().name()});
}

Result<Run> MemoryBlocks::State::run_of(const MemoryRegion& region, GuestRange range,
                                        const char* operation) const {
  if (range.base < region.base()) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(range),
                 .second = detail::operand(region.guest_range()),
                 .reason = "the blocks must lie within the region",
                 .text = region.description().name()});
  }
  const Run run{.offset = range.base.value() - region.base().value(), .size = range.size};
  if (const auto ok = region.blocks()->check_run(run); !ok)
    return fail(name_blocks(ok.error(), operation, region));
  return run;
}

Result<MemoryBlocks::State::Begun> MemoryBlocks::State::begin(const char* operation) {
  Turn turn = VMSPACE_TRY(vm().map.writer(operation));
  // unsettled() and collect() say what could not be.
  static_cast<void>(vm().settle(turn, operation));
  if (lost_ != nullptr) VMSPACE_TRY_IN(operation, give_back_to_readers(turn));
  MemoryRegionPtr region = VMSPACE_TRY(find(turn.current().memory, operation));
  const auto& changing = vm().changing;
  if (std::ranges::find(changing, region->shared_description()) != changing.end()) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(region->guest_range()),
                 .reason = "another change of this region has not finished",
                 .text = region->description().name()});
  }
  return Begun{.turn = std::move(turn), .region = std::move(region)};
}

/// Makes the map that publish() publishes.
Result<void> MemoryBlocks::State::draft(Turn& turn, const MemoryRegionPtr& from,
                                        const MemoryRegionPtr& to) {
  std::erase_if(published_, [](const auto& blocks) { return blocks.expired(); });
  published_.reserve(published_.size() + 1);
  VmMap& next = turn.draft();
  next.memory = VMSPACE_TRY(next.memory.with_changes({&from, 1}, {to}));
  return {};
}

void MemoryBlocks::State::publish(Turn& turn, const MemoryRegionPtr& region) noexcept {
  turn.publish();
  published_.push_back(region->blocks());
}

/// Publishes a region with blocks that readers lack. These count as written: whoever copies what is dirty
/// may have copied all the rest already.
void MemoryBlocks::State::publish_more(Turn& turn, const MemoryRegionPtr& region,
                                       std::span<const Run> more) noexcept {
  publish(turn, region);
  for (const Run& run : more)
    region->dirty().mark(run.offset, run.size);
}

/// Adds to the tables what `to` has more, and publishes it. Who calls it says for which call of the user.
Result<void> MemoryBlocks::State::add(Turn& turn, const MemoryRegionPtr& from,
                                      const MemoryRegionPtr& to, const BlockDifference& blocks) {
  VMSPACE_TRY(draft(turn, from, to));
  detail::TableChange tables{.added = blocks.sections_of(*to)};
  VMSPACE_TRY(vm().listeners.apply(tables, nullptr, "MemoryBlocks::plug"));
  publish_more(turn, to, blocks.runs());
  vm().listeners.finish(tables);
  return {};
}

/// Publishes what only tables have.
Result<void> MemoryBlocks::State::give_back_to_readers(Turn& turn) {
  const auto now = VMSPACE_TRY(find(turn.current().memory, "MemoryBlocks::unplug"));
  const auto before = VMSPACE_TRY(now->with_blocks(lost_));
  VMSPACE_TRY(draft(turn, now, before));
  const Run all{.offset = 0, .size = before->size()};  // so rare that all may count as written
  publish_more(turn, before, {&all, 1});
  vm().listeners.forget_kept(*whole);
  lost_.reset();
  auto& changing = vm().changing;
  changing.erase(std::ranges::find(changing, now->shared_description()));
  return {};
}

Result<void> MemoryBlocks::State::check_plug(const MemoryRegion& region, const Run& run,
                                             const char* operation) const {
  const auto refuse = [&](Errc code, Operand first, Operand second, const char* reason) {
    return fail({.code = code,
                 .operation = operation,
                 .first = first,
                 .second = second,
                 .reason = reason,
                 .text = region.description().name()});
  };
  const std::uint64_t limit = usable;
  if (run.offset >= limit || run.size > limit - run.offset) {
    return refuse(Errc::out_of_bounds, Operand::span(run.offset, run.size), Operand::span(0, limit),
                  "the blocks must lie within the usable size");
  }
  const std::uint64_t there = region.blocks()->present_size();
  const std::uint64_t most = requested;
  if (there <= most && run.size <= most - there) return {};
  return refuse(Errc::limit_exceeded, Operand::size(there + run.size), Operand::size(most),
                "no more than the requested size can be plugged");
}

Result<void> MemoryBlocks::State::check_not_retired(const MemoryRegion& region,
                                                    const BlockDifference& blocks) const {
  for (const auto* runs : {&blocks.runs(), &blocks.slots()}) {
    for (const Run& run : *runs) {
      const GuestRange range{GuestAddress(region.base().value() + run.offset), run.size};
      if (!vm().listeners.has_retired(range)) continue;
      return fail({.code = Errc::bad_state,
                   .operation = "MemoryBlocks::plug",
                   .first = detail::operand(range),
                   .reason = "the range is retired: collect() may free it",
                   .text = region.description().name()});
    }
  }
  return {};
}

/// Makes new slots accessible, and what is added zeros: the backing may have held something there before,
/// and a guest can write to absent blocks of a slot that it has. Populates it where the region asks for it.
Result<void> MemoryBlocks::State::stage(const BlockDifference& blocks) const {
  for (const Run& slot : blocks.slots())
    VMSPACE_TRY(whole->mapping().set_accessible(slot.offset, slot.size, true));
  for (const Run& run : blocks.runs())
    VMSPACE_TRY(whole->mapping().discard(run.offset, run.size));
  if (!whole->description().wants_populate()) return {};
  std::vector<PopulateRange> ranges;
  ranges.reserve(blocks.runs().size());
  for (const Run& run : blocks.runs())
    ranges.push_back({.mapping = &whole->mapping(), .offset = run.offset, .size = run.size});
  return populate(ranges, vm().options.populate);
}

/// Gives back the pages of blocks that nobody has; gives the first error.
Result<void> MemoryBlocks::State::discard(const BlockDifference& blocks) const noexcept {
  Result<void> done;
  for (const Run& run : blocks.runs()) {
    const auto discarded = whole->mapping().discard(run.offset, run.size);
    if (done) done = discarded;
  }
  // Only a guard against mistakes, so it does not matter where it fails.
  if (!done) return done;
  for (const Run& slot : blocks.slots())
    static_cast<void>(whole->mapping().set_accessible(slot.offset, slot.size, false));
  return {};
}

/// Waits until nobody can reach these blocks any more: through an old map, or through a copy or view of
/// its memory, which keeps a set of blocks. Nobody gets at one that is not published any more but
/// from somebody who has it.
Result<void> MemoryBlocks::State::wait_unused(const BlockDifference& blocks,
                                              std::chrono::nanoseconds timeout,
                                              const char* operation) const {
  const auto deadline = detail::deadline_after(timeout);
  VMSPACE_TRY_IN(operation, vm().map.wait_released(timeout));
  const auto is_used = [&](const std::weak_ptr<const PresentBlocks>& each) {
    const PresentBlocksPtr set = each.lock();
    return set != nullptr && blocks.is_in(*set);
  };
  while (std::ranges::any_of(published_, is_used)) {
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail({.code = Errc::timed_out,
                   .operation = operation,
                   .reason = "a view or a copy of guest memory still has the blocks"});
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return {};
}

Result<void> MemoryBlocks::State::plug(GuestRange range, const char* operation) {
  Begun begun = VMSPACE_TRY(begin(operation));
  const MemoryRegionPtr before = std::move(begun.region);
  const PresentBlocks& less = *before->blocks();
  const Run run = VMSPACE_TRY(run_of(*before, range, operation));
  VMSPACE_TRY(check_plug(*before, run, operation));
  const auto more = less.with(run);
  if (!more) return fail(name_blocks(more.error(), operation, *before));
  const BlockDifference blocks({run}, less);
  VMSPACE_TRY(check_not_retired(*before, blocks));
  const MemoryRegionPtr after = VMSPACE_TRY_IN(operation, before->with_blocks(*more));
  Claim claim(*this, before->shared_description());
  { const Turn given_up = std::move(begun.turn); }  // others need not wait for what may take long

  // Whatever happens: what was staged and does not come is given back.
  struct Staged {
    const State& state;
    const BlockDifference& blocks;
    bool is_used = false;
    ~Staged() {
      if (!is_used) static_cast<void>(state.discard(blocks));
    }
  } staged{.state = *this, .blocks = blocks};
  VMSPACE_TRY_IN(operation, stage(blocks));
  Turn turn = VMSPACE_TRY(vm().map.writer(operation));
  const auto added = add(turn, before, after, blocks);
  // A listener that did not let go after a refusal may still use it.
  staged.is_used = added || added.error().code == Errc::inconsistent;
  claim.end();
  return added ? added : fail(added.error().in(operation));
}

Result<void> MemoryBlocks::State::unplug(const std::optional<GuestRange>& range,
                                         std::chrono::nanoseconds timeout, const char* operation) {
  Begun begun = VMSPACE_TRY(begin(operation));
  const PresentBlocks& now = *begun.region->blocks();
  PresentBlocksPtr fewer;
  std::vector<Run> runs;
  if (range) {
    const Run run = VMSPACE_TRY(run_of(*begun.region, *range, operation));
    const auto without = begun.region->blocks()->without(run);
    if (!without) return fail(name_blocks(without.error(), operation, *begun.region));
    fewer = *without;
    runs = {run};
  } else {
    fewer = VMSPACE_TRY(PresentBlocks::none(now.region_size(), now.block_size(), now.slot_size()));
    runs = now.runs();
  }
  // What comes back where a step fails: a set of its own, since everybody who uses the one there is
  // will be waited for.
  const auto more = std::make_shared<const PresentBlocks>(now);
  const BlockDifference blocks(std::move(runs), *fewer);
  const MemoryRegionPtr after = VMSPACE_TRY_IN(operation, begun.region->with_blocks(fewer));
  const MemoryRegionPtr back = VMSPACE_TRY_IN(operation, begun.region->with_blocks(more));
  detail::TableChange tables{.removed_first = blocks.sections_of(*after)};

  Claim claim(*this, begun.region->shared_description());
  VMSPACE_TRY_IN(operation, draft(begun.turn, begun.region, after));
  claim.readers_lack(back);
  publish(begun.turn, after);
  begun.region.reset();
  { const Turn given_up = std::move(begun.turn); }

  auto done = wait_unused(blocks, timeout, operation);
  Turn turn = VMSPACE_TRY(vm().map.writer(operation));
  std::exception_ptr thrown;
  try {
    if (done) done = vm().listeners.apply(tables, nullptr, operation);
  } catch (...) {
    thrown = std::current_exception();
  }
  if (!done || thrown != nullptr) {
    VMSPACE_TRY_IN(operation, draft(turn, after, back));
    publish_more(turn, back, blocks.runs());
    claim.settled();
    claim.end();
    if (thrown != nullptr) std::rethrow_exception(thrown);
    return fail(done.error().in(operation));
  }
  vm().listeners.finish(tables);
  claim.settled();
  { const Turn given_up = std::move(turn); }

  const auto discarded = discard(blocks);
  turn = VMSPACE_TRY(vm().map.writer(operation));
  if (!discarded) {
    VMSPACE_TRY_IN(operation, add(turn, after, back, blocks));
  } else if (!range) {
    usable = detail::usable_for(requested, *fewer);
  }
  claim.end();
  return discarded ? discarded : fail(discarded.error().in(operation));
}

}  // namespace vmspace
