// SPDX-License-Identifier: Apache-2.0
//
// A guest that plugs and unplugs blocks of a region (virtio-mem): what it finds in a block is what was
// written since it was plugged, or zeros.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

using namespace std::chrono_literals;

class Blocks final : public Activity {
 public:
  Blocks(Machine& machine, std::uint64_t seed)
      : Activity("blocks", seed),
        machine_(machine),
        blocks_(must(MemoryBlocks::create(
            machine.memory,
            {.name = "blocks",
             .base = Machine::blocks,
             .size = count * block,
             .backing = {.source = MemorySource::shmem}},
            {.block_size = block, .slot_size = 4 * block, .requested_size = count * block}))) {}

  void step() override {
    const std::size_t first = random(count);
    const std::size_t length = 1 + random(std::min<std::size_t>(8, count - first));
    const GuestRange run{address(first), length * block};
    const auto in_run = [&](auto&& holds) {
      return std::all_of(values_.begin() + static_cast<long>(first),
                         values_.begin() + static_cast<long>(first + length), holds);
    };
    if (in_run([](const auto& value) { return !value; })) {
      must(blocks_.plug(run));
      for (std::size_t i = first; i < first + length; ++i) {
        require(must(read(i)) == 0, "a block that was plugged is zeros");
        values_[i] = random(1'000'000);
        must(machine_.memory.map()->memory.write(address(i), *values_[i]));
      }
    } else if (in_run([](const auto& value) { return value.has_value(); })) {
      must(blocks_.unplug(run, 60s));
      for (std::size_t i = first; i < first + length; ++i) {
        values_[i].reset();
        must_refuse(read(i), Errc::not_found);
      }
    } else {
      // Nearly all may be plugged, so that it would be too much as well.
      const bool is_too_much = blocks_.plugged_size() + run.size > count * block;
      must_refuse(blocks_.plug(run), is_too_much ? Errc::limit_exceeded : Errc::bad_state);
      must_refuse(blocks_.unplug(run, 60s), Errc::bad_state);
      require(must(blocks_.state(run)) == BlockState::mixed, "some blocks of the run are plugged");
    }
    const std::size_t any = random(count);
    if (values_[any])
      require(must(read(any)) == *values_[any], "a block keeps what is written");
    else
      must_refuse(read(any), Errc::not_found);
    must_refuse(blocks_.plug({Machine::blocks, block / 2}), Errc::misaligned);
    must_refuse(blocks_.plug({address(count), block}), Errc::out_of_bounds);
  }

  void finish() override {
    const auto plugged = std::count_if(values_.begin(), values_.end(),
                                       [](const auto& value) { return value.has_value(); });
    require(blocks_.plugged_size() == static_cast<std::uint64_t>(plugged) * block,
            "what is plugged is what was plugged and not unplugged");
    must(blocks_.unplug_all(60s));
    must(blocks_.resize(count * block));
    values_ = {};
  }

 private:
  static constexpr std::uint64_t block = 64_KiB;
  static constexpr std::size_t count = 32;

  static GuestAddress address(std::size_t index) {
    return GuestAddress(Machine::blocks.value() + index * block);
  }
  [[nodiscard]] Result<std::uint64_t> read(std::size_t index) const {
    return machine_.memory.map()->memory.read<std::uint64_t>(address(index));
  }

  Machine& machine_;
  MemoryBlocks blocks_;
  std::array<std::optional<std::uint64_t>, count> values_;  ///< of the blocks that are plugged
};

}  // namespace

std::unique_ptr<Activity> make_blocks(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Blocks>(machine, seed);
}

}  // namespace vmspace::soak
