// SPDX-License-Identifier: Apache-2.0
//
// The library's own threads can be told from the VMM's, and from each other, by their names.

#include <sys/prctl.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "vmspace/host/populate.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "snapshot/dirty_scan_support.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace::test::thread_names_test {
namespace {

/// What `top -H` shows of this process.
std::set<std::string> thread_names() {
  std::set<std::string> names;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    // A thread that has ended meanwhile has no file any more.
    std::ifstream file(thread.path() / "comm");
    if (std::string name; std::getline(file, name)) names.insert(name);
  }
  return names;
}

/// Waits for a thread that has started to have its name.
bool has_thread(const std::string& name) {
  const auto end = std::chrono::steady_clock::now() + long_enough;
  while (!thread_names().contains(name)) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

class ThreadNames : public testing::Test {
 protected:
  void SetUp() override {
    // Nothing else tells the names of other threads.
    if (!std::filesystem::exists("/proc/self/task")) GTEST_SKIP() << "/proc is not mounted here";
  }
  const GuestMemory memory =
      guest_of({.name = "", .backing = {.source = MemorySource::shmem}}, 1_MiB);
};

TEST_F(ThreadNames, OfARestoreAndOfAScanOfItsMemory) {
  const auto source = std::make_shared<WordSource>();
  std::promise<void> may_read;
  source->before_read = [ready = may_read.get_future().share()](GuestAddress, std::size_t) {
    ready.wait();
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {});
  EXPECT_TRUE(has_thread("vmspace-restore"));
  const auto scan = DirtyScan::start(memory);
  if (scan) {
    EXPECT_TRUE(has_thread("vmspace-faults"));
  }
  may_read.set_value();
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  // Some kernels and users can restore lazily, but not scan.
  if (!scan) GTEST_SKIP() << scan.error().message();
}

TEST_F(ThreadNames, OfALiveSnapshot) {
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  EXPECT_TRUE(has_thread("vmspace-save"));
  EXPECT_TRUE(has_thread("vmspace-faults"));
}

std::atomic<bool> has_filled{false};

TEST_F(ThreadNames, OfThoseThatPopulate) {
  Injector injector;
  injector.table().madvise = [](void* address, std::size_t size, int advice) {
    char name[16];
    if (::prctl(PR_GET_NAME, name) == 0 && std::string(name) == "vmspace-fill") has_filled = true;
    return detail::real_system_calls.madvise(address, size, advice);
  };
  const auto backing = Backing::open({.source = MemorySource::anon}, 64_MiB);
  ASSERT_THAT(backing, IsOk());
  const auto mapping = MemoryMapping::map(*backing, {.size = 64_MiB});
  ASSERT_THAT(mapping, IsOk());
  // The thread that calls populate() may be done before the other one has begun.
  for (int i = 0; i < 100 && !has_filled; ++i) {
    VMSPACE_ASSERT_OK(populate(*mapping, {.threads = 2}));
    VMSPACE_ASSERT_OK(mapping->discard(0, 64_MiB));
  }
  EXPECT_TRUE(has_filled);
}

}  // namespace
}  // namespace vmspace::test::thread_names_test
