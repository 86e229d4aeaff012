// SPDX-License-Identifier: Apache-2.0
//
// What the map of a guest's memory costs beside its accesses: finding the region of an address, and
// mapping many regions. Part of guest_memory_bench; names are workload/implementation/number of regions.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/memory.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

constexpr std::uint64_t first = 4_GiB;  // above what a PC has at fixed addresses

/// As many descriptors as this process may have: all layouts of this program together exceed what it
/// is usually given.
void raise_descriptor_limit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// Regions of 2 MiB with gaps.
AddressSpaceBase space_of(std::size_t count) {
  std::vector<AddressSpaceRegionPtr> regions;
  for (std::size_t i = 0; i < count; ++i) {
    regions.push_back(*AddressSpaceRegion::make({.name = "ram",
                                                 .base = GuestAddress(first + i * 8_MiB),
                                                 .size = 2_MiB,
                                                 .backing = {.source = MemorySource::shmem}}));
  }
  return *AddressSpaceBase::from_regions(*AddressSpaceLayout::x86_64({.phys_bits = 46}),
                                         std::move(regions));
}

template <typename Find>
void look_up(benchmark::State& state, std::size_t count, Find find) {
  std::mt19937_64 random(count);
  std::vector<GuestAddress> addresses;
  for (std::size_t i = 0; i < 8192; ++i)
    addresses.emplace_back(first + random() % count * 8_MiB + random() % 2_MiB);
  std::size_t i = 0;
  for (auto _ : state) {
    const auto region = find(addresses[i++ % addresses.size()]);
    benchmark::DoNotOptimize(&*region);
  }
}

void find_shared(benchmark::State& state, std::size_t count) {
  const GuestMemory memory = *GuestMemory::map(space_of(count));
  look_up(state, count, [&](GuestAddress address) { return memory.find_region(address); });
}

void find_borrowed(benchmark::State& state, std::size_t count) {
  const GuestMemory memory = *GuestMemory::map(space_of(count));
  look_up(state, count, [&](GuestAddress address) { return memory.region_at(address); });
}

/// What VMMs without a library do. It borrows, too.
void find_in_std_map(benchmark::State& state, std::size_t count) {
  const GuestMemory memory = *GuestMemory::map(space_of(count));
  std::map<GuestAddress, const MemoryRegion*> regions;
  for (const MemoryRegionPtr& region : memory.regions())
    regions.emplace(region->base(), region.get());
  look_up(state, count, [&](GuestAddress address) -> const MemoryRegion* {
    const auto above = regions.upper_bound(address);
    if (above == regions.begin()) return nullptr;
    const MemoryRegion* const region = std::prev(above)->second;
    return address <= region->last_addr() ? region : nullptr;
  });
}

void map_regions(benchmark::State& state, std::size_t count) {
  const AddressSpaceBase space = space_of(count);
  for (auto _ : state) {
    const auto memory = GuestMemory::map(space);
    if (!memory) return state.SkipWithError(memory.error().message().c_str());
  }
}

/// The system calls that no program can do without for the same mappings: a sealed memfd each.
void map_with_system_calls(benchmark::State& state, std::size_t count) {
  struct Mapping {
    int fd;
    void* at;
  };
  std::vector<Mapping> mappings(count);
  for (auto _ : state) {
    for (Mapping& mapping : mappings) {
      mapping.fd = ::memfd_create("ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
      if (mapping.fd < 0 || ::ftruncate(mapping.fd, 2_MiB) != 0 ||
          ::fcntl(mapping.fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
        std::abort();
      mapping.at =
          ::mmap(nullptr, 2_MiB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, mapping.fd, 0);
      if (mapping.at == MAP_FAILED) std::abort();
    }
    for (const Mapping& mapping : mappings) {
      ::munmap(mapping.at, 2_MiB);
      ::close(mapping.fd);
    }
  }
}

// Registered as BENCHMARK() does it: before main().
[[maybe_unused]] const bool is_registered = [] {
  raise_descriptor_limit();
  const auto add = [](const std::string& name, std::size_t count, auto body) {
    benchmark::RegisterBenchmark((name + "/" + std::to_string(count)).c_str(),
                                 [=](benchmark::State& state) { body(state, count); });
  };
  for (const std::size_t count : {1U, 8U, 64U, 512U}) {
    add("find_region/vmspace", count, find_shared);
    add("find_region/vmspace_borrowed", count, find_borrowed);
    add("find_region/std_map", count, find_in_std_map);
  }
  add("map/vmspace", 512, map_regions);
  add("map/syscalls", 512, map_with_system_calls);
  return true;
}();

}  // namespace
