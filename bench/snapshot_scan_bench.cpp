// SPDX-License-Identifier: Apache-2.0
//
// Finding the pages that matter: the test for zeros, beside a loop over words, and the harvest of a
// bitmap of 64 GiB, beside a plain read of its words.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
namespace {

using namespace vmspace;
using namespace vmspace::literals;

#if defined(__clang__)
#define VMSPACE_BENCH_SCALAR
#else
#define VMSPACE_BENCH_SCALAR [[gnu::optimize("no-tree-vectorize")]]
#endif

VMSPACE_BENCH_SCALAR bool is_zero_by_words(const std::uint64_t* words, std::size_t count) {
#if defined(__clang__)
#pragma clang loop vectorize(disable)
#endif
  for (std::size_t i = 0; i < count; ++i) {
    if (words[i] != 0) return false;
  }
  return true;
}

void zero_test_scalar(benchmark::State& state) {
  std::vector<std::uint64_t> page(4096 / sizeof(std::uint64_t));
  for (auto _ : state) {
    benchmark::DoNotOptimize(page.data());
    benchmark::ClobberMemory();
    benchmark::DoNotOptimize(is_zero_by_words(page.data(), page.size()));
  }
  state.SetBytesProcessed(state.iterations() * 4096);
}

void zero_test_vmspace(benchmark::State& state) {
  const std::vector<std::byte> page(4096);
  for (auto _ : state) {
    benchmark::DoNotOptimize(page.data());
    benchmark::ClobberMemory();
    benchmark::DoNotOptimize(is_zero(page));
  }
  state.SetBytesProcessed(state.iterations() * 4096);
}

constexpr std::uint64_t tracked = 64_GiB;
constexpr std::uint64_t pages = tracked / DirtyBitmap::page_size;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// As many words as the bitmap has, all of them read.
void harvest_scan(benchmark::State& state) {
  std::vector<std::uint64_t> words(pages / 64);
  for (auto _ : state) {
    const auto begin = Clock::now();
    benchmark::DoNotOptimize(words.data());
    std::uint64_t all = 0;
    for (const std::uint64_t word : words)
      all |= word;
    benchmark::DoNotOptimize(all);
    state.SetIterationTime(seconds_since(begin));
  }
}

std::uint64_t splitmix64(std::uint64_t& state) {
  std::uint64_t mixed = state += 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return mixed ^ (mixed >> 31);
}

/// Runs of `run` dirty pages, 1 % of all, at places by chance; none with 0. Neither writing them nor the
/// barrier is counted.
void harvest_vmspace(benchmark::State& state, std::uint64_t run) {
  DirtyBitmap bitmap(tracked);
  if (!bitmap.enable()) return state.SkipWithError("enable");
  const std::uint64_t runs = run == 0 ? 0 : pages / 100 / run;
  std::size_t found = 0;
  for (auto _ : state) {
    std::uint64_t seed = 1;
    for (std::uint64_t i = 0; i < runs; ++i) {
      const std::uint64_t page = splitmix64(seed) % (pages - run);
      bitmap.mark(page * DirtyBitmap::page_size, run * DirtyBitmap::page_size);
    }
    DirtyHarvest harvest;
    const auto begin = Clock::now();
    const auto ranges = harvest.take(bitmap);
    state.SetIterationTime(seconds_since(begin));
    found = ranges.size();
    if (!harvest.finish()) return state.SkipWithError("finish");
  }
  state.counters["ranges"] = static_cast<double>(found);
}

[[maybe_unused]] const bool registered = [] {
  benchmark::RegisterBenchmark("zero_test/scalar/4096", zero_test_scalar);
  benchmark::RegisterBenchmark("zero_test/vmspace/4096", zero_test_vmspace);
  for (auto* harvest :
       {benchmark::RegisterBenchmark("harvest/scan", harvest_scan),
        benchmark::RegisterBenchmark("harvest/vmspace/empty", harvest_vmspace, 0),
        benchmark::RegisterBenchmark("harvest/vmspace/1pct", harvest_vmspace, 16),
        benchmark::RegisterBenchmark("harvest/vmspace/1pct_single", harvest_vmspace, 1)}) {
    harvest->UseManualTime()->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
