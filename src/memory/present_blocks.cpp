// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/present_blocks.hpp"

#include <algorithm>
#include <bit>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"

namespace vmspace {

namespace {

constexpr std::uint64_t smallest_block = 4096;

constexpr const char* none_operation = "PresentBlocks::none";

/// The lowest `count` bits, of at most 64.
constexpr std::uint64_t low_bits(std::uint64_t count) noexcept {
  return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

}  // namespace

Result<PresentBlocksPtr> PresentBlocks::none(std::uint64_t region_size, std::uint64_t block_size,
                                             std::uint64_t slot_size) {
  VMSPACE_TRY(detail::require_power_of_two(none_operation, block_size));
  if (block_size < smallest_block) {
    return fail({.code = Errc::invalid_argument,
                 .operation = none_operation,
                 .first = Operand::size(block_size),
                 .second = Operand::size(smallest_block),
                 .reason = "the block size must be at least 4 KiB"});
  }
  if (region_size == 0 || slot_size == 0)
    return fail({.code = Errc::zero_size, .operation = none_operation});
  VMSPACE_TRY(detail::require_multiple(none_operation, Operand::size(slot_size), block_size,
                                       "the slot size must be a multiple of the block size"));
  VMSPACE_TRY(
      detail::require_multiple(none_operation, Operand::size(region_size), block_size,
                               "the size of the region must be a multiple of the block size"));
  const auto blocks = std::make_shared<PresentBlocks>(PresentBlocks());
  blocks->region_size_ = region_size;
  blocks->block_size_ = block_size;
  blocks->slot_size_ = slot_size;
  blocks->bits_.resize((region_size / block_size + 63) / 64);
  return blocks;
}

Result<void> PresentBlocks::check_run(Run run) const {
  constexpr const char* operation = "PresentBlocks::check_run";
  if (run.size == 0) return fail({.code = Errc::zero_size, .operation = operation});
  for (const std::uint64_t value : {run.offset, run.size}) {
    VMSPACE_TRY(detail::require_multiple(operation, Operand::size(value), block_size_,
                                         "offset and size must be multiples of the block size"));
  }
  if (run.offset >= region_size_ || run.size > region_size_ - run.offset) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::span(run.offset, run.size),
                 .second = Operand::span(0, region_size_),
                 .reason = "the blocks must lie within the region"});
  }
  return {};
}

Result<PresentBlocksPtr> PresentBlocks::with(Run run) const {
  return with(std::span(&run, 1));
}

Result<PresentBlocksPtr> PresentBlocks::with(std::span<const Run> runs) const {
  return changed(runs, true, "PresentBlocks::with");
}

Result<PresentBlocksPtr> PresentBlocks::without(Run run) const {
  return changed(std::span(&run, 1), false, "PresentBlocks::without");
}

Result<PresentBlocksPtr> PresentBlocks::changed(std::span<const Run> runs, bool to_present,
                                                const char* operation) const {
  const auto after = std::make_shared<PresentBlocks>(*this);
  for (const Run& run : runs) {
    VMSPACE_TRY(after->check_change(run, to_present, operation));
    after->set(run, to_present);
  }
  return after;
}

Result<void> PresentBlocks::check_change(Run run, bool to_present, const char* operation) const {
  VMSPACE_TRY_IN(operation, check_run(run));
  const std::uint64_t ready = bytes_alike(run.offset, run.size, !to_present);
  if (ready == run.size) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .first = Operand::span(run.offset + ready, block_size_),
               .reason = to_present ? "the block is plugged already" : "the block is not plugged"});
}

void PresentBlocks::set(Run run, bool to_present) noexcept {
  present_size_ += to_present ? run.size : 0 - run.size;
  const std::uint64_t end = (run.offset + run.size) / block_size_;
  for (std::uint64_t block = run.offset / block_size_; block < end;) {
    const std::uint64_t count = std::min(end - block, 64 - block % 64);
    const std::uint64_t mask = low_bits(count) << (block % 64);
    std::uint64_t& word = bits_[block / 64];
    word = to_present ? word | mask : word & ~mask;
    block += count;
  }
}

std::uint64_t PresentBlocks::alike(std::uint64_t first, std::uint64_t end,
                                   bool present) const noexcept {
  std::uint64_t block = first;
  while (block < end) {
    const std::uint64_t word = bits_[block / 64] >> (block % 64);
    const auto count =
        static_cast<std::uint64_t>(present ? std::countr_one(word) : std::countr_zero(word));
    const std::uint64_t in_word = 64 - block % 64;
    block += std::min(count, in_word);
    if (count < in_word) break;
  }
  return std::min(block, end) - first;
}

std::uint64_t PresentBlocks::bytes_alike(std::uint64_t offset, std::uint64_t size,
                                         bool present) const noexcept {
  if (offset >= region_size_ || size == 0) return 0;
  const std::uint64_t in_region = std::min(size, region_size_ - offset);
  const std::uint64_t first = offset / block_size_;
  const std::uint64_t last = (offset + (in_region - 1)) / block_size_;
  const std::uint64_t bytes = alike(first, last + 1, present) * block_size_;
  const std::uint64_t before = offset % block_size_;
  return bytes == 0 ? 0 : std::min(in_region, bytes - before);
}

std::uint64_t PresentBlocks::present_after(std::uint64_t offset,
                                           std::uint64_t size) const noexcept {
  return bytes_alike(offset, size, true);
}

std::uint64_t PresentBlocks::absent_after(std::uint64_t offset, std::uint64_t size) const noexcept {
  return bytes_alike(offset, size, false);
}

std::uint64_t PresentBlocks::present_before(std::uint64_t end, std::uint64_t size) const noexcept {
  if (end == 0 || end > region_size_ || size == 0) return 0;
  const std::uint64_t most = std::min(size, end);
  const std::uint64_t last = (end - 1) / block_size_;
  const std::uint64_t first = (end - most) / block_size_;
  std::uint64_t block = last + 1;  // all from here on are present
  while (block > first) {
    const std::uint64_t in_word = (block - 1) % 64 + 1;
    const std::uint64_t word = bits_[(block - 1) / 64] << (64 - in_word);
    const std::uint64_t count =
        std::min(static_cast<std::uint64_t>(std::countl_one(word)), in_word);
    block -= count;
    if (count < in_word) break;
  }
  return block > last ? 0 : std::min(most, end - block * block_size_);
}

std::vector<PresentBlocks::Run> PresentBlocks::runs() const {
  std::vector<Run> all;
  for (std::uint64_t at = 0; at < region_size_;) {
    at += absent_after(at, region_size_ - at);
    const std::uint64_t size = present_after(at, region_size_ - at);
    if (size != 0) all.push_back({.offset = at, .size = size});
    at += size;
  }
  return all;
}

std::vector<PresentBlocks::Run> PresentBlocks::slots() const {
  std::vector<Run> all;
  for (std::uint64_t at = 0; at < region_size_;) {
    at += absent_after(at, region_size_ - at);
    if (at >= region_size_) break;
    const std::uint64_t offset = at - at % slot_size_;
    const std::uint64_t size = std::min(slot_size_, region_size_ - offset);
    all.push_back({.offset = offset, .size = size});
    at = offset + size;
  }
  return all;
}

}  // namespace vmspace
