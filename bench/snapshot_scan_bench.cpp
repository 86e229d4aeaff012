// SPDX-License-Identifier: Apache-2.0
//
// Finding the pages that matter: the test for zeros, beside a loop over words; the harvest of a bitmap
// of 64 GiB, beside a plain read of its words; and the scan of 1 GiB for what was written, beside the
// bare system call.

#include <fcntl.h>
// It uses _IOR and its like without including what has them.
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/dirty_scan.hpp"

#include "snapshot_bench.hpp"
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

constexpr std::uint64_t scanned = 1_GiB;

/// Writes to one page in `every`, none with 0; gives nanoseconds a page.
double write_pages(std::byte* memory, std::uint64_t every) {
  if (every == 0) return 0;
  const auto begin = Clock::now();
  for (std::uint64_t at = 0; at < scanned; at += every * 4096)
    static_cast<volatile std::byte*>(memory)[at] = std::byte{1};
  return seconds_since(begin) * 1e9 / static_cast<double>(scanned / 4096 / every);
}

GuestMemory memory_to_scan(MemorySource source, bool huge_pages) {
  auto region = bench::expect(MemoryRegion::map({.name = "ram",
                                                 .base = GuestAddress(0),
                                                 .size = scanned,
                                                 .backing = {.source = source},
                                                 .huge_pages = huge_pages,
                                                 .populate = true}));
  return bench::expect(GuestMemory::from_regions({std::move(region)}));
}

void dirty_scan_vmspace(benchmark::State& state, MemorySource source, bool huge_pages,
                        std::uint64_t every) {
  const GuestMemory memory = memory_to_scan(source, huge_pages);
  auto scan = DirtyScan::start(memory);
  if (!scan) return state.SkipWithError(scan.error().message().c_str());
  double write = 0;
  for (auto _ : state) {
    write += write_pages(memory.regions()[0]->host_base(), every);
    const auto begin = Clock::now();
    const auto ranges = scan->harvest();
    state.SetIterationTime(seconds_since(begin));
    if (!ranges) return state.SkipWithError("harvest");
  }
  state.counters["ns_a_first_write"] =
      benchmark::Counter(write, benchmark::Counter::kAvgIterations);
}

/// What the kernel needs for it: one descriptor, one registration, one ioctl at a time.
class BareScan {
 public:
  BareScan(std::byte* memory, std::uint64_t size)
      : uffd_(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))),
        pagemap_(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)),
        begin_(reinterpret_cast<std::uintptr_t>(memory)),
        end_(begin_ + size) {
    uffdio_api api{.api = UFFD_API, .features = 1 << 15 | 1 << 13 | 1 << 12, .ioctls = 0};
    uffdio_register range{};
    range.range = {.start = begin_, .len = size};
    range.mode = UFFDIO_REGISTER_MODE_WP;
    works_ = ioctl(uffd_, UFFDIO_API, &api) == 0 && ioctl(uffd_, UFFDIO_REGISTER, &range) == 0;
  }
  BareScan(const BareScan&) = delete;
  BareScan& operator=(const BareScan&) = delete;
  ~BareScan() {
    close(uffd_);
    close(pagemap_);
  }

  /// Asks for written pages and write-protects them; false where the kernel can't.
  bool scan() {
    struct {
      std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
      std::uint64_t inverted, mask, any_of, returned;
    } argument{};
    constexpr std::uint64_t written = 1 << 1;
    argument.size = sizeof argument;
    argument.flags = 1 | 2;  // PM_SCAN_WP_MATCHING, PM_SCAN_CHECK_WPASYNC
    argument.vec = reinterpret_cast<std::uintptr_t>(regions_.data());
    argument.vec_len = regions_.size() / 3;
    argument.mask = argument.returned = written;
    argument.end = end_;
    for (argument.start = begin_; works_ && argument.start < end_;
         argument.start = argument.walk_end)
      works_ =
          ioctl(pagemap_, _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof argument), &argument) >= 0;
    return works_;
  }

 private:
  int uffd_;
  int pagemap_;
  std::uintptr_t begin_;
  std::uintptr_t end_;
  bool works_ = false;
  std::vector<std::uint64_t> regions_ = std::vector<std::uint64_t>(3 * 256);
};

void dirty_scan_raw(benchmark::State& state, MemorySource source, bool huge_pages,
                    std::uint64_t every) {
  const GuestMemory memory = memory_to_scan(source, huge_pages);
  std::byte* const base = memory.regions()[0]->host_base();
  BareScan scan(base, scanned);
  if (!scan.scan()) return state.SkipWithError("the kernel has no PAGEMAP_SCAN, or no WP_ASYNC");
  double write = 0;
  for (auto _ : state) {
    write += write_pages(base, every);
    const auto begin = Clock::now();
    const bool done = scan.scan();
    state.SetIterationTime(seconds_since(begin));
    if (!done) return state.SkipWithError("PAGEMAP_SCAN");
  }
  state.counters["ns_a_first_write"] =
      benchmark::Counter(write, benchmark::Counter::kAvgIterations);
}

/// dirty_scan/<raw or vmspace>/<memory>_<what was written>/1, of 1 GiB.
void register_dirty_scans() {
  struct Kind {
    const char* name;
    MemorySource source;
    bool huge_pages;
  };
  struct Load {
    const char* name;
    std::uint64_t every;
  };
  for (const Kind& kind :
       {Kind{"anon", MemorySource::anon, false}, Kind{"thp", MemorySource::anon, true},
        Kind{"memfd", MemorySource::shmem, false}}) {
    for (const Load& load : {Load{"clean", 0}, Load{"1pct", 100}, Load{"all", 1}}) {
      const auto add = [&](const char* who, auto* run) {
        const std::string name =
            std::string("dirty_scan/") + who + "/" + kind.name + "_" + load.name + "/1";
        benchmark::RegisterBenchmark(name.c_str(), run, kind.source, kind.huge_pages, load.every)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      };
      add("raw", dirty_scan_raw);
      add("vmspace", dirty_scan_vmspace);
    }
  }
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
  register_dirty_scans();
  return true;
}();

}  // namespace
