// SPDX-License-Identifier: Apache-2.0
//
// Restoring a guest of 4 GiB with 256 MiB of data in pieces of 1 MiB, from the directory that
// VMSPACE_BENCH_DIR names, or the working directory.

#include "snapshot_bench.hpp"

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

namespace {

using namespace vmspace;
using namespace vmspace::literals;

using bench::expect;
using bench::TempFile;

constexpr std::uint64_t snapshot_data = 256_MiB;
constexpr std::uint64_t snapshot_piece = 1_MiB;

const GuestMemory& snapshot_guest() {
  static const GuestMemory memory = [] {
    auto guest = expect(GuestMemory::create(std::array{GuestRange{GuestAddress(0), 4_GiB}}));
    std::vector<std::byte> piece(snapshot_piece, std::byte{0x5a});
    for (std::uint64_t i = 0; i < snapshot_data / snapshot_piece; ++i) {
      if (!guest.write_slice(GuestAddress(i * 16_MiB), piece)) std::abort();
    }
    return guest;
  }();
  return memory;
}

void restore_mapped(benchmark::State& state) {
  const TempFile file;
  expect(save_snapshot(snapshot_guest(), file.fd()));
  for (auto _ : state) {
    const auto guest = map_snapshot(file.fd());
    if (!guest || !guest->read<std::uint64_t>(GuestAddress(0))) {
      return state.SkipWithError("map");
    }
  }
}

void restore_copied(benchmark::State& state) {
  const TempFile file;
  expect(save_snapshot(snapshot_guest(), file.fd()));
  for (auto _ : state) {
    const auto guest = expect(GuestMemory::create(std::array{GuestRange{GuestAddress(0), 4_GiB}}));
    if (!restore_snapshot(guest, file.fd())) return state.SkipWithError("restore");
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(snapshot_data));
}

[[maybe_unused]] const bool registered = [] {
  benchmark::RegisterBenchmark("snapshot_restore/vmspace_mapped/256M", restore_mapped)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  benchmark::RegisterBenchmark("snapshot_restore/vmspace_copied/256M", restore_copied)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  return true;
}();

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
