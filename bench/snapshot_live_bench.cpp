// SPDX-License-Identifier: Apache-2.0
//
// How long a guest with 1 GiB of data stands still: for a live snapshot; for the bare write-protection
// of the same memory; and for a snapshot that is saved while it is stopped. Small pages, in private
// memory.

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "snapshot_bench.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

using bench::expect;
using bench::TempFile;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t live_data = 1_GiB;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

GuestMemory full_guest() {
  const auto region = expect(MemoryRegion::map({.name = "ram",
                                                .base = GuestAddress(0),
                                                .size = live_data,
                                                .backing = {.source = MemorySource::anon},
                                                .protection = Protection::read_write}));
  auto memory = expect(GuestMemory::from_regions({region}));
  std::memset(region->host_base(), 0x5a, live_data);
  return memory;
}

void live_stop(benchmark::State& state) {
  const GuestMemory memory = full_guest();
  for (auto _ : state) {
    const TempFile file;
    auto writer = SnapshotWriter::create(file.fd(), memory);
    if (!writer) return state.SkipWithError(writer.error().message().c_str());
    auto snapshot = LiveSnapshot::prepare(memory, *std::move(writer));
    if (!snapshot) return state.SkipWithError(snapshot.error().message().c_str());
    const auto begin = Clock::now();
    const auto taken = snapshot->take();
    state.SetIterationTime(seconds_since(begin));
    // What comes after the instant is not measured, and need not be written either.
    if (!taken) return state.SkipWithError(taken.error().message().c_str());
  }
}

void live_total(benchmark::State& state) {
  const GuestMemory memory = full_guest();
  for (auto _ : state) {
    const TempFile file;
    auto writer = SnapshotWriter::create(file.fd(), memory);
    if (!writer) return state.SkipWithError(writer.error().message().c_str());
    auto snapshot = LiveSnapshot::prepare(memory, *std::move(writer));
    if (!snapshot) return state.SkipWithError(snapshot.error().message().c_str());
    if (!snapshot->take() || !snapshot->wait()) return state.SkipWithError("the snapshot failed");
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(live_data));
}

void raw_stop(benchmark::State& state) {
  const GuestMemory memory = full_guest();
  const auto begin_address =
      reinterpret_cast<std::uintptr_t>(memory.regions().front()->host_base());
  for (auto _ : state) {
    const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    uffdio_register area{};
    area.range = {.start = begin_address, .len = live_data};
    area.mode = UFFDIO_REGISTER_MODE_WP;
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0 || ioctl(fd, UFFDIO_REGISTER, &area) != 0) {
      return state.SkipWithError("userfaultfd");
    }
    uffdio_writeprotect protect{};
    protect.range = area.range;
    protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    const auto begin = Clock::now();
    const int failed = ioctl(fd, UFFDIO_WRITEPROTECT, &protect);
    state.SetIterationTime(seconds_since(begin));
    close(fd);
    if (failed != 0) return state.SkipWithError("UFFDIO_WRITEPROTECT");
  }
}

[[maybe_unused]] const bool registered = [] {
  benchmark::RegisterBenchmark("live_stop/vmspace/1", live_stop)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime();
  benchmark::RegisterBenchmark("live_stop/raw/1", raw_stop)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime();
  benchmark::RegisterBenchmark("live_total/vmspace/1", live_total)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  return true;
}();

}  // namespace
