// SPDX-License-Identifier: Apache-2.0
//
// 64 GiB of memory in blocks of 2 MiB, plugged and unplugged at random while tables refuse, system
// calls fail and copies are held, against a list of bools and what was written to each block. After
// each step bitmap, memory, KVM's slots, DMA's mappings, the recorder's table, the dirty log and a
// snapshot agree with it.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/vmm.hpp"

#include "vmm/fake_kvm.hpp"

namespace vmspace::memory_blocks_model_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;

constexpr std::uint64_t block = 2_MiB;
constexpr std::uint64_t slot = 128_MiB;
constexpr GuestAddress base{4_GiB};
constexpr std::uint64_t size = 64_GiB;
constexpr std::uint64_t count = size / block;
constexpr std::uint64_t blocks_a_slot = slot / block;

GuestRange run_of(std::uint64_t first, std::uint64_t blocks) {
  return {GuestAddress(base.value() + first * block), blocks * block};
}

/// Mappings for DMA; each is unmapped as it was mapped.
class Iommu final : public DmaTarget {
 public:
  [[nodiscard]] std::string_view name() const noexcept override { return "iommu"; }
  [[nodiscard]] Result<DmaLimits> limits() const override { return DmaLimits(); }
  [[nodiscard]] Result<void> map(const DmaMapping& mapping) override {
    if (fails()) return fail({.code = Errc::os, .operation = "Iommu::map"});
    RC_ASSERT(mapped.emplace(mapping.iova, mapping.size).second);
    return {};
  }
  [[nodiscard]] Result<void> unmap(const DmaMapping& mapping) noexcept override {
    if (fails()) return fail({.code = Errc::os, .operation = "Iommu::unmap"});
    const auto found = mapped.find(mapping.iova);
    const bool is_known = found != mapped.end() && found->second == mapping.size;
    EXPECT_TRUE(is_known);
    if (is_known) mapped.erase(found);
    return {};
  }

  std::map<std::uint64_t, std::uint64_t> mapped;
  int fail_in = -1;  ///< calls until the one that fails; none below 0

 private:
  bool fails() noexcept { return fail_in >= 0 && fail_in-- == 0; }
};

/// Lets a system call fail beside those of the fake KVM.
class FailingCalls {
 public:
  FailingCalls() : before_(detail::current_system_calls), table_(*before_) {
    table_.mprotect = [](void* address, std::size_t bytes, int protection) {
      return fails() ? -1 : detail::real_system_calls.mprotect(address, bytes, protection);
    };
    table_.fallocate = [](int fd, int mode, off_t offset, off_t bytes) {
      return fails() ? -1 : detail::real_system_calls.fallocate(fd, mode, offset, bytes);
    };
    fail_in = -1;
    detail::current_system_calls = &table_;
  }
  FailingCalls(const FailingCalls&) = delete;
  FailingCalls& operator=(const FailingCalls&) = delete;
  ~FailingCalls() { detail::current_system_calls = before_; }

  inline static int fail_in = -1;  ///< calls until the one that fails; none below 0
  inline static bool has_failed = false;

 private:
  static bool fails() {
    if (fail_in < 0 || fail_in-- != 0) return false;
    has_failed = true;
    errno = ENOMEM;
    return true;
  }

  const detail::SystemCalls* before_;
  detail::SystemCalls table_;
};

std::size_t mappings_of_this_process() {
  std::ifstream maps("/proc/self/maps");
  return static_cast<std::size_t>(
      std::count(std::istreambuf_iterator<char>(maps), std::istreambuf_iterator<char>(), '\n'));
}

class MemoryBlocksModel : public test::FakeKvm {
 protected:
  void start() {
    slot_limit = 600;
    auto memslots = std::make_shared<KvmMemslots>(make());
    RC_ASSERT(memory.add_listener(memslots).has_value());
    auto target = std::make_unique<Iommu>();
    iommu = target.get();
    auto mappings = DmaMappings::create(std::move(target));
    RC_ASSERT(mappings.has_value());
    RC_ASSERT(memory.add_listener(std::make_shared<DmaMappings>(std::move(*mappings))).has_value());
    RC_ASSERT(memory.add_listener(recorder).has_value());
    auto made = MemoryBlocks::create(
        memory,
        {.name = "mem0", .base = base, .size = size, .backing = {.source = MemorySource::shmem}},
        {.requested_size = size});
    RC_ASSERT(made.has_value());
    blocks.emplace(std::move(*made));
    mappings_before = mappings_of_this_process();
  }

  void step() {
    const std::uint64_t first = *rc::gen::inRange<std::uint64_t>(0, 4) == 0
                                    ? *rc::gen::inRange<std::uint64_t>(0, count)
                                    : *rc::gen::inRange<std::uint64_t>(0, 200);
    switch (*rc::gen::inRange(0, 12)) {
      case 0: harvest(); break;
      case 1: guest_writes_somewhere(first); break;
      case 2: unplug_all(); break;
      case 3: every_other(first); break;
      case 4: snapshot(); break;
      case 5:
      case 6: write(first); break;
      default: plug_or_unplug(first); break;
    }
    check();
  }

  /// A run that is plugged, or not, from `first`: half of the time a part of one, to be refused.
  void plug_or_unplug(std::uint64_t first) {
    const bool is_plugged = model[first];
    std::uint64_t blocks_in_run = 1;
    const auto most = *rc::gen::inRange<std::uint64_t>(1, 150);
    while (blocks_in_run < most && first + blocks_in_run < count &&
           model[first + blocks_in_run] == is_plugged)
      ++blocks_in_run;
    const bool asks_for_more = *rc::gen::inRange(0, 4) == 0;
    const std::uint64_t asked = std::min(count - first, blocks_in_run + (asks_for_more ? 1 : 0));
    bool fits = true;
    for (std::uint64_t i = 0; i < asked; ++i)
      fits &= model[first + i] == is_plugged;

    const std::optional<GuestMemory> held = is_plugged && *rc::gen::inRange(0, 6) == 0
                                                ? std::optional(memory.map()->memory)
                                                : std::nullopt;
    fail_something();
    const auto done = attempt([&] {
      return is_plugged ? blocks->unplug(run_of(first, asked), held ? 1ms : 10s)
                        : blocks->plug(run_of(first, asked));
    });
    fail_nothing();
    if (!fits) RC_ASSERT(!done.has_value());
    if (held) RC_ASSERT(!done.has_value());
    // Readers lacked them while they were waited for.
    for (std::uint64_t i = 0; held && fits && i < asked; ++i)
      dirty.insert(first + i);
    if (!done) return lost(first, asked);
    for (std::uint64_t i = 0; i < asked; ++i) {
      model[first + i] = !is_plugged;
      stamps.erase(first + i);
      dirty.erase(first + i);
      if (!is_plugged) dirty.insert(first + i);
    }
  }

  /// What a listener throws counts as its refusal.
  template <typename Call>
  static Result<void> attempt(Call call) {
    try {
      return call();
    } catch (const std::bad_alloc&) {
      return fail({.code = Errc::bad_state, .operation = "attempt"});
    }
  }

  /// After an unplug that failed because pages could not be given back, what the blocks held may be
  /// lost, and they count as written.
  void lost(std::uint64_t first, std::uint64_t blocks_in_run) {
    if (!FailingCalls::has_failed) return;
    for (std::uint64_t i = first; i < first + blocks_in_run; ++i) {
      if (!model[i]) continue;
      stamps.erase(i);
      dirty.insert(i);
    }
  }

  void unplug_all() {
    if (*rc::gen::inRange(0, 3) != 0) return;
    fail_something();
    const auto done = attempt([&] { return blocks->unplug_all(10s); });
    fail_nothing();
    if (!done) return lost(0, count);
    model.assign(count, false);
    stamps.clear();
    dirty.clear();
  }

  /// Every other block of some slots: the most runs that there can be.
  void every_other(std::uint64_t first) {
    for (std::uint64_t i = first; i < std::min(count, first + 40); i += 2) {
      if (model[i]) continue;
      RC_ASSERT(blocks->plug(run_of(i, 1)).has_value());
      model[i] = true;
      dirty.insert(i);
    }
  }

  void write(std::uint64_t first) {
    const auto now = memory.map();
    const GuestAddress at = run_of(first, 1).base;
    const auto done = now->memory.write(at, ++next_stamp);
    RC_ASSERT(done.has_value() == model[first]);
    if (!done) return RC_ASSERT(done.error().code == Errc::not_found);
    stamps[first] = next_stamp;
    dirty.insert(first);
  }

  /// The guest writes where its slots reach: to blocks that it was not given as well.
  void guest_writes_somewhere(std::uint64_t first) {
    guest_writes(run_of(first, 1).base.value() + 4096);
    if (model[first] && log) dirty.insert(first);
  }

  void harvest() {
    if (!log) {
      auto started = memory.start_dirty_log();
      RC_ASSERT(started.has_value());
      log.emplace(std::move(*started));
      dirty.clear();
      return;
    }
    const auto ranges = log->harvest();
    RC_ASSERT(ranges.has_value());
    std::set<std::uint64_t> reported;
    for (const GuestRange& range : *ranges) {
      const std::uint64_t first = (range.base.value() - base.value()) / block;
      const std::uint64_t last = (range.base.value() + range.size - 1 - base.value()) / block;
      for (std::uint64_t i = first; i <= last; ++i)
        reported.insert(i);
    }
    RC_ASSERT(std::ranges::includes(reported, dirty));
    for (const std::uint64_t i : reported)
      RC_ASSERT(model[i]);
    dirty.clear();
  }

  void snapshot() {
    const int fd = ::memfd_create("snapshot", MFD_CLOEXEC);
    const auto saved = save_snapshot(memory.map()->memory, fd);
    RC_ASSERT(saved.has_value());
    std::set<std::uint64_t> written;
    for (const auto& [index, stamp] : stamps)
      written.insert(index);
    RC_ASSERT(saved->stored >= written.size() * 4096);
    const auto regions = inspect_snapshot(fd);
    RC_ASSERT(regions.has_value());
    for (const auto& [index, stamp] : stamps) {
      std::uint64_t word = 0;
      RC_ASSERT(::pread(fd, &word, sizeof word,
                        static_cast<off_t>(regions->front().offset + index * block)) ==
                sizeof word);
      RC_ASSERT(word == stamp);
    }
    ::close(fd);
  }

  void fail_something() {
    FailingCalls::has_failed = false;
    const int in = *rc::gen::inRange(0, 6);
    switch (*rc::gen::inRange(0, 9)) {
      case 0: FakeKvm::fail_next(in); break;
      case 1: iommu->fail_in = in * 7; break;
      case 2: recorder->refuse(static_cast<std::size_t>(in)); break;
      case 3: FailingCalls::fail_in = in; break;
      case 4: recorder->run_out_of_memory(static_cast<std::size_t>(in)); break;
      default: break;
    }
  }
  void fail_nothing() {
    fail_change.reset();
    iommu->fail_in = -1;
    recorder->refuse(0, 0);
    FailingCalls::fail_in = -1;
  }

  void check() {
    RC_ASSERT(memory.check_invariants().has_value());
    const auto collected = memory.collect();
    if (!collected) RC_FAIL(collected.error().message());
    RC_ASSERT(memory.unsettled().value().empty());

    std::vector<GuestRange> runs;
    std::map<std::uint64_t, std::uint64_t> mapped;
    std::set<std::uint64_t> wanted_slots;
    for (std::uint64_t i = 0; i < count; ++i) {
      if (!model[i]) continue;
      const GuestRange one = run_of(i, 1);
      mapped.emplace(one.base.value(), block);
      wanted_slots.insert(run_of(i - i % blocks_a_slot, 1).base.value());
      if (!runs.empty() && runs.back().end() == one.base) {
        runs.back().size += block;
      } else {
        runs.push_back(one);
      }
    }
    RC_ASSERT(blocks->plugged() == runs);
    RC_ASSERT(blocks->plugged_size() == mapped.size() * block);
    RC_ASSERT(iommu->mapped == mapped);
    std::set<std::uint64_t> there;
    for (const auto& [number, each] : slots) {
      RC_ASSERT(each.range.size() == slot);
      there.insert(each.range.min());
    }
    RC_ASSERT(there == wanted_slots);
    const auto now = memory.map();
    const auto same = recorder->check_equals(now->memory);
    if (!same) RC_FAIL(same.error().message());
    for (const auto& [index, stamp] : stamps)
      RC_ASSERT(now->memory.read<std::uint64_t>(run_of(index, 1).base).value() == stamp);
    // Whole slots differ from their neighbours, never single blocks.
    RC_ASSERT(mappings_of_this_process() <= mappings_before + 2 * (size / slot));
  }

  FailingCalls failing;
  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  Iommu* iommu = nullptr;
  std::shared_ptr<MemoryRecorder> recorder =
      std::make_shared<MemoryRecorder>("recorder", SectionUnit::block);
  std::optional<MemoryBlocks> blocks;
  std::optional<VmDirtyLog> log;

  std::vector<bool> model = std::vector<bool>(count);
  std::map<std::uint64_t, std::uint64_t> stamps;  ///< the first word of a block
  std::set<std::uint64_t> dirty;                  ///< blocks that the next harvest must report
  std::uint64_t next_stamp = 0;
  std::size_t mappings_before = 0;
};

RC_GTEST_FIXTURE_PROP(MemoryBlocksModel, EverythingAgreesWhateverFails, ()) {
  start();
  const int steps = *rc::gen::inRange(1, 40);
  for (int i = 0; i < steps; ++i)
    step();
}

}  // namespace
}  // namespace vmspace::memory_blocks_model_test
