// SPDX-License-Identifier: Apache-2.0
//
// What it costs to find the range that holds an address, in a set that does not change: a DecodeMap
// beside what emulators decode addresses with. Part of allocator_bench; names are
// decode/implementation/n.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/allocator.hpp"

namespace {

using vmspace::Range;

/// The layout of a VM: ranges of mixed sizes, one after another, with a gap after every third.
std::vector<Range> layout(std::size_t n) {
  std::mt19937_64 random(7);
  std::vector<Range> ranges;
  std::uint64_t at = 0xc000'0000;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t size = std::uint64_t{0x1000} << random() % 8;
    at = (at + size - 1) / size * size;
    ranges.push_back(*Range::from_base_size(at, size));
    at += i % 3 == 0 ? size + 0x1000 : size;
  }
  return ranges;
}

class Vmspace {
 public:
  static constexpr const char* name = "vmspace";
  explicit Vmspace(const std::vector<Range>& ranges) {
    std::vector<vmspace::DecodeMap<std::uint64_t>::Entry> entries;
    for (const Range& range : ranges)
      entries.push_back({range, entries.size()});
    map_ = *vmspace::DecodeMap<std::uint64_t>::create(std::move(entries));
  }
  [[nodiscard]] const std::uint64_t* find(std::uint64_t address) const {
    const auto* const entry = map_.find(address);
    return entry == nullptr ? nullptr : &entry->value;
  }

 private:
  vmspace::DecodeMap<std::uint64_t> map_;
};

class StdMap {
 public:
  static constexpr const char* name = "std_map";
  explicit StdMap(const std::vector<Range>& ranges) {
    for (const Range& range : ranges)
      map_.emplace(range.min(), std::pair(range.max(), map_.size()));
  }
  [[nodiscard]] const std::uint64_t* find(std::uint64_t address) const {
    auto above = map_.upper_bound(address);
    if (above == map_.begin()) return nullptr;
    const auto& [last, value] = std::prev(above)->second;
    return address <= last ? &value : nullptr;
  }

 private:
  std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> map_;
};

class SortedVector {
 public:
  static constexpr const char* name = "sorted_vector";
  explicit SortedVector(const std::vector<Range>& ranges) {
    for (const Range& range : ranges)
      entries_.push_back({range.min(), range.max(), entries_.size()});
  }
  [[nodiscard]] const std::uint64_t* find(std::uint64_t address) const {
    const auto above = std::ranges::upper_bound(entries_, address, {}, &Entry::first);
    if (above == entries_.begin()) return nullptr;
    const Entry& entry = *std::prev(above);
    return address <= entry.last ? &entry.value : nullptr;
  }

 private:
  struct Entry {
    std::uint64_t first;
    std::uint64_t last;
    std::uint64_t value;
  };
  std::vector<Entry> entries_;
};

template <typename Decoder>
void decode(benchmark::State& state, std::size_t n) {
  const std::vector<Range> ranges = layout(n);
  const Decoder decoder(ranges);
  std::mt19937_64 random(11);
  std::vector<std::uint64_t> addresses(std::size_t{1} << 14);
  for (std::uint64_t& address : addresses) {
    const Range& range = ranges[random() % n];
    address = range.min() + random() % range.size();
  }
  std::size_t i = 0;
  for (auto _ : state)
    benchmark::DoNotOptimize(decoder.find(addresses[i++ % addresses.size()]));
}

template <typename Decoder>
void add() {
  for (const std::size_t n : {8U, 64U, 512U}) {
    benchmark::RegisterBenchmark(
        (std::string("decode/") + Decoder::name + "/" + std::to_string(n)).c_str(),
        [n](benchmark::State& state) { decode<Decoder>(state, n); });
  }
}

// Registered as BENCHMARK() does it: before main().
[[maybe_unused]] const bool is_registered = [] {
  add<Vmspace>();
  add<StdMap>();
  add<SortedVector>();
  return true;
}();

}  // namespace
