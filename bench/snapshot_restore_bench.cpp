// SPDX-License-Identifier: Apache-2.0
//
// How long a restored guest takes to get to work: until it has touched the 2,048 pages, scattered over
// all of its memory, that it touches first. The snapshot is full of data; numbers are MiB of guest memory.
//
//   restore/copy      all of it is read first (restore_snapshot)
//   restore/mapped    the file is the memory (map_snapshot)
//   restore/lazy      pages come when they are touched (LazyRestore)
//   restore/lazy_set  the same, with those pages as a recorded working set

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"

#include "snapshot_bench.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;
using bench::expect;
using bench::TempFile;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t touched_pages = 2048;

GuestMemory fresh(std::uint64_t size) {
  return expect(GuestMemory::from_regions(
      {expect(MemoryRegion::map({.name = "ram",
                                 .base = GuestAddress(0),
                                 .size = size,
                                 .backing = {.source = MemorySource::anon}}))}));
}

/// The n-th page that the guest touches; an odd step visits each page once.
GuestAddress nth_page(std::uint64_t n, std::uint64_t size) {
  return GuestAddress(n * 0x9e37'79b1 % (size / page) * page);
}

void touch(const GuestMemory& memory, std::uint64_t size) {
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < touched_pages; ++i)
    sum += *memory.read<std::uint64_t>(nth_page(i, size));
  benchmark::DoNotOptimize(sum);
}

/// A snapshot of so many bytes, without a page of zeros, made once.
int snapshot_of(std::uint64_t size) {
  static std::map<std::uint64_t, std::unique_ptr<TempFile>> files;
  auto& file = files[size];
  if (!file) {
    file = std::make_unique<TempFile>();
    const GuestMemory memory = fresh(size);
    const std::vector<std::byte> piece(1_MiB, std::byte{0x5a});
    for (std::uint64_t at = 0; at < size; at += piece.size()) {
      if (!memory.write_slice(GuestAddress(at), piece)) std::abort();
    }
    expect(save_snapshot(memory, file->fd()));
  }
  return file->fd();
}

/// One iteration is a restore and the work after it; giving the memory back is not timed.
template <typename Restore>
void time_restore(benchmark::State& state, Restore restore) {
  const auto size = static_cast<std::uint64_t>(state.range(0)) << 20;
  const int fd = snapshot_of(size);
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    const auto restored = restore(fd, size);
    state.SetIterationTime(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
}

void copied(benchmark::State& state) {
  time_restore(state, [](int fd, std::uint64_t size) {
    GuestMemory memory = fresh(size);
    if (!restore_snapshot(memory, fd)) std::abort();
    touch(memory, size);
    return memory;
  });
}

void mapped(benchmark::State& state) {
  time_restore(state, [](int fd, std::uint64_t size) {
    GuestMemory memory = expect(map_snapshot(fd));
    touch(memory, size);
    return memory;
  });
}

struct Lazy {
  GuestMemory memory;
  LazyRestore restore;
};

Lazy start(int fd, std::uint64_t size, WorkingSet set) {
  GuestMemory memory = fresh(size);
  const auto reader = std::make_shared<SnapshotReader>(expect(SnapshotReader::open(fd)));
  const SnapshotId id = reader->id();
  auto restore = expect(LazyRestore::start(
      memory, reader, {.background = false, .working_set = std::move(set), .snapshot = id}));
  return {std::move(memory), std::move(restore)};
}

void lazy(benchmark::State& state) {
  time_restore(state, [](int fd, std::uint64_t size) {
    Lazy guest = start(fd, size, {});
    touch(guest.memory, size);
    return guest;
  });
}

void lazy_with_set(benchmark::State& state) {
  const auto size = static_cast<std::uint64_t>(state.range(0)) << 20;
  const Lazy first_run = start(snapshot_of(size), size, {});
  touch(first_run.memory, size);
  const WorkingSet set = expect(first_run.restore.working_set());
  time_restore(state, [&](int fd, std::uint64_t bytes) {
    Lazy guest = start(fd, bytes, set);
    touch(guest.memory, bytes);
    return guest;
  });
}

[[maybe_unused]] const bool registered = [] {
  const auto add = [](const char* name, void (*run)(benchmark::State&)) {
    for (const std::int64_t mebibytes : {64, 256, 1024}) {
      benchmark::RegisterBenchmark(name, run)->Arg(mebibytes)->UseManualTime()->Unit(
          benchmark::kMillisecond);
    }
  };
  add("restore/copy", copied);
  add("restore/mapped", mapped);
  add("restore/lazy", lazy);
  add("restore/lazy_set", lazy_with_set);
  return true;
}();

}  // namespace
