// SPDX-License-Identifier: Apache-2.0
//
// What an access to guest memory costs beside the ways that others find the region.
//
// Names are workload/implementation/number of regions (or bytes). The regions are 2 MiB each, at
// gaps drawn uniformly from 0 to 32 MiB; `sparse64` has 64 regions of 4 KiB to 1 TiB in clusters
// over 64 TiB. Each iteration visits 128 random addresses in a random order of 8192 visits: longer
// than branch predictors know by heart (a Zen 3 learns 2048), while the data stays in the first-level
// cache, so that what is measured is the translation and not the memory. Every implementation reads
// the same bytes. `guarded` is memory that may fault, eight regions as well.
//
// Longer than 450 lines: what is compared shares its layouts, and the order in which they are visited.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/published.hpp"
#include "vmspace/host/fault_guard.hpp"
#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/iommu_view.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

constexpr std::size_t places = 128;
constexpr std::size_t visits = 8192;

class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    std::uint64_t z = (state_ += 0x9e37'79b9'7f4a'7c15);
    z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
    z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t limit) { return (*this)() % limit; }

 private:
  std::uint64_t state_;
};

template <typename T>
T expect(Result<T> result) {
  if (!result) {
    std::cerr << result.error().message() << '\n';
    std::exit(1);
  }
  return *std::move(result);
}

MemoryRegionPtr make_region(std::uint64_t base, std::uint64_t size) {
  // A memfd also where it is terabytes: nothing is reserved for it.
  return expect(MemoryRegion::map(
      expect(AddressSpaceRegion::make({.name = "ram",
                                       .base = GuestAddress(base),
                                       .size = size,
                                       .backing = {.source = MemorySource::shmem}}))));
}

/// The region in a file that is not sealed, so that accesses to it are guarded.
MemoryRegionPtr make_guarded_region(std::uint64_t base, std::uint64_t size) {
  static const FaultGuard guard = expect(FaultGuard::install());
  const int fd = memfd_create("unsealed", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(size)) != 0) std::abort();
  auto description =
      expect(AddressSpaceRegion::make({.name = "ram",
                                       .base = GuestAddress(base),
                                       .size = size,
                                       .backing = {.source = MemorySource::file, .fd = fd}}));
  auto region = expect(MemoryRegion::map(std::move(description), {.unsealed = Unsealed::guard}));
  close(fd);
  return region;
}

/// A guest, and the addresses to visit.
struct Layout {
  GuestMemory memory;
  std::vector<std::uint64_t> addresses;
};

Layout make_layout(const std::vector<std::pair<std::uint64_t, std::uint64_t>>& ranges,
                   MemoryRegionPtr (*make)(std::uint64_t, std::uint64_t) = make_region) {
  std::vector<MemoryRegionPtr> regions;
  for (const auto& [base, size] : ranges)
    regions.push_back(make(base, size));
  Layout layout{expect(GuestMemory::from_regions(std::move(regions))), {}};
  SplitMix64 random(ranges.size());
  for (std::size_t i = 0; i < places; ++i) {
    const auto& [base, size] = ranges[random.below(ranges.size())];
    layout.addresses.push_back(base + random.below(size / 8) * 8);
    if (!layout.memory.write(GuestAddress(layout.addresses.back()), random())) std::abort();
  }
  while (layout.addresses.size() < visits)
    layout.addresses.push_back(layout.addresses[random.below(places)]);
  return layout;
}

const Layout& dense(std::size_t count) {
  static std::map<std::size_t, Layout> layouts;
  const auto known = layouts.find(count);
  if (known != layouts.end()) return known->second;
  SplitMix64 random(42 + count);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t base = end + random.below(32_MiB / 4_KiB) * 4_KiB;
    ranges.emplace_back(base, 2_MiB);
    end = base + 2_MiB;
  }
  return layouts.emplace(count, make_layout(ranges)).first->second;
}

/// The regions of dense(8), guarded.
const Layout& guarded() {
  static const Layout layout = [] {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (const MemoryRegionPtr& region : dense(8).memory.regions())
      ranges.emplace_back(region->base().value(), region->size());
    return make_layout(ranges, make_guarded_region);
  }();
  return layout;
}

/// Eight clusters, 8 TiB apart, of eight regions each: seven from 4 KiB to 16 GiB at gaps of up to
/// 32 MiB, and one of 1 TiB.
const Layout& sparse() {
  static const Layout layout = [] {
    SplitMix64 random(64);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (std::uint64_t cluster = 0; cluster < 8; ++cluster) {
      std::uint64_t end = cluster * 8_TiB;
      for (std::uint64_t i = 0; i < 8; ++i) {
        const std::uint64_t base = end + random.below(32_MiB / 4_KiB) * 4_KiB;
        const std::uint64_t size = i == 7 ? 1_TiB : 4_KiB << random.below(23);
        ranges.emplace_back(base, size);
        end = base + size;
      }
    }
    return make_layout(ranges);
  }();
  return layout;
}

const Layout& layout_of(std::string_view name) {
  if (name == "sparse64") return sparse();
  return name == "guarded8" ? guarded() : dense(std::stoul(std::string(name)));
}

void report(benchmark::State& state, std::size_t per_iteration) {
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(per_iteration));
  // Nanoseconds of processor time an access.
  state.counters["each"] = benchmark::Counter(
      static_cast<double>(per_iteration),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// Ways to find a region. Each gives the host address of eight bytes, or null.

struct Found {
  std::uint64_t first;
  std::uint64_t size;
  std::byte* host;

  std::byte* at(std::uint64_t address) const {
    return address - first <= size - 8 ? host + (address - first) : nullptr;
  }
};

std::vector<Found> found(const GuestMemory& memory) {
  std::vector<Found> all;
  for (const auto& region : memory.regions()) {
    all.push_back({region->base().value(), region->size(), region->host_base()});
  }
  return all;
}

class UpperBound {
 public:
  explicit UpperBound(const GuestMemory& memory) : regions_(found(memory)) {}
  std::byte* operator()(std::uint64_t address) const {
    const auto above = std::ranges::upper_bound(regions_, address, {}, &Found::first);
    return above == regions_.begin() ? nullptr : std::prev(above)->at(address);
  }

 private:
  std::vector<Found> regions_;
};

/// The starts in an array of their own; the same steps for every address, and no branch that
/// depends on it.
class Branchless {
 public:
  explicit Branchless(const GuestMemory& memory) : regions_(found(memory)) {
    for (const Found& region : regions_)
      starts_.push_back(region.first);
  }
  std::byte* operator()(std::uint64_t address) const {
    const std::uint64_t* start = starts_.data();
    for (std::size_t count = starts_.size(); count > 1;) {
      const std::size_t half = count / 2;
      const std::uint64_t* const further = start + half;
      start = detail::select_at_most(*further, address, further, start);
      count -= half;
    }
    return regions_[static_cast<std::size_t>(start - starts_.data())].at(address);
  }

 private:
  std::vector<Found> regions_;
  std::vector<std::uint64_t> starts_;
};

class StdMap {
 public:
  explicit StdMap(const GuestMemory& memory) {
    for (const Found& region : found(memory))
      regions_.emplace(region.first, region);
  }
  std::byte* operator()(std::uint64_t address) const {
    const auto above = regions_.upper_bound(address);
    return above == regions_.begin() ? nullptr : std::prev(above)->second.at(address);
  }

 private:
  std::map<std::uint64_t, Found> regions_;
};

std::uint64_t load(const std::byte* at) {
  return *reinterpret_cast<const volatile std::uint64_t*>(at);
}

template <typename Searcher>
void read_searching(benchmark::State& state, const std::string& regions) {
  const Layout& layout = layout_of(regions);
  const Searcher find(layout.memory);
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (const std::uint64_t address : layout.addresses) {
      const std::byte* at = find(address);
      if (at == nullptr) [[unlikely]]
        return state.SkipWithError("not found");
      sum += load(at);
    }
    benchmark::DoNotOptimize(sum);
  }
  report(state, layout.addresses.size());
}

void read_raw(benchmark::State& state, const std::string& regions) {
  const Layout& layout = layout_of(regions);
  const auto host = [&](std::uint64_t address) {
    return reinterpret_cast<std::uintptr_t>(
        expect(layout.memory.const_host_address({GuestAddress(address), 8})));
  };
  const std::uintptr_t base = host(layout.memory.regions()[0]->base().value());
  std::vector<std::uintptr_t> offsets;
  for (const std::uint64_t address : layout.addresses)
    offsets.push_back(host(address) - base);
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (const std::uintptr_t offset : offsets) {
      sum += load(reinterpret_cast<const std::byte*>(base + offset));
    }
    benchmark::DoNotOptimize(sum);
  }
  report(state, offsets.size());
}

void read_vmspace(benchmark::State& state, const std::string& regions) {
  const Layout& layout = layout_of(regions);
  const GuestMemory& memory = layout.memory;
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (const std::uint64_t address : layout.addresses) {
      const auto value = memory.read<std::uint64_t>(GuestAddress(address));
      if (!value) [[unlikely]]
        return state.SkipWithError("not found");
      sum += *value;
    }
    benchmark::DoNotOptimize(sum);
  }
  report(state, layout.addresses.size());
}

void read_published(benchmark::State& state, const std::string& regions) {
  const Layout& layout = layout_of(regions);
  Published<GuestMemory> published(layout.memory);
  auto reader = published.reader();
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (const std::uint64_t address : layout.addresses) {
      const auto value = reader.current().read<std::uint64_t>(GuestAddress(address));
      if (!value) [[unlikely]]
        return state.SkipWithError("not found");
      sum += *value;
    }
    benchmark::DoNotOptimize(sum);
  }
  report(state, layout.addresses.size());
}

/// `section`: the view begins and ends with each access, otherwise once for all.
template <bool section>
void read_iommu(benchmark::State& state, const std::string& regions) {
  const Layout& layout = layout_of(regions);
  const GuestMemory& memory = layout.memory;
  constexpr std::uint64_t window = std::uint64_t{1} << 40;
  IoTlb tlb = expect(IoTlb::make());
  for (const MemoryRegionPtr& region : memory.regions()) {
    const GuestAddress iova(region->base().value() + window);
    if (!tlb.update({.iova = iova, .guest = {region->base(), region->size()}})) std::abort();
  }
  auto reader = tlb.reader();
  std::optional<IommuView> all;
  if (!section) all.emplace(reader, memory);
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (const std::uint64_t address : layout.addresses) {
      const GuestAddress iova(address + window);
      const auto value = section ? IommuView(reader, memory).read<std::uint64_t>(iova)
                                 : all->read<std::uint64_t>(iova);
      if (!value) [[unlikely]]
        return state.SkipWithError("not found");
      sum += *value;
    }
    benchmark::DoNotOptimize(sum);
  }
  report(state, layout.addresses.size());
}

enum class Tracking { off, on };

template <Tracking tracking>
void write_vmspace(benchmark::State& state, const std::string& regions) {
  const Layout& layout = layout_of(regions);
  const GuestMemory& memory = layout.memory;
  if (tracking == Tracking::on && !enable_dirty_tracking(memory)) std::abort();
  for (auto _ : state) {
    for (const std::uint64_t address : layout.addresses) {
      if (!memory.write(GuestAddress(address), address)) [[unlikely]]
        return state.SkipWithError("not found");
    }
  }
  disable_dirty_tracking(memory);
  report(state, layout.addresses.size());
}

// Slices, at random addresses of eight regions too, aligned to their size as a guest's buffers are.
// The data of 128 small ones stays in the first-level cache, that of larger ones does not.

struct Slices {
  const GuestMemory* memory;
  std::vector<GuestAddress> addresses;
  std::vector<std::byte*> pointers;  ///< to the same bytes
  std::vector<std::byte> buffer;
};

Slices make_slices(const Layout& layout, std::size_t bytes) {
  Slices slices{&layout.memory, {}, {}, std::vector<std::byte>(bytes)};
  const auto regions = slices.memory->regions();
  for (const auto& region : regions) {
    const GuestRange all{region->base(), region->size()};
    if (!slices.memory->fill(all, std::byte{1})) std::abort();
  }
  SplitMix64 random(bytes);
  for (std::size_t i = 0; i < places; ++i) {
    const MemoryRegion& region = *regions[random.below(regions.size())];
    const std::uint64_t offset = random.below(region.size() / bytes) * bytes;
    slices.addresses.emplace_back(region.base().value() + offset);
    slices.pointers.push_back(region.host_base() + offset);
  }
  return slices;
}

enum class Way { read, write };

enum class Through { vmspace, guarded, memcpy };

template <Way way, Through through>
void slice(benchmark::State& state, std::size_t bytes) {
  Slices slices = make_slices(through == Through::guarded ? guarded() : dense(8), bytes);
  const GuestMemory& memory = *slices.memory;
  const std::span<std::byte> buffer(slices.buffer);
  for (auto _ : state) {
    if constexpr (through == Through::memcpy) {
      for (std::byte* const pointer : slices.pointers) {
        if constexpr (way == Way::read) {
          std::memcpy(buffer.data(), pointer, buffer.size());
        } else {
          std::memcpy(pointer, buffer.data(), buffer.size());
        }
        benchmark::ClobberMemory();
      }
    } else {
      for (const GuestAddress address : slices.addresses) {
        const auto ok = way == Way::read ? memory.read_slice(address, buffer)
                                         : memory.write_slice(address, buffer);
        if (!ok) [[unlikely]]
          return state.SkipWithError("failed");
        benchmark::ClobberMemory();
      }
    }
  }
  report(state, places);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(places * bytes));
}

void add(const std::string& name, auto body, auto argument) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) { body(state, argument); });
}

void add_all() {
  for (const std::string regions : {"1", "2", "8", "64", "512", "sparse64"}) {
    add("read_u64/vmspace/" + regions, read_vmspace, regions);
    add("read_u64/raw/" + regions, read_raw, regions);
    add("read_u64/upper_bound/" + regions, read_searching<UpperBound>, regions);
    add("read_u64/branchless/" + regions, read_searching<Branchless>, regions);
    add("read_u64/std_map/" + regions, read_searching<StdMap>, regions);
  }
  const std::string eight = "8";
  add("read_u64/vmspace_published/8", read_published, eight);
  add("iommu/hit/8", read_iommu<false>, eight);
  add("iommu/section/8", read_iommu<true>, eight);
  add("write_u64/vmspace/8", write_vmspace<Tracking::off>, eight);
  add("write_u64/vmspace_dirty/8", write_vmspace<Tracking::on>, eight);
  add("read_u64/guarded/8", read_vmspace, std::string("guarded8"));
  add("write_u64/guarded/8", write_vmspace<Tracking::off>, std::string("guarded8"));
  add("read_slice/guarded/4096", slice<Way::read, Through::guarded>, std::size_t{4096});
  add("write_slice/guarded/4096", slice<Way::write, Through::guarded>, std::size_t{4096});
  for (const std::size_t bytes : {std::size_t{64}, std::size_t{4096}, std::size_t{1} << 20}) {
    const std::string size = std::to_string(bytes);
    add("read_slice/vmspace/" + size, slice<Way::read, Through::vmspace>, bytes);
    add("read_slice/memcpy/" + size, slice<Way::read, Through::memcpy>, bytes);
    add("write_slice/vmspace/" + size, slice<Way::write, Through::vmspace>, bytes);
    add("write_slice/memcpy/" + size, slice<Way::write, Through::memcpy>, bytes);
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
