// SPDX-License-Identifier: Apache-2.0
//
// The main workloads, each done a fixed number of times: for counting instructions, which repeat where
// times do not. Only what runs inside measured() counts; bench/instructions.sh runs the program under
// callgrind, which writes its figures at the end of each call.
//
// Prints a line for each workload, in the order of the calls: its name, and how many operations it is.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "vmspace/address_space.hpp"
#include "vmspace/allocator.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/virtio.hpp"

#include "split_mix64.hpp"

/// What is counted. Its name is what callgrind knows it by.
extern "C" [[gnu::noinline]] void measured(const std::function<void()>& work) {
  work();
}

namespace {

using namespace vmspace;
using namespace vmspace::literals;

constexpr std::uint64_t page = 4_KiB;

void measure(const std::string& name, std::uint64_t operations, const std::function<void()>& work) {
  std::printf("%s %llu\n", name.c_str(), operations + 0ULL);
  measured(work);
}

template <typename T>
void keep(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

// -- allocator: as in allocator_bench --------------------------------------------------------------

using Tree = IntervalTree<std::uint64_t>;
constexpr std::size_t live_ranges = 10'000;

Constraint churn_want(SplitMix64& random) {
  static constexpr std::array<std::uint64_t, 6> pages = {1, 2, 4, 16, 64, 512};
  const std::uint64_t size = pages[random.below(pages.size())] * page;
  return {.size = size, .align = size};
}

Constraint window_want(SplitMix64& random) {
  Constraint want{.size = page, .align = page};
  switch (random.below(4)) {
    case 0: want.max = 4_GiB - 1; break;
    case 1:
      want.min = random() % (64_TiB - 16_GiB);
      want.max = want.min + 16_GiB - 1;
      break;
    default: break;
  }
  return want;
}

Constraint best_want(SplitMix64& random) {
  Constraint want = churn_want(random);
  want.policy = AllocPolicy::best_match;
  return want;
}

/// Ranges of a tree that come and go.
class Churn {
 public:
  explicit Churn(Constraint (*next)(SplitMix64&)) : next_(next) {
    value_or_exit(tree_.insert(Range::of(0x1000, 64_TiB - 1)));
    while (live_.size() < live_ranges)
      live_.push_back(allocate());
    turn(live_ranges);
  }
  void turn(std::uint64_t pairs) {
    for (std::uint64_t i = 0; i < pairs; ++i) {
      Range& one = live_[random_.below(live_.size())];
      value_or_exit(tree_.free(one));
      one = allocate();
    }
  }
  std::uint64_t find(std::uint64_t times) {
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < times; ++i)
      sum += *tree_.find_value(live_[random_.below(live_.size())].min());
    return sum;
  }
  /// Asks for more than there is.
  void be_refused(std::uint64_t times) {
    for (std::uint64_t i = 0; i < times; ++i)
      keep(tree_.allocate({.size = 64_TiB, .align = page}, i).has_value());
  }

 private:
  Range allocate() {
    const Constraint want = next_(random_);
    return value_or_exit(tree_.allocate(want, want.size));
  }

  Constraint (*next_)(SplitMix64&);
  SplitMix64 random_{20'231'101};
  Tree tree_;
  std::vector<Range> live_;
};

void allocator() {
  measure("fill/10000", live_ranges, [] {
    Tree tree;
    value_or_exit(tree.insert(Range::of(0x1000, 64_TiB - 1)));
    for (std::uint64_t i = 0; i < live_ranges; ++i)
      value_or_exit(tree.allocate({.size = page, .align = page}, i));
  });
  constexpr std::uint64_t pairs = 10'000;
  Churn churn(churn_want);
  measure("churn/10000", pairs, [&] { churn.turn(pairs); });
  measure("lookup/10000", pairs, [&] { keep(churn.find(pairs)); });
  measure("refused/10000", pairs, [&] { churn.be_refused(pairs); });
  Churn window(window_want);
  measure("window/10000", pairs, [&] { window.turn(pairs); });
  Churn best(best_want);
  measure("best_fit/10000", pairs, [&] { best.turn(pairs); });
}

// -- address space and resources ------------------------------------------------------------------

AddressSpaceLayout pc() {
  return value_or_exit(AddressSpaceLayout::x86_64({.phys_bits = 46}));
}

void address_space() {
  constexpr std::uint64_t turns = 1'000;
  AddressSpaceBase space(pc());
  for (int i = 0; i < 256; ++i)
    value_or_exit(space.place_region({.name = "bar", .type = RegionType::device_memory},
                                     {.size = 64_KiB, .align = 64_KiB}, "mmio_low"));
  measure("find_region/256", turns, [&] {
    SplitMix64 random(1);
    for (std::uint64_t i = 0; i < turns; ++i)
      keep(space.find_region(GuestAddress(0xc000'0000 + random.below(256) * 64_KiB)));
  });
  measure("move_region/256", turns, [&] {
    GuestAddress at{0xc000'0000};
    for (std::uint64_t i = 0; i < turns; ++i) {
      const GuestAddress to{0xd000'0000 + (i % 2) * 1_MiB};
      value_or_exit(space.move_region(at, to));
      at = to;
    }
  });
}

void resources() {
  constexpr std::uint64_t turns = 200;
  const auto space = value_or_exit(AddressSpace::create(pc()));
  const auto manager = value_or_exit(ResourceManager::create(space));
  const auto attach = [&](std::uint64_t i) {
    std::string owner = "nic";
    owner += std::to_string(i);
    return value_or_exit(manager.acquire({PioRange{.size = 32}, MmioRange{.size = 64_KiB},
                                          LegacyIrq{.shared = true}, MsixVectors{.count = 3}},
                                         owner));
  };
  std::vector<DeviceResources> devices;
  for (std::uint64_t i = 0; i < 32; ++i)
    devices.push_back(attach(i));
  measure("attach_detach/32", turns, [&] {
    for (std::uint64_t i = 0; i < turns; ++i)
      value_or_exit(attach(32 + i).release());
  });
}

// -- memory: as in guest_memory_bench --------------------------------------------------------------

GuestMemory guest_of(std::uint64_t regions) {
  SplitMix64 random(regions);
  std::vector<GuestRange> ranges;
  std::uint64_t base = 0;
  for (std::uint64_t i = 0; i < regions; ++i) {
    ranges.push_back({GuestAddress(base), 2_MiB});
    base += 2_MiB + random.below(17) * 2_MiB;
  }
  return value_or_exit(GuestMemory::create(ranges));
}

void access(std::uint64_t regions) {
  constexpr std::uint64_t visits = 10'000;
  const GuestMemory memory = guest_of(regions);
  SplitMix64 random(1);
  std::vector<GuestAddress> places;
  for (std::uint64_t i = 0; i < visits; ++i) {
    const auto& region = memory.regions()[random.below(regions)];
    places.emplace_back(region->base().value() + random.below(2_MiB / 8) * 8);
  }
  const auto name = [&](const char* workload) {
    return std::string(workload).append("/").append(std::to_string(regions));
  };
  measure(name("read_u64"), visits, [&] {
    for (const GuestAddress at : places)
      keep(*memory.read<std::uint64_t>(at));
  });
  measure(name("host_address"), visits, [&] {
    for (const GuestAddress at : places)
      keep(*memory.host_address({at, 8}));
  });
  value_or_exit(enable_dirty_tracking(memory));
  measure(name("write_u64_dirty"), visits, [&] {
    for (const GuestAddress at : places)
      if (!memory.write(at, at.value())) std::abort();
  });
  measure(name("harvest_dirty"), 1, [&] { keep(value_or_exit(harvest_dirty(memory)).size()); });
}

// -- virtio: as in virtio_bench --------------------------------------------------------------------

constexpr std::uint16_t queue_size = 256;
constexpr std::uint64_t table = 0x1000;
constexpr std::uint64_t available = 0x2000;
constexpr std::uint64_t used = 0x3000;
constexpr std::uint64_t buffers = 0x10'0000;

/// A request of a header to read, 4 KiB to write and a status to write, at the front of the table.
GuestMemory guest_with_request() {
  const std::array ram = {GuestRange{GuestAddress(0), 8_MiB}};
  const GuestMemory memory = value_or_exit(GuestMemory::create(ram));
  constexpr std::uint16_t more = SplitDescriptor::has_next;
  constexpr std::uint16_t write = SplitDescriptor::writable;
  const std::array chain = {
      SplitDescriptor{.address = buffers, .length = 16, .flags = more, .next = 1},
      SplitDescriptor{.address = buffers + 0x1000,
                      .length = 4096,
                      .flags = static_cast<std::uint16_t>(more | write),
                      .next = 2},
      SplitDescriptor{.address = buffers + 0x2008, .length = 1, .flags = write, .next = 0}};
  value_or_exit(memory.write_slice(GuestAddress(table), std::as_bytes(std::span(chain))));
  return memory;
}

void virtio() {
  constexpr std::uint16_t requests = 10'000;
  const GuestMemory memory = guest_with_request();
  auto queue = value_or_exit(SplitQueue::make({.size = queue_size,
                                               .descriptors = GuestAddress(table),
                                               .available = GuestAddress(available),
                                               .used = GuestAddress(used)}));
  DescriptorChain chain;
  measure("virtio_request", requests, [&] {
    for (std::uint16_t i = 1; i <= requests; ++i) {
      value_or_exit(memory.store(GuestAddress(available + 2), Le16(i), std::memory_order_release));
      if (!value_or_exit(queue.pop(memory, chain))) std::abort();
      auto in = value_or_exit(GuestReader::make(memory, chain.readable()));
      auto out = value_or_exit(GuestWriter::make(memory, chain.writable()));
      keep(value_or_exit(in.read<Le64>()));
      value_or_exit(out.commit(out.remaining() - 1));
      value_or_exit(out.write(std::uint8_t{0}));
      value_or_exit(queue.push_used(memory, chain.id(), 4097));
      keep(value_or_exit(queue.needs_notification(memory)));
    }
  });
}

}  // namespace

int main() {
  allocator();
  address_space();
  resources();
  access(8);
  access(512);
  virtio();
}
