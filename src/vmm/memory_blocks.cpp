// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/memory_blocks.hpp"

#include <algorithm>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "vmm/memory_blocks_state.hpp"

namespace vmspace {

namespace {

using detail::usable_for;
using Run = PresentBlocks::Run;

constexpr std::uint64_t default_slot_size = std::uint64_t{128} << 20;
constexpr const char* create_name = "MemoryBlocks::create";

/// What must be known before anything is mapped.
Result<void> check_memory(const AddressSpaceRegion& region, const BlockOptions& options,
                          const MapOptions& how) {
  const auto refuse = [&](Errc code, const char* reason) {
    return fail({.code = code,
                 .operation = create_name,
                 .first = detail::operand(region.guest_range()),
                 .reason = reason,
                 .text = region.name()});
  };
  if (!region.base().is_aligned(options.block_size))
    return refuse(Errc::misaligned, "base must be a multiple of the block size");
  if (!allows(region.protection(), Protection::read_write))
    return refuse(Errc::access_denied, "the guest must be able to read and write the region");
  const BackingSpec& spec = region.backing();
  const MemorySource source = how.backing ? how.backing->source() : spec.source;
  if (source == MemorySource::device || source == MemorySource::external) {
    return refuse(Errc::unsupported,
                  "blocks are given back to the host, which only memory mapped here can be");
  }
  const bool is_file = source == MemorySource::file;
  const bool can_be_discarded = how.backing
                                    ? how.backing->is_shared() && how.backing->is_discardable()
                                    : spec.is_shared() && spec.discardable;
  if (is_file && !can_be_discarded) {
    return refuse(Errc::unsupported,
                  "blocks of a file are given back as holes in it: it must be shared, and "
                  "BackingSpec::discardable");
  }
  return {};
}

/// The blocks that a region begins with.
Result<PresentBlocksPtr> first_blocks(const AddressSpaceRegion& region,
                                      const BlockOptions& options) {
  const std::uint64_t slot_size =
      options.slot_size != 0 ? options.slot_size : std::max(default_slot_size, options.block_size);
  const PresentBlocksPtr none =
      VMSPACE_TRY(PresentBlocks::none(region.size(), options.block_size, slot_size));
  for (const std::uint64_t size : {options.requested_size, options.usable_size}) {
    if (size > region.size()) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = create_name,
                   .first = Operand::size(size),
                   .second = Operand::size(region.size()),
                   .reason = "the requested and the usable size must not exceed the region's"});
    }
    VMSPACE_TRY(detail::require_multiple(
        create_name, Operand::size(size), options.block_size,
        "the requested and the usable size must be multiples of the block size"));
  }
  std::vector<Run> plugged;
  plugged.reserve(options.plugged.size());
  for (const GuestRange& range : options.plugged) {
    if (range.base < region.base()) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = create_name,
                   .first = detail::operand(range),
                   .second = detail::operand(region.guest_range()),
                   .reason = "what is plugged must lie within the region"});
    }
    plugged.push_back({.offset = range.base.value() - region.base().value(), .size = range.size});
  }
  return none->with(plugged);
}

}  // namespace

MemoryBlocks::MemoryBlocks(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}

Result<MemoryBlocks> MemoryBlocks::create(const VmMemory& memory, RegionOptions region,
                                          const BlockOptions& options) {
  return create(memory, std::move(region), options, memory.state_->options);
}

Result<MemoryBlocks> MemoryBlocks::create(const VmMemory& memory, RegionOptions region,
                                          const BlockOptions& options, const MapOptions& how) {
  region.hotplug = true;
  const auto described = VMSPACE_TRY_IN(create_name, AddressSpaceRegion::make(region));
  const auto blocks = first_blocks(*described, options);
  if (!blocks) return fail(blocks.error().in(create_name));
  VMSPACE_TRY(check_memory(*described, options, how));
  const std::uint64_t usable =
      options.usable_size != 0 ? options.usable_size : usable_for(options.requested_size, **blocks);
  MapOptions in_parts = how;
  in_parts.blocks = *blocks;
  // First what may run out of memory: a region that was plugged is nothing to be undone.
  auto state = std::make_shared<State>(memory, options.block_size, options.requested_size, usable);
  const MemoryRegionPtr mapped =
      VMSPACE_TRY_IN(create_name, memory.plug(std::move(region), in_parts));
  state->adopt(*mapped);
  return MemoryBlocks(std::move(state));
}

Result<void> MemoryBlocks::plug(GuestRange range) const {
  return state_->plug(range, "MemoryBlocks::plug");
}

Result<void> MemoryBlocks::unplug(GuestRange range, std::chrono::nanoseconds timeout) const {
  return state_->unplug(range, timeout, "MemoryBlocks::unplug");
}

Result<void> MemoryBlocks::unplug_all(std::chrono::nanoseconds timeout) const {
  return state_->unplug(std::nullopt, timeout, "MemoryBlocks::unplug_all");
}

Result<void> MemoryBlocks::resize(std::uint64_t requested_size) const {
  constexpr const char* operation = "MemoryBlocks::resize";
  const MemoryRegion& whole = *state_->whole;
  VMSPACE_TRY(detail::require_multiple(operation, Operand::size(requested_size), state_->block_size,
                                       "the requested size must be a multiple of the block size"));
  if (requested_size > whole.size()) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::size(requested_size),
                 .second = Operand::size(whole.size()),
                 .reason = "the requested size must not exceed the region's",
                 .text = whole.description().name()});
  }
  const auto begun = VMSPACE_TRY(state_->memory.state_->map.writer(operation));
  const auto region = VMSPACE_TRY(state_->find(begun.current().memory, operation));
  state_->requested = requested_size;
  state_->usable = std::max(state_->usable.load(), usable_for(requested_size, *region->blocks()));
  return {};
}

Result<BlockState> MemoryBlocks::state(GuestRange range) const {
  constexpr const char* operation = "MemoryBlocks::state";
  const auto map = state_->memory.map();
  const auto region = VMSPACE_TRY(state_->find(map->memory, operation));
  const Run run = VMSPACE_TRY(state_->run_of(*region, range, operation));
  if (region->blocks()->present_after(run.offset, run.size) == run.size) return BlockState::plugged;
  if (region->blocks()->absent_after(run.offset, run.size) == run.size)
    return BlockState::unplugged;
  return BlockState::mixed;
}

std::vector<GuestRange> MemoryBlocks::plugged() const {
  const MemoryRegionPtr now = region();
  std::vector<GuestRange> ranges;
  if (now == nullptr) return ranges;
  const auto runs = now->blocks()->runs();
  ranges.reserve(runs.size());
  for (const Run& run : runs)
    ranges.push_back({.base = GuestAddress(now->base().value() + run.offset), .size = run.size});
  return ranges;
}

std::uint64_t MemoryBlocks::plugged_size() const {
  const MemoryRegionPtr now = region();
  return now == nullptr ? 0 : now->blocks()->present_size();
}

std::uint64_t MemoryBlocks::requested_size() const noexcept {
  return state_->requested;
}

std::uint64_t MemoryBlocks::usable_size() const noexcept {
  return state_->usable;
}

std::uint64_t MemoryBlocks::block_size() const noexcept {
  return state_->block_size;
}

MemoryRegionPtr MemoryBlocks::region() const {
  const auto map = state_->memory.map();
  const auto found = state_->find(map->memory, "MemoryBlocks::region");
  return found ? *found : nullptr;
}

}  // namespace vmspace
