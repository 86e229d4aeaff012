// SPDX-License-Identifier: Apache-2.0
//
// The check that the soak ends with: it finds what leaks, names it, and lets a process pass that only
// breathes.

#include "growth.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/host/backing.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::soak {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::size_t rounds = 60;

/// What the check says of a process that does this between samples.
std::string grown_by(const std::function<void(std::size_t)>& work) {
  GrowthCheck check(rounds);
  for (std::size_t round = 0; round < rounds; ++round) {
    work(round);
    check.add(Sample::now());
  }
  return check.grown().value_or("");
}

TEST(GrowthCheck, LetsAProcessPassThatGivesBackWhatItTakes) {
  std::vector<std::byte> kept;
  EXPECT_EQ(grown_by([&](std::size_t round) {
              // More in some rounds than in others.
              kept = std::vector<std::byte>(round % 3 * 4096 * 256, std::byte{1});
              std::thread([] {}).join();
              auto backing = Backing::open({.source = MemorySource::shmem}, 4096);
              VMSPACE_ASSERT_OK(backing);
              VMSPACE_ASSERT_OK(MemoryMapping::map(*backing, {.size = 4096}));
            }),
            "");
}

TEST(GrowthCheck, NamesADescriptorThatIsNeverClosed) {
  std::vector<int> leaked;
  EXPECT_THAT(grown_by([&](std::size_t round) {
                if (round % 10 == 0) leaked.push_back(::memfd_create("never_closed", MFD_CLOEXEC));
              }),
              AllOf(HasSubstr("descriptors grew from"), HasSubstr(" /memfd:never_closed"),
                    Not(HasSubstr("memory grew")), Not(HasSubstr("threads grew"))));
  for (const int fd : leaked)
    ::close(fd);
}

TEST(GrowthCheck, NamesAMappingThatIsNeverUnmapped) {
  std::vector<void*> leaked;
  EXPECT_THAT(grown_by([&](std::size_t) {
                const int fd = ::memfd_create("never_unmapped", MFD_CLOEXEC);
                ASSERT_EQ(::ftruncate(fd, 4096), 0);
                leaked.push_back(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0));
                ::close(fd);
              }),
              AllOf(HasSubstr("mappings grew from"), HasSubstr("r--s 4 KiB /memfd:never_unmapped"),
                    Not(HasSubstr("descriptors grew"))));
  for (void* const mapped : leaked)
    ::munmap(mapped, 4096);
}

TEST(GrowthCheck, FindsMemoryThatIsNeverFreed) {
  std::vector<std::unique_ptr<char[]>> leaked;
  leaked.reserve(rounds);
  EXPECT_THAT(grown_by([&](std::size_t) {
                leaked.push_back(std::make_unique<char[]>(std::size_t{16} << 10));
              }),
              AllOf(HasSubstr("allocated memory grew from"), Not(HasSubstr("descriptors grew"))));
}

// As when a file is written and never cut off: malloc knows nothing of it.
TEST(GrowthCheck, FindsPagesThatAreNeverGivenBack) {
  constexpr std::size_t size = rounds << 21;
  auto* const memory = static_cast<char*>(
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  EXPECT_THAT(grown_by([&](std::size_t round) { std::memset(memory + (round << 21), 1, 1 << 21); }),
              AllOf(HasSubstr("resident memory grew from"), Not(HasSubstr("allocated memory grew")),
                    Not(HasSubstr("mappings grew"))));
  ::munmap(memory, size);
}

TEST(GrowthCheck, NoticesAThreadThatStays) {
  std::vector<std::jthread> leaked;
  EXPECT_THAT(grown_by([&](std::size_t round) {
                if (round != rounds / 2) return;
                leaked.emplace_back([](const std::stop_token& stop) {
                  while (!stop.stop_requested())
                    ::usleep(1000);
                });
              }),
              HasSubstr("threads grew from"));
}

TEST(GrowthCheck, DoesNotJudgeAFewSamples) {
  GrowthCheck check(rounds);
  for (std::size_t i = 0; i + 1 < GrowthCheck::least_samples; ++i)
    check.add({.descriptors = i});
  EXPECT_FALSE(check.grown());
  check.add({.descriptors = 1000});
  EXPECT_TRUE(check.grown());
}

}  // namespace
}  // namespace vmspace::soak
