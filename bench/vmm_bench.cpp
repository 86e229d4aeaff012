// SPDX-License-Identifier: Apache-2.0
//
// What it costs to change the memory of a whole VM at once, and to read it meanwhile.
//
// `plug_unplug/vmspace/<n>`: a region of 1 GiB, in a memfd of its own that nobody touches, comes and
// goes in a machine of n regions with three listeners: a recorder, KvmMemslots on a fake of KVM's
// slots, and DmaMappings on a fake of an IOMMU. `plug_unplug/syscalls/<n>`: the system calls that this
// takes, made by hand. `reader/...`: a read of a u64 through a Reader, of a VmMemory and of a
// Published<GuestMemory>. `write_u64/...`: a write while dirty logs run.

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/membarrier.h>
#include <linux/memfd.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/vmm.hpp"

#include "os/system_calls.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

constexpr std::uint64_t dimm_size = 1_GiB;

template <typename T>
T expect(Result<T> result) {
  if (!result) {
    std::cerr << result.error().message() << '\n';
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

/// KVM's slots, behind the library's system calls: what the kernel does with one is a few
/// microseconds more.
class FakeKvm {
 public:
  FakeKvm() : vm_fd_(::eventfd(0, EFD_CLOEXEC)) {
    static detail::SystemCalls calls = detail::real_system_calls;
    calls.ioctl = [](int, unsigned long request, void* argument) {
      if (request == KVM_CHECK_EXTENSION) return 32764;
      const auto& slot = *static_cast<const kvm_userspace_memory_region*>(argument);
      if (slot.memory_size == 0) {
        slots().erase(slot.slot);
      } else {
        slots()[slot.slot] = slot;
      }
      return 0;
    };
    detail::current_system_calls = &calls;
  }
  ~FakeKvm() {
    detail::current_system_calls = &detail::real_system_calls;
    ::close(vm_fd_);
  }
  [[nodiscard]] int fd() const { return vm_fd_; }

 private:
  static std::map<std::uint32_t, kvm_userspace_memory_region>& slots() {
    static std::map<std::uint32_t, kvm_userspace_memory_region> slots;
    return slots;
  }
  int vm_fd_;
};

/// An IOMMU that keeps its mappings.
class FakeIommu final : public DmaTarget {
 public:
  [[nodiscard]] std::string_view name() const noexcept override { return "iommu"; }
  [[nodiscard]] Result<DmaLimits> limits() const override { return DmaLimits{}; }
  [[nodiscard]] Result<void> map(const DmaMapping& mapping) override {
    mappings_[mapping.iova] = mapping;
    return {};
  }
  [[nodiscard]] Result<void> unmap(const DmaMapping& mapping) noexcept override {
    mappings_.erase(mapping.iova);
    return {};
  }

 private:
  std::map<std::uint64_t, DmaMapping> mappings_;
};

RegionOptions region(std::uint64_t base, std::uint64_t size) {
  return {.name = "dimm",
          .base = GuestAddress(base),
          .size = size,
          .backing = {.source = MemorySource::shmem}};
}

/// A machine of `count` regions of 2 MiB from 4 GiB on.
VmMemory make_machine(std::size_t count) {
  const VmMemory memory =
      expect(VmMemory::create(expect(AddressSpaceLayout::x86_64({.phys_bits = 46}))));
  expect(memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
    for (std::size_t i = 0; i < count; ++i) {
      auto made = draft.insert_region(region(4_GiB + i * 4_MiB, 2_MiB));
      if (!made) return fail(made.error());
    }
    return {};
  }));
  return memory;
}

void plug_unplug(benchmark::State& state, std::size_t count) {
  const FakeKvm kvm;
  const VmMemory memory = make_machine(count);
  const auto recorder = std::make_shared<MemoryRecorder>();
  expect(memory.add_listener(recorder));
  expect(memory.add_listener(std::make_shared<KvmMemslots>(expect(KvmMemslots::create(kvm.fd())))));
  expect(memory.add_listener(
      std::make_shared<DmaMappings>(expect(DmaMappings::create(std::make_unique<FakeIommu>())))));
  const RegionOptions dimm = region(1_TiB, dimm_size);
  for (auto _ : state) {
    const auto plugged = expect(memory.plug(dimm))->shared_description();
    expect(memory.unplug(plugged, std::chrono::seconds(1)));
    recorder->forget_calls();
  }
}

void system_calls(benchmark::State& state) {
  for (auto _ : state) {
    const int fd = ::memfd_create("vmspace", MFD_CLOEXEC | MFD_ALLOW_SEALING | 0x8U);
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(dimm_size)) != 0 ||
        ::fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
      return state.SkipWithError("memfd");
    }
    // Reserved with room to align it to a huge page, then mapped.
    const std::size_t reserved = dimm_size + 2_MiB;
    void* const place =
        ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const auto start = (reinterpret_cast<std::uintptr_t>(place) + 2_MiB - 1) / 2_MiB * 2_MiB;
    void* const mapped = ::mmap(reinterpret_cast<void*>(start), dimm_size, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0);
    if (place == MAP_FAILED || mapped == MAP_FAILED) return state.SkipWithError("mmap");
    ::munmap(place, reserved);
    ::close(fd);
  }
}

/// Addresses to visit in eight regions, in an order too long to be predicted.
std::vector<GuestAddress> visits() {
  std::vector<GuestAddress> all;
  std::uint64_t random = 42;
  for (int i = 0; i < 8192; ++i) {
    random = random * 6364136223846793005U + 1442695040888963407U;
    const std::uint64_t place = (random >> 33U) % 128;
    all.emplace_back(4_GiB + place % 8 * 4_MiB + place / 8 * 8);
  }
  return all;
}

void report(benchmark::State& state, std::size_t each) {
  state.counters["each"] =
      benchmark::Counter(static_cast<double>(each), benchmark::Counter::kIsIterationInvariantRate |
                                                        benchmark::Counter::kInvert);
}

template <typename Reader, typename Memory>
void read_through(benchmark::State& state, Reader reader, Memory memory_of) {
  const auto addresses = visits();
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (const GuestAddress address : addresses) {
      const auto value = memory_of(reader.current()).template read<std::uint64_t>(address);
      if (!value) [[unlikely]]
        return state.SkipWithError("not found");
      sum += *value;
    }
    benchmark::DoNotOptimize(sum);
  }
  report(state, addresses.size());
}

void read_vm_map(benchmark::State& state) {
  const VmMemory memory = make_machine(8);
  read_through(state, memory.reader(),
               [](const VmMap& map) -> const GuestMemory& { return map.memory; });
}

void read_published(benchmark::State& state) {
  const VmMemory memory = make_machine(8);
  const Published<GuestMemory> published(memory.map()->memory);
  read_through(state, published.reader(),
               [](const GuestMemory& map) -> const GuestMemory& { return map; });
}

void write_logged(benchmark::State& state, std::size_t logs) {
  const VmMemory memory = make_machine(8);
  std::vector<VmDirtyLog> consumers;
  for (std::size_t i = 0; i < logs; ++i)
    consumers.push_back(expect(memory.start_dirty_log()));
  const auto map = memory.map();
  const GuestMemory& guest = map->memory;
  const auto addresses = visits();
  for (auto _ : state) {
    for (const GuestAddress address : addresses) {
      if (!guest.write(address, address.value())) [[unlikely]]
        return state.SkipWithError("not found");
    }
  }
  report(state, addresses.size());
}

void add(const std::string& name, auto body) {
  benchmark::RegisterBenchmark(name.c_str(), body);
}

void add_all() {
  for (const std::size_t count : {std::size_t{5}, std::size_t{500}}) {
    add("plug_unplug/vmspace/" + std::to_string(count),
        [count](benchmark::State& state) { plug_unplug(state, count); });
  }
  add("plug_unplug/syscalls/5", system_calls);
  add("reader/vm_map/8", read_vm_map);
  add("reader/published/8", read_published);
  add("write_u64/vmspace_dirty/8", [](benchmark::State& state) { write_logged(state, 1); });
  add("write_u64/vmspace_dirty_3_logs/8", [](benchmark::State& state) { write_logged(state, 3); });
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
