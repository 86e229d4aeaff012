// SPDX-License-Identifier: Apache-2.0
//
// A guest of KVM on two processors that uses memory all the time, while that memory is plugged,
// unplugged and moved, a thousand times. What it proves, after each change:
// - no access is lost, and none is wrongly answered: each read gives what the memory that was there
//   holds, or all ones where none was, and each write is in the memory, or has reached the host;
// - what the guest does after a change finds the memory as it is then;
// - the dirty log misses no page, where this machine's KVM keeps one: a copy that is brought up to date
//   with nothing but what harvests report equals all of the guest's memory while the processors are
//   paused, and so has every page that the guest wrote, whichever slot it was in by then.
//
// Longer than 450 lines: the guest, the memory that it uses and what is checked after each change can only
// be read together.

#include "vm.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

#include "guest.hpp"

// The guest, for each of its processors; %rdi is the address of its Params, whose offsets these are.
// In each turn it counts in a word of the window, which is always somewhere, and stores the number of
// the turn in every place, where memory comes and goes. What it reads must be a tag that the host left
// there, or all ones where there is no memory.
asm(R"(
        .pushsection .rodata
        .globl  mover_begin, mover_end
mover_begin:
        mov     0(%rdi), %rdx           # port
turn:
        incq    8(%rdi)                 # started
        mov     8(%rdi), %rax
        mov     24(%rdi), %rbx          # window
        incq    (%rbx)
        mov     8(%rbx), %rcx
        cmp     32(%rdi), %rcx          # tags of the window
        je      1f
        cmp     40(%rdi), %rcx
        jne     wrong
1:      lea     48(%rdi), %rsi          # places
        mov     $3, %r8d
2:      mov     (%rsi), %rbx            # address
        mov     %rax, 8(%rbx)
        mov     (%rbx), %rcx
        cmp     8(%rsi), %rcx           # tag
        je      3f
        cmp     $-1, %rcx
        jne     wrong
        incq    16(%rsi)                # absent
3:      add     $24, %rsi
        dec     %r8d
        jnz     2b
        mov     %rax, 16(%rdi)          # done
        jmp     turn
wrong:
        mov     %ecx, %eax
        out     %eax, %dx
4:      pause
        jmp     4b
mover_end:
        .popsection
)");
extern "C" const std::byte mover_begin[];
extern "C" const std::byte mover_end[];

namespace vmspace::vm_memory_kvm_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;
using tiny_vm::Event;

constexpr auto long_enough = 60s;  // for what takes milliseconds
constexpr std::size_t rounds = 250;
constexpr std::size_t changes_a_round = 4;
static_assert(rounds * changes_a_round >= 1000);

/// A word of memory that comes and goes, with a word for the guest to write behind it.
struct Place {
  std::uint64_t address;
  std::uint64_t tag;
  std::uint64_t absent = 0;  ///< reads that gave all ones
};

struct Params {
  std::uint64_t port;
  std::uint64_t started = 0;  ///< the number of this turn
  std::uint64_t done = 0;     ///< of the last one that is complete
  std::uint64_t window;
  std::array<std::uint64_t, 2> window_tags;
  std::array<Place, 3> places;
};
static_assert(offsetof(Params, done) == 16 && offsetof(Params, window) == 24);
static_assert(offsetof(Params, window_tags) == 32 && offsetof(Params, places) == 48);
static_assert(sizeof(Place) == 24 && offsetof(Place, tag) == 8 && offsetof(Place, absent) == 16);

constexpr std::size_t cpus = 2;
constexpr std::uint64_t size = 64_KiB;
// The window moves between these two, which overlap: it needs the gate.
constexpr std::array<std::uint64_t, 2> window_bases{0xd000'0000, 0xd000'0000 + 32_KiB};
// A BAR that moves between these two, and is at both for a moment.
constexpr std::array<std::uint64_t, 2> bar_bases{0xd800'0000, 0xe000'0000};
constexpr std::uint64_t dimm_base = 8_GiB;

constexpr std::uint64_t tag_of(std::uint64_t offset) {
  return 0x7a60'0000'0000'0000 + offset;
}
constexpr GuestAddress params_of(std::size_t cpu) {
  return GuestAddress(0x1000 + 0x400 * cpu);
}
/// Where a processor's place begins in its region. Both places of the BAR are words of one region.
constexpr std::uint64_t offset_of(std::size_t place, std::size_t cpu) {
  return 0x1000 * (place + 1) + 64 * cpu;
}

/// The end of a migration: has what the log reported, as it was when it was read after that.
class Copy {
 public:
  explicit Copy(const GuestMemory& memory) {
    for (const MemoryRegionPtr& region : memory.regions())
      take(memory, region->guest_range());
  }
  void take(const GuestMemory& memory, const GuestRange& range) {
    for (std::uint64_t at = 0; at < range.size; at += page)
      std::memcpy(pages_[range.base.value() + at].data(), host(memory, range.base.value() + at),
                  page);
  }
  /// The first page that is not what the guest sees.
  [[nodiscard]] std::optional<std::uint64_t> differs(const GuestMemory& memory) {
    for (const MemoryRegionPtr& region : memory.regions()) {
      for (std::uint64_t at = 0; at < region->size(); at += page) {
        const std::uint64_t address = region->base().value() + at;
        if (std::memcmp(pages_[address].data(), host(memory, address), page) != 0) return address;
      }
    }
    return {};
  }

 private:
  static constexpr std::size_t page = 4096;
  static const void* host(const GuestMemory& memory, std::uint64_t address) {
    return memory.const_host_address({GuestAddress(address), page}).value();
  }
  std::map<std::uint64_t, std::array<std::byte, page>> pages_;
};

class VmMemoryWithGuest : public testing::Test {
 protected:
  /// A processor, and what its accesses to nothing have been.
  struct Cpu {
    std::unique_ptr<tiny_vm::Vcpu> vcpu;
    struct Absent {
      std::uint64_t reads = 0;
      std::uint64_t last_written = 0;
    };
    std::array<Absent, 3> absent = {};
  };

  void SetUp() override {
    if (!vm) GTEST_SKIP() << "no virtual machine here: " << vm.error().message();
    auto slots = KvmMemslots::create(vm->fd());
    ASSERT_THAT(slots, IsOk());
    VMSPACE_ASSERT_OK(memory.add_listener(std::make_shared<KvmMemslots>(*std::move(slots))));
    VMSPACE_ASSERT_OK(memory.add_listener(recorder));
    VMSPACE_ASSERT_OK(memory.set_gate(gate));
    ASSERT_THAT(memory.plug({.name = "ram",
                             .base = GuestAddress(0),
                             .size = 2_MiB,
                             .backing = {.source = MemorySource::shmem}}),
                IsOk());
    window = plug("window", window_bases[0], window_memory);
    bar = plug("bar", bar_bases[0], bar_memory);
    ASSERT_TRUE(window && bar);
    for (std::uint64_t offset = 0; offset < size; offset += 64) {
      write_tag(window_view, offset + 8, tag_of(offset));
      write_tag(bar_view, offset, tag_of(offset));
      write_tag(dimm_view, offset, tag_of(offset));
    }
    start();
  }
  void TearDown() override { processors.clear(); }

  static Backing open() { return Backing::open({.source = MemorySource::shmem}, size).value(); }
  static void write_tag(const MemoryMapping& view, std::uint64_t offset, std::uint64_t tag) {
    std::memcpy(view.data() + offset, &tag, sizeof tag);
  }
  /// A word that the guest writes.
  static std::uint64_t word(const MemoryMapping& view, std::uint64_t offset) {
    return __atomic_load_n(reinterpret_cast<const std::uint64_t*>(view.data() + offset),
                           __ATOMIC_ACQUIRE);
  }
  AddressSpaceRegionPtr plug(const char* name, std::uint64_t base, const Backing& backing) const {
    const bool is_ram = base >= 4_GiB;
    const auto plugged =
        memory.plug({.name = name,
                     .type = is_ram ? RegionType::default_memory : RegionType::device_memory,
                     .base = GuestAddress(base),
                     .size = size,
                     .backing = {.source = MemorySource::shmem}},
                    {.backing = backing});
    EXPECT_THAT(plugged, IsOk());
    return plugged ? (*plugged)->shared_description() : nullptr;
  }

  void start() {
    const auto map = memory.map();
    auto start = tiny_vm::load_code(map->memory, std::span(mover_begin, mover_end));
    ASSERT_THAT(start, IsOk());
    start->user_mode = true;
    processors.resize(cpus);
    for (std::size_t cpu = 0; cpu < cpus; ++cpu) {
      const std::uint64_t at = window_bases[1] + 0x1000 * (cpu + 1);
      const auto place = [cpu](std::uint64_t base, std::size_t index) {
        return Place{.address = base + offset_of(index, cpu), .tag = tag_of(offset_of(index, cpu))};
      };
      VMSPACE_ASSERT_OK(map->memory.write(
          params_of(cpu),
          Params{.port = 0x1000,
                 .window = at,
                 .window_tags = {tag_of(at - window_bases[0]), tag_of(at - window_bases[1])},
                 .places = {place(dimm_base, 0), place(bar_bases[0], 1), place(bar_bases[1], 2)}}));
      start->argument = params_of(cpu);
      start->id = static_cast<unsigned>(cpu);
      auto vcpu = tiny_vm::Vcpu::start(*vm, *start, gate);
      ASSERT_THAT(vcpu, IsOk());
      processors[cpu].vcpu = *std::move(vcpu);
    }
  }

  Params params(std::size_t cpu) const {
    return memory.map()->memory.read<Params>(params_of(cpu)).value();
  }
  std::uint64_t load(std::size_t cpu, std::size_t field) const {
    return memory.map()
        ->memory
        .load<std::uint64_t>(GuestAddress(params_of(cpu).value() + field),
                             std::memory_order_acquire)
        .value();
  }

  /// Takes an event of a processor, and waits for it up to `limit`; false when none comes.
  bool take_event(std::size_t cpu, std::chrono::seconds limit) {
    const auto event = processors[cpu].vcpu->next_event(limit);
    if (!event) {
      EXPECT_THAT(event, HasError(Errc::timed_out));
      return false;
    }
    for (std::size_t place = 0; place < 3; ++place) {
      const std::uint64_t address = places[cpu][place];
      if (event->kind == Event::Kind::unmapped_read && event->address == address) {
        ++processors[cpu].absent[place].reads;
        return true;
      }
      if (event->kind == Event::Kind::unmapped_write && event->address == address + 8) {
        processors[cpu].absent[place].last_written = event->value;
        return true;
      }
    }
    ADD_FAILURE() << "processor " << cpu << ": event " << static_cast<int>(event->kind) << " at 0x"
                  << std::hex << event->address << ", value 0x" << event->value;
    return true;
  }

  /// Whether the guest's last turn is all there, with the processors paused. What is done in a turn
  /// that is not complete may be there, or not yet.
  bool is_complete(std::size_t cpu) const {
    const Params now = params(cpu);
    const auto is_in_turn = [&](std::uint64_t number) {
      return number == now.done || number == now.started;
    };
    const std::uint64_t counted = word(window_view, now.window - window_bases[0]) +
                                  word(window_view, now.window - window_bases[1]);
    bool all = is_in_turn(now.started) && now.started - now.done <= 1 && is_in_turn(counted);
    for (std::size_t place = 0; place < 3; ++place) {
      const Cpu::Absent& absent = processors[cpu].absent[place];
      all = all && is_in_turn(std::max(stored(cpu, place), absent.last_written)) &&
            absent.reads - now.places[place].absent <= 1;
    }
    return all;
  }
  /// The last number that the guest has stored in the memory of a place, wherever that is now.
  std::uint64_t stored(std::size_t cpu, std::size_t place) const {
    return word(place == 0 ? dimm_view : bar_view, offset_of(place, cpu) + 8);
  }

  /// No access was lost. A processor's thread may still have to tell of an exit.
  void expect_complete() {
    for (std::size_t cpu = 0; cpu < cpus; ++cpu) {
      while (take_event(cpu, 0s)) {
      }
      while (!is_complete(cpu))
        ASSERT_TRUE(take_event(cpu, long_enough)) << "processor " << cpu << " lost an access";
    }
  }

  /// Brings the copy up to date with what the log reports.
  void harvest() {
    if (!log) return;
    const auto written = log->harvest();
    ASSERT_THAT(written, IsOk());
    const auto map = memory.map();
    for (const GuestRange& range : *written)
      copy->take(map->memory, range);
  }

  /// After a change: everything is as it should be, and stays so while the guest goes on.
  void check() {
    std::array<std::uint64_t, cpus> started{};
    {
      const auto paused = gate->pause_vcpus();
      ASSERT_THAT(paused, IsOk());
      ASSERT_NO_FATAL_FAILURE(expect_complete());
      ASSERT_NO_FATAL_FAILURE(harvest());
      if (log) {
        ASSERT_EQ(copy->differs(memory.map()->memory), std::nullopt);
      }
      for (std::size_t cpu = 0; cpu < cpus; ++cpu)
        started[cpu] = load(cpu, offsetof(Params, started));
    }
    const auto deadline = std::chrono::steady_clock::now() + long_enough;
    for (std::size_t cpu = 0; cpu < cpus; ++cpu) {
      while (load(cpu, offsetof(Params, done)) <= started[cpu]) {
        ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "processor " << cpu << " is stuck";
        std::this_thread::sleep_for(20us);  // the guest needs the host's processors
      }
    }
    // The turn after `started` has found the memory as it is now.
    const auto paused = gate->pause_vcpus();
    ASSERT_THAT(paused, IsOk());
    ASSERT_NO_FATAL_FAILURE(expect_complete());
    const auto map = memory.map();
    for (std::size_t cpu = 0; cpu < cpus; ++cpu) {
      for (std::size_t place = 0; place < 3; ++place) {
        const bool is_there = map->memory.contains({GuestAddress(places[cpu][place]), 16});
        const std::uint64_t elsewhere =
            is_there ? processors[cpu].absent[place].last_written : stored(cpu, place);
        ASSERT_LE(elsewhere, started[cpu])
            << "place " << place << (is_there ? " is there" : " is not there");
      }
    }
  }

  void start_log() {
    auto started = memory.start_dirty_log();
    if (!started) {
      std::printf("without a dirty log: %s\n", started.error().message().c_str());
      return;
    }
    log = *std::move(started);
    copy.emplace(memory.map()->memory);
  }

  const Backing window_memory = open();
  const Backing bar_memory = open();
  const Backing dimm_memory = open();
  const MemoryMapping window_view = MemoryMapping::map(window_memory, {.size = size}).value();
  const MemoryMapping bar_view = MemoryMapping::map(bar_memory, {.size = size}).value();
  const MemoryMapping dimm_view = MemoryMapping::map(dimm_memory, {.size = size}).value();

  const Result<tiny_vm::Vm> vm = tiny_vm::Vm::create();
  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  const std::shared_ptr<VcpuGate> gate = std::make_shared<VcpuGate>(long_enough);
  const std::shared_ptr<MemoryRecorder> recorder = std::make_shared<MemoryRecorder>();
  AddressSpaceRegionPtr window;
  AddressSpaceRegionPtr bar;
  std::array<std::array<std::uint64_t, 3>, cpus> places = [] {
    std::array<std::array<std::uint64_t, 3>, cpus> all{};
    for (std::size_t cpu = 0; cpu < cpus; ++cpu)
      all[cpu] = {dimm_base + offset_of(0, cpu), bar_bases[0] + offset_of(1, cpu),
                  bar_bases[1] + offset_of(2, cpu)};
    return all;
  }();
  std::optional<VmDirtyLog> log;
  std::optional<Copy> copy;
  std::vector<Cpu> processors;
};

TEST_F(VmMemoryWithGuest, NoAccessIsLostWhileMemoryComesGoesAndMoves) {
  start_log();
  ASSERT_NO_FATAL_FAILURE(check());
  const std::uint64_t generation = memory.generation();
  for (std::size_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE(round);
    const std::size_t to = (round + 1) % 2;
    const auto dimm = plug("dimm", dimm_base, dimm_memory);
    ASSERT_NE(dimm, nullptr);
    ASSERT_NO_FATAL_FAILURE(check());

    auto moved = memory.relocate(window, GuestAddress(window_bases[to]));
    ASSERT_THAT(moved, IsOk());
    window = *moved;
    ASSERT_NO_FATAL_FAILURE(check());

    ASSERT_NO_FATAL_FAILURE(harvest());  // while the guest runs
    moved = memory.relocate(bar, GuestAddress(bar_bases[to]));
    ASSERT_THAT(moved, IsOk());
    bar = *moved;
    ASSERT_NO_FATAL_FAILURE(check());

    VMSPACE_ASSERT_OK(memory.unplug(dimm, long_enough));
    ASSERT_NO_FATAL_FAILURE(check());
    recorder->forget_calls();
  }
  EXPECT_EQ(memory.generation() - generation, rounds * changes_a_round);
  VMSPACE_EXPECT_OK(recorder->check_equals(memory.map()->memory));
  VMSPACE_EXPECT_OK(memory.check_invariants());
}

// A DIMM shrinks to less than the guest uses of it, and grows again: what was in it is there.
TEST_F(VmMemoryWithGuest, NoAccessIsLostWhileARegionShrinksAndGrows) {
  start_log();
  auto dimm = plug("dimm", dimm_base, dimm_memory);
  ASSERT_NE(dimm, nullptr);
  for (int round = 0; round < 25; ++round) {
    SCOPED_TRACE(round);
    for (const std::uint64_t to : {offset_of(0, 0), size}) {
      const auto resized = memory.resize(dimm, to);
      ASSERT_THAT(resized, IsOk());
      dimm = (*resized)->shared_description();
      ASSERT_NO_FATAL_FAILURE(check());
    }
  }
  VMSPACE_EXPECT_OK(recorder->check_equals(memory.map()->memory));
}

TEST_F(VmMemoryWithGuest, UnplugReturnsWhileTheVcpusArePaused) {
  const auto dimm = plug("dimm", dimm_base, dimm_memory);
  ASSERT_NE(dimm, nullptr);
  ASSERT_NO_FATAL_FAILURE(check());
  {
    const auto paused = gate->pause_vcpus();
    ASSERT_THAT(paused, IsOk());
    VMSPACE_ASSERT_OK(memory.unplug(dimm, long_enough));
  }
  ASSERT_NO_FATAL_FAILURE(check());
}

}  // namespace
}  // namespace vmspace::vm_memory_kvm_test
