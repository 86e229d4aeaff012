// SPDX-License-Identifier: Apache-2.0
//
// Populating memory of NUMA nodes that this machine need not have: the files and system calls that
// tell of nodes and CPUs are replaced.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/host/populate.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "host/node_cpus.hpp"

namespace vmspace::populate_nodes_test {
namespace {

using namespace test;

constexpr std::uint64_t size = 64_MiB;

/// Two nodes, with the CPUs 0 and 1, and 2 and 3.
struct Machine {
  Machine() {
    now().clear();
    now().files = directory.path();
    for (const auto& [node, cpus] : {std::pair{"node0", "0-1\n"}, {"node1", "2,3\n"}})
      std::ofstream(directory.path() / node) << cpus;
    auto& table = injector.table();
    table.open = [](const char* path, int flags, mode_t mode) {
      const std::string name = path;
      const std::string root = "/sys/devices/system/node/";
      if (name.find(root) != 0) return detail::real_system_calls.open(path, flags, mode);
      const std::string node = name.substr(root.size(), name.find('/', root.size()) - root.size());
      return detail::real_system_calls.open((now().files + "/" + node).c_str(), flags, mode);
    };
    table.get_mempolicy = [](int*, unsigned long* nodes, unsigned long, void*, unsigned long) {
      nodes[0] = 0b11;
      return 0;
    };
    table.mbind = [](void*, unsigned long, int, const unsigned long*, unsigned long, unsigned) {
      return 0;
    };
    table.sched_getaffinity = [](pid_t, std::size_t, unsigned long* cpus) {
      cpus[0] = 0b1111;
      return 8;
    };
    table.sched_setaffinity = [](pid_t, std::size_t, const unsigned long* cpus) {
      const std::lock_guard lock(now().mutex);
      now().cpus[std::this_thread::get_id()] = cpus[0];
      return 0;
    };
    table.madvise = [](void* address, std::size_t length, int advice) {
      if (length != 0) {
        const std::lock_guard lock(now().mutex);
        now().filled.emplace_back(address, std::this_thread::get_id());
        const auto moved = now().cpus.find(std::this_thread::get_id());
        now().filled_on[address] = moved == now().cpus.end() ? 0 : moved->second;
      }
      return detail::real_system_calls.madvise(address, length, advice);
    };
  }

  struct Seen {
    void clear() {
      cpus.clear();
      filled.clear();
      filled_on.clear();
    }
    std::string files = {};
    std::mutex mutex = {};
    std::map<std::thread::id, unsigned long> cpus = {};  ///< that a thread has moved to
    std::vector<std::pair<void*, std::thread::id>> filled = {};
    std::map<void*, unsigned long> filled_on = {};
  };
  static Seen& now() {
    static Seen seen;
    return seen;
  }

  MemoryMapping memory_of(std::vector<std::uint32_t> nodes) {
    auto mapping = map_or_die({.source = MemorySource::anon}, {.size = size});
    VMSPACE_EXPECT_OK(mapping.bind_to_nodes({NumaMode::bind, std::move(nodes)}));
    return mapping;
  }
  /// The CPUs that filled a mapping, by the threads' masks; 0 for a thread that has none.
  static std::set<unsigned long> filled_on(const MemoryMapping& mapping) {
    std::set<unsigned long> masks;
    for (const auto& [address, mask] : now().filled_on) {
      const auto* const at = static_cast<const std::byte*>(address);
      if (at >= mapping.data() && at < mapping.data() + mapping.size()) masks.insert(mask);
    }
    return masks;
  }
  static bool filled_by_caller() {
    return std::ranges::any_of(
        now().filled, [](const auto& done) { return done.second == std::this_thread::get_id(); });
  }

  TemporaryDirectory directory;
  Injector injector;
};

Result<void> populate_all(std::initializer_list<const MemoryMapping*> mappings, unsigned threads) {
  std::vector<PopulateRange> ranges;
  for (const MemoryMapping* mapping : mappings)
    ranges.push_back({mapping, 0, mapping->size()});
  return populate(ranges, {.threads = threads});
}

TEST(PopulateNodes, EachNodeIsFilledByItsOwnCpus) {
  for (const unsigned threads : {1U, 2U, 5U}) {
    Machine machine;
    const auto first = machine.memory_of({0});
    const auto second = machine.memory_of({1});
    const auto both = machine.memory_of({0, 1});
    const auto anywhere = map_or_die({.source = MemorySource::anon}, {.size = size});
    VMSPACE_ASSERT_OK(populate_all({&first, &second, &both, &anywhere}, threads));
    EXPECT_EQ(Machine::filled_on(first), std::set<unsigned long>{0b0011});
    EXPECT_EQ(Machine::filled_on(second), std::set<unsigned long>{0b1100});
    EXPECT_EQ(Machine::filled_on(both), std::set<unsigned long>{0b1111});
    EXPECT_EQ(Machine::filled_on(anywhere), std::set<unsigned long>{0b1111});
    for (const auto* mapping : {&first, &second, &both, &anywhere})
      EXPECT_EQ(mapping->residency()->resident, size);
    EXPECT_FALSE(Machine::filled_by_caller());
    EXPECT_EQ(Machine::now().cpus.count(std::this_thread::get_id()), 0U)
        << "the caller's thread runs where it did";
  }
}

TEST(PopulateNodes, NobodyMovesWithoutNodesOrWhereAllCpusAreNear) {
  Machine machine;
  const auto anywhere = map_or_die({.source = MemorySource::anon}, {.size = size});
  VMSPACE_ASSERT_OK(populate_all({&anywhere}, 2));
  const auto both = machine.memory_of({0, 1});
  VMSPACE_ASSERT_OK(populate_all({&both, &anywhere}, 2));
  EXPECT_TRUE(Machine::now().cpus.empty());
}

TEST(PopulateNodes, NobodyMovesWhereNodesAreNotKnown) {
  for (const char* text : {"", "\n", "x", "9\n", "-", "1000000000000000000000-2", "5000-6000"}) {
    Machine machine;
    std::ofstream(machine.directory.path() / "node1") << text;
    const auto memory = machine.memory_of({1});
    VMSPACE_ASSERT_OK(populate_all({&memory}, 2));
    EXPECT_TRUE(Machine::now().cpus.empty()) << text;
    EXPECT_EQ(memory.residency()->resident, size);
  }
  Machine machine;
  std::filesystem::remove(machine.directory.path() / "node1");
  const auto memory = machine.memory_of({1});
  VMSPACE_ASSERT_OK(populate_all({&memory}, 2));
  machine.injector.table().sched_getaffinity = [](pid_t, std::size_t, unsigned long*) {
    errno = EINVAL;
    return -1;
  };
  VMSPACE_ASSERT_OK(populate_all({&memory}, 2));
  EXPECT_TRUE(Machine::now().cpus.empty());
}

TEST(PopulateNodes, PagesComeAlsoWhereThreadsCannotMoveOrStart) {
  Machine machine;
  const auto memory = machine.memory_of({1});
  machine.injector.table().sched_setaffinity = [](pid_t, std::size_t, const unsigned long*) {
    errno = EPERM;
    return -1;
  };
  VMSPACE_ASSERT_OK(populate_all({&memory}, 2));
  EXPECT_EQ(memory.residency()->resident, size);
  machine.injector.table().pthread_create = [](pthread_t*, const pthread_attr_t*, void* (*)(void*),
                                               void*) { return EAGAIN; };
  const auto other = machine.memory_of({0});
  VMSPACE_ASSERT_OK(populate_all({&other}, 2));
  EXPECT_EQ(other.residency()->resident, size);
  EXPECT_TRUE(Machine::filled_by_caller());
}

TEST(PopulateNodes, ListsOfCpusAreReadAsTheKernelWritesThem) {
  Machine machine;
  const detail::CpuSet allowed(4, ~0UL);
  const auto cpus = [&](const char* text) {
    std::ofstream(machine.directory.path() / "node0") << text;
    const std::uint32_t node = 0;
    return detail::cpus_near({&node, 1}, allowed);
  };
  EXPECT_EQ(cpus("0-3,8,62-65\n"), (detail::CpuSet{0xc000'0000'0000'010f, 0b11, 0, 0}));
  EXPECT_EQ(cpus("255-300\n"), (detail::CpuSet{0, 0, 0, 1UL << 63}));
  EXPECT_EQ(cpus("7"), (detail::CpuSet{0x80, 0, 0, 0}));
}

TEST(PopulateNodes, NoPageComesBeforeTheLastThreadHasStarted) {
  Injector injector;
  const auto memory = map_or_die({.source = MemorySource::anon}, {.size = 128_MiB});
  injector.fail_none();
  VMSPACE_ASSERT_OK(populate(memory, {.threads = 6}));
  const auto calls = injector.calls();
  const auto last_start = std::find(calls.rbegin(), calls.rend(), "pthread_create");
  ASSERT_NE(last_start, calls.rend());
  // Two calls of madvise ask what the kernel knows.
  EXPECT_EQ(std::count(calls.begin(), last_start.base(), "madvise"), 2);
  EXPECT_EQ(std::count(calls.begin(), calls.end(), "pthread_create"), 5);
}

}  // namespace
}  // namespace vmspace::populate_nodes_test
