// SPDX-License-Identifier: Apache-2.0
//
// A VM goes on in the parent when a child that has forked destroys its copy: devices that the two have in
// common are told nothing.

#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/vmm/dma_callbacks.hpp"
#include "vmspace/vmm/dma_mappings.hpp"
#include "vmspace/vmm/vm_dirty_log.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "host/forked_child.hpp"
#include "vmm/vm_memory_support.hpp"

namespace vmspace::test::vm_forked_child_test {
namespace {

/// Counts what both processes do.
class SharedCount {
 public:
  SharedCount()
      : count_(static_cast<std::atomic<int>*>(::mmap(nullptr, sizeof(std::atomic<int>),
                                                     PROT_READ | PROT_WRITE,
                                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  SharedCount(const SharedCount&) = delete;
  SharedCount& operator=(const SharedCount&) = delete;
  ~SharedCount() { ::munmap(count_, sizeof *count_); }

  void add() const { ++*count_; }
  [[nodiscard]] int value() const { return *count_; }

 private:
  std::atomic<int>* count_;
};

TEST_F(VmMemoryTest, AForkedChildTellsListenersNothing) {
  const SharedCount calls;
  const auto recorder = std::make_shared<MemoryRecorder>();
  std::optional<VmMemory> own = VmMemory::create(planned()).value();
  VMSPACE_ASSERT_OK(own->add_listener(recorder));
  std::optional<VmDirtyLog> log = own->start_dirty_log().value();
  recorder->on_call([&](std::string_view) -> Result<void> {
    calls.add();
    return {};
  });
  in_a_child([&] {
    log.reset();
    own.reset();
  });
  EXPECT_EQ(calls.value(), 0);
  // What it owned is destroyed where it was made.
  log.reset();
  EXPECT_GT(calls.value(), 0) << "it logs no more";
  const int before = calls.value();
  own.reset();
  EXPECT_GT(calls.value(), before);
  EXPECT_THAT(recorder->table(), testing::IsEmpty());
}

TEST_F(VmMemoryTest, AForkedChildUnmapsNothingForDevices) {
  const SharedCount unmapped;
  auto target = DmaCallbacks::make({.context = const_cast<SharedCount*>(&unmapped),
                                    .map = [](void*, const DmaMapping*) { return 0; },
                                    .unmap =
                                        [](void* count, const DmaMapping*) {
                                          static_cast<const SharedCount*>(count)->add();
                                          return 0;
                                        }})
                    .value();
  std::optional<DmaMappings> mappings = DmaMappings::create(std::move(target)).value();
  const GuestMemory guest = memory.map()->memory;
  VMSPACE_ASSERT_OK(mappings->add(MemorySection(guest.regions().front())));
  destroy_in_a_child(mappings);
  EXPECT_EQ(unmapped.value(), 0);
  mappings.reset();
  EXPECT_EQ(unmapped.value(), 1);
}

}  // namespace
}  // namespace vmspace::test::vm_forked_child_test
