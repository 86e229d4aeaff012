// SPDX-License-Identifier: Apache-2.0
//
// Saving: of a guest with holes beside the plain write of its data, and of 1 % of the pages beside
// all of them. Files are in the directory that VMSPACE_BENCH_DIR names, or the working directory:
// /dev/shm shows what the library costs, a disk what the disk does.

#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "snapshot_bench.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

using bench::expect;
using bench::TempFile;

constexpr std::uint64_t page = 4096;

/// A guest of so much memory with pages in runs of `run` bytes, one in every `stride`.
GuestMemory guest_of(std::uint64_t size, std::uint64_t run, std::uint64_t stride) {
  auto guest = expect(GuestMemory::create(std::array{GuestRange{GuestAddress(0), size}}));
  std::vector<std::byte> bytes(run, std::byte{0x5a});
  for (std::uint64_t at = 0; at < size; at += stride) {
    if (!guest.write_slice(GuestAddress(at), bytes)) std::abort();
  }
  return guest;
}

constexpr std::uint64_t sparse_size = 4_GiB;
constexpr std::uint64_t sparse_run = 1_MiB;
constexpr std::uint64_t sparse_stride = 16_MiB;
constexpr auto sparse_data = static_cast<std::int64_t>(sparse_size / sparse_stride * sparse_run);

const GuestMemory& sparse_guest() {
  static const GuestMemory guest = guest_of(sparse_size, sparse_run, sparse_stride);
  return guest;
}

void plain_write(benchmark::State& state) {
  const GuestMemory& guest = sparse_guest();
  const TempFile file;
  for (auto _ : state) {
    if (ftruncate(file.fd(), 0) != 0) return state.SkipWithError("ftruncate");
    off_t to = 0;
    for (std::uint64_t at = 0; at < sparse_size; at += sparse_stride) {
      const auto* run = *guest.const_host_address({GuestAddress(at), sparse_run});
      if (pwrite(file.fd(), run, sparse_run, to) != static_cast<ssize_t>(sparse_run))
        return state.SkipWithError("pwrite");
      to += static_cast<off_t>(sparse_run);
    }
  }
  state.SetBytesProcessed(state.iterations() * sparse_data);
}

void save_sparse(benchmark::State& state, bool checksums) {
  const GuestMemory& guest = sparse_guest();
  const TempFile file;
  for (auto _ : state)
    expect(save_snapshot(guest, file.fd(), {.checksums = checksums}));
  state.SetBytesProcessed(state.iterations() * sparse_data);
}

constexpr std::uint64_t resident_size = 1_GiB;

const GuestMemory& resident_guest() {
  static const GuestMemory guest = guest_of(resident_size, 2_MiB, 2_MiB);
  return guest;
}

void save_full(benchmark::State& state) {
  const TempFile file;
  for (auto _ : state)
    expect(save_snapshot(resident_guest(), file.fd()));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(resident_size));
}

/// Every hundredth page: the worst case, in which no two are adjacent.
void save_changes(benchmark::State& state) {
  const TempFile base;
  const SavedSnapshot full = expect(save_snapshot(resident_guest(), base.fd()));
  std::vector<GuestRange> changed;
  for (std::uint64_t at = 0; at < resident_size; at += 100 * page)
    changed.push_back({GuestAddress(at), page});
  const TempFile file;
  for (auto _ : state) {
    expect(
        save_snapshot(resident_guest(), file.fd(), {.changes = SnapshotChanges{full.id, changed}}));
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(changed.size() * page));
}

[[maybe_unused]] const bool registered = [] {
  const auto add = [](const char* name, auto body) {
    benchmark::RegisterBenchmark(name, body)->Unit(benchmark::kMillisecond)->UseRealTime();
  };
  add("save/plain_write", plain_write);
  add("save/sparse", [](benchmark::State& state) { save_sparse(state, false); });
  add("save/sparse_checksums", [](benchmark::State& state) { save_sparse(state, true); });
  add("save/full/1", save_full);
  add("save/diff_1pct/1", save_changes);
  return true;
}();

}  // namespace
