// SPDX-License-Identifier: Apache-2.0
//
// What it costs that a device comes and goes: eight requests met, listed by owner, and given back.
//
// Names are workload/implementation/n, where n is how many devices the machine has. One iteration
// detaches a random device and attaches it again; seeds are fixed. `attach_detach` asks for numbers
// alone; in `attach_detach_mmio` two of the eight are MMIO, whose regions the address space
// publishes. `2_threads` are two threads that do so at once, each with devices of its own; `in_turn`
// is the same work, one thread after the other. There, an iteration is 2 * 10'000 pairs, and
// `time_per_pair` is to be compared.
//
// Every case runs five times, in random order, so that a busy moment of the machine does not fall on
// one of them alone:
//
//   resources_bench --benchmark_filter='attach_detach/.*/1000' --benchmark_format=json

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"

#include "resource_baselines.hpp"
#include "split_mix64.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

template <typename T>
T expect(Result<T> result) {
  if (!result) {
    std::cerr << result.error().message() << '\n';
    std::exit(1);
  }
  return *std::move(result);
}

// -- the machine ---------------------------------------------------------------------------------

constexpr Range slot_numbers = Range::of(0, 4095);

/// Enough of everything for 1,000 devices, and some to spare.
ResourceLimits limits() {
  ResourceLimits limits{.pio = {.ranges = {Range::of(0, 0xffff)}, .any = {}},
                        .generic_irqs = {.ranges = {Range::of(24, 4095)}},
                        .msi = {.ranges = {Range::of(8192, 32'767)}},
                        .pci_buses = {},
                        .mac_addresses = Range::of(0x5254'0000'0000, 0x5254'0000'ffff)};
  for (std::uint8_t bus = 0; bus < 40; ++bus)
    limits.pci_buses.push_back({.bus = bus});
  return limits;
}

const std::array<ResourceRequest, 8> numbers = {PciDevice{},
                                                PioRange{.size = 32},
                                                LegacyIrq{.shared = true},
                                                GenericIrq{},
                                                MsiVectors{.count = 4},
                                                MsixVectors{.count = 3},
                                                KvmSlots{},
                                                MacAddress{}};

const std::array<ResourceRequest, 8> with_mmio = {PciDevice{},
                                                  PioRange{.size = 32},
                                                  MmioRange{.size = 16_KiB},
                                                  MmioRange{.size = 1_MiB, .prefetchable = true},
                                                  LegacyIrq{.shared = true},
                                                  MsixVectors{.count = 3},
                                                  KvmSlots{},
                                                  MacAddress{}};

/// What is measured, behind the calls that the baseline has.
class Vmspace {
 public:
  static constexpr const char* name = "vmspace";
  using Device = DeviceResources;

  Device acquire(std::span<const ResourceRequest> requests, std::string_view owner) {
    return expect(manager_.acquire(requests, owner));
  }

 private:
  static ResourceLimits with_slots() {
    ResourceLimits all = limits();
    all.kvm_slots = expect(RangePool::create("slots", {slot_numbers}));
    return all;
  }

  AddressSpace space_ =
      expect(AddressSpace::create(expect(AddressSpaceLayout::x86_64({.phys_bits = 46}))));
  ResourceManager manager_ = expect(ResourceManager::create(space_, with_slots()));
};

class StdMap {
 public:
  static constexpr const char* name = "std_map";
  using Device = MapManager::Device;

  Device acquire(std::span<const ResourceRequest> requests, std::string_view owner) {
    auto got = manager_.acquire(requests, owner);
    if (!got) std::abort();
    return *std::move(got);
  }

 private:
  MapManager manager_{limits(), slot_numbers};
};

// -- workloads -----------------------------------------------------------------------------------

template <typename M>
struct Machine {
  Machine(std::span<const ResourceRequest> device_needs, std::size_t n) : needs(device_needs) {
    for (std::size_t i = 0; i < n; ++i) {
      names.push_back("dev" + std::to_string(i));
      devices.push_back(manager.acquire(needs, names.back()));
    }
  }

  /// The device goes and comes again.
  void pair(std::size_t i) {
    devices[i].reset();
    devices[i] = manager.acquire(needs, names[i]);
  }

  std::span<const ResourceRequest> needs;
  M manager;
  std::vector<std::string> names;
  std::vector<std::optional<typename M::Device>> devices;
};

template <typename M>
void attach_detach(benchmark::State& state, std::span<const ResourceRequest> needs, std::size_t n) {
  Machine<M> machine(needs, n);
  SplitMix64 random{20'231'101};
  for (auto _ : state)
    machine.pair(random.below(n));
}

constexpr std::size_t pairs = 10'000;

/// Two threads, the first with the lower half of the devices. `at_once` or one after the other.
template <typename M>
void two_threads(benchmark::State& state, std::size_t n, bool at_once) {
  Machine<M> machine(numbers, n);
  std::array<SplitMix64, 2> random = {SplitMix64{1}, SplitMix64{2}};
  const auto run = [&](std::size_t half) {
    for (std::size_t i = 0; i < pairs; ++i)
      machine.pair(half * (n / 2) + random[half].below(n / 2));
  };
  for (auto _ : state) {
    if (!at_once) {
      run(0);
      run(1);
      continue;
    }
    std::thread other(run, 1);
    run(0);
    other.join();
  }
  state.counters["time_per_pair"] = benchmark::Counter(
      2 * pairs, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

template <typename M>
void add_all(std::size_t n) {
  const auto add = [n](std::string workload, auto run) {
    return benchmark::RegisterBenchmark(
        (workload + "/" + M::name + "/" + std::to_string(n)).c_str(),
        [=](benchmark::State& state) { run(state, n); });
  };
  add("attach_detach",
      [](benchmark::State& state, std::size_t count) { attach_detach<M>(state, numbers, count); });
  if constexpr (std::is_same_v<M, Vmspace>) {
    add("attach_detach_mmio", [](benchmark::State& state, std::size_t count) {
      attach_detach<M>(state, with_mmio, count);
    });
  }
  add("attach_detach_2_threads", [](benchmark::State& state, std::size_t count) {
    two_threads<M>(state, count, true);
  })->UseRealTime();
  add("attach_detach_in_turn", [](benchmark::State& state, std::size_t count) {
    two_threads<M>(state, count, false);
  })->UseRealTime();
}

}  // namespace

int main(int argc, char** argv) {
  // Before the caller's own, which so win.
  std::string repetitions = "--benchmark_repetitions=5";
  std::string interleaving = "--benchmark_enable_random_interleaving=true";
  std::string time = "--benchmark_min_time=0.05";
  std::string aggregates = "--benchmark_report_aggregates_only=true";
  std::vector<char*> args = {argv[0], repetitions.data(), interleaving.data(), time.data(),
                             aggregates.data()};
  args.insert(args.end(), argv + 1, argv + argc);
  int count = static_cast<int>(args.size());
  args.push_back(nullptr);

  for (const std::size_t n : {32U, 1000U}) {
    add_all<Vmspace>(n);
    add_all<StdMap>(n);
  }
  benchmark::Initialize(&count, args.data());
  if (benchmark::ReportUnrecognizedArguments(count, args.data())) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
