// SPDX-License-Identifier: Apache-2.0
//
// VfioContainer against the kernel's rules: what it says of itself, whatever that is, and each
// call.

#include "vmspace/vmm/vfio_container.hpp"

#include <linux/vfio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "vmm/fake_vfio.hpp"

namespace vmspace::vfio_container_test {
namespace {

using namespace literals;
using testing::AllOf;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::Property;

using Info = vfio_iommu_type1_info;
using Bytes = std::vector<std::byte>;

class VfioContainerTest : public test::FakeVfio {
 protected:
  static constexpr DmaMapping ram(std::uint64_t iova, std::uint64_t size, bool read_only = false) {
    return {.iova = iova,
            .size = size,
            .host_address = nullptr,  // the fake's processes map their page 0
            .read_only = read_only};
  }
};

TEST_F(VfioContainerTest, KeepsADescriptorOfItsOwnAndClosesIt) {
  {
    const auto container = open();
    EXPECT_EQ(open_descriptors, 1);
    EXPECT_EQ(container->name(), "vfio");
  }
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(VfioContainerTest, WhatIsNoContainerIsRefusedAndLeaksNothing) {
  for (int k = 0; k < 2; ++k) {
    fail_next(k, ENOTTY);
    const auto refused = VfioContainer::open(container_fd);
    ASSERT_THAT(refused, HasError(Errc::os));
    EXPECT_EQ(refused.error().os_errno, ENOTTY);
    EXPECT_EQ(open_descriptors, 0);
  }
  fail_call.reset();
  api_version = 1;
  EXPECT_THAT(VfioContainer::open(container_fd), HasError(Errc::unsupported));
  api_version = VFIO_API_VERSION;
  has_type1 = 0;  // no IOMMU at all
  EXPECT_THAT(VfioContainer::open(container_fd), HasError(Errc::unsupported));
  EXPECT_EQ(open_descriptors, 0);
  fail_duplicate = true;
  EXPECT_THAT(VfioContainer::open(container_fd), HasError(Errc::os));
  EXPECT_THAT(VfioContainer::open(-1), HasError(Errc::os));
}

TEST_F(VfioContainerTest, OpeningIsAllOrNothingWhenMemoryRunsOut) {
  const int failed = test::fail_each_allocation(
      [&] { EXPECT_TRUE(VfioContainer::open(container_fd).has_value()); },
      [&] { EXPECT_EQ(open_descriptors, 0); });
  EXPECT_EQ(failed, 1);
}

TEST_F(VfioContainerTest, SaysWhatTheKernelSays) {
  iova_ranges = {Range::of(0, 0xfedf'ffff), Range::of(0xfef0'0000, (1ULL << 39) - 1)};
  mapping_limit = 65535;
  const auto container = open();
  EXPECT_THAT(
      container->limits(),
      IsOkAndHolds(DmaLimits{.iova_ranges = *iova_ranges, .page_size = 4096, .available = 65535}));
  VMSPACE_ASSERT_OK(container->map(ram(0, 64_KiB)));
  EXPECT_EQ(container->limits()->available, 65534u);
}

TEST_F(VfioContainerTest, WhatAKernelDoesNotSayIsNoLimit) {
  const auto container = open();
  EXPECT_THAT(container->limits(), IsOkAndHolds(DmaLimits{.page_size = page_size}));
  page_sizes.reset();
  EXPECT_THAT(container->limits(), IsOkAndHolds(DmaLimits{.page_size = page_size}));
  mapping_limit = 7;
  EXPECT_EQ(container->limits()->available, 7u);
}

TEST_F(VfioContainerTest, ThePageIsTheSmallestOfTheIommuAndNotBelowTheHosts) {
  const auto container = open();
  page_sizes = std::uint64_t{1} << 30 | std::uint64_t{1} << 16;
  EXPECT_EQ(container->limits()->page_size, 64_KiB);
  page_sizes = ~std::uint64_t{0};
  EXPECT_EQ(container->limits()->page_size, page_size);
  page_sizes = std::uint64_t{1} << 63;
  EXPECT_EQ(container->limits()->page_size, std::uint64_t{1} << 63);
  page_sizes = 0;
  EXPECT_THAT(container->limits(), HasError(Errc::corrupt));
}

TEST_F(VfioContainerTest, AnAnswerLargerThanTheFirstBufferIsAskedForAgain) {
  iova_ranges.emplace();
  for (std::uint64_t i = 0; i < 1000; ++i)
    iova_ranges->push_back(*Range::from_base_size(i * 2_MiB, 1_MiB));
  const auto container = open();
  calls = 0;
  const auto limits = container->limits();
  ASSERT_THAT(limits, IsOk());
  EXPECT_EQ(limits->iova_ranges, *iova_ranges);
  EXPECT_EQ(calls, 2);
}

TEST_F(VfioContainerTest, AnAnswerThatNeverFitsIsAnError) {
  const auto container = open();
  edit_info = [](Bytes& answer) { put(answer, 0, ~std::uint32_t{0}); };
  EXPECT_THAT(container->limits(), HasError(Errc::corrupt));
  std::uint32_t size = 8192;
  edit_info = [&](Bytes& answer) { put(answer, 0, ++size); };
  calls = 0;
  EXPECT_THAT(container->limits(), HasError(Errc::corrupt)) << "it grows each time";
  EXPECT_LE(calls, 8);
}

TEST_F(VfioContainerTest, AContainerWithoutAnIommuHasNoLimitsToTell) {
  has_iommu = false;
  const auto limits = open()->limits();
  ASSERT_THAT(limits, HasError(Errc::os));
  EXPECT_EQ(limits.error().os_errno, EINVAL);
}

// Each answer is broken in one place; nothing beyond it is read (AddressSanitizer watches).
TEST_F(VfioContainerTest, ABrokenAnswerIsAnErrorWhereverItIsBroken) {
  iova_ranges = {Range::of(0, 1_GiB - 1)};
  mapping_limit = 9;
  const auto container = open();
  VMSPACE_ASSERT_OK(container->limits());
  constexpr std::size_t first = sizeof(Info);  // the IOVA ranges, then 24 bytes of migration
  constexpr std::size_t next = offsetof(vfio_info_cap_header, next);
  constexpr std::size_t cap_offset = offsetof(Info, cap_offset);
  const auto set = [](std::size_t at, std::uint32_t value) {
    return [=](Bytes& answer) { put(answer, at, value); };
  };
  const std::function<void(Bytes&)> broken[] = {
      set(0, 0),                   // the size of the answer: nothing
      set(0, 15),                  // or not its fixed part
      set(0, 19),                  // or not where the chain begins
      set(0, 24),                  // or nothing of the chain
      set(0, 40),                  // or not all of a range
      set(cap_offset, 4),          // in the fixed part
      set(cap_offset, 16),         // on itself
      set(cap_offset, ~0u),        // beyond all
      set(cap_offset, ~0u - 7),    //
      set(cap_offset, 4096 - 4),   // at the end of the buffer
      set(first + next, first),    // a chain that runs in a circle
      set(first + next, 1 << 16),  // or leaves
      set(first + 8, ~0u),         // more ranges than there are bytes
      [](Bytes& answer) { put(answer, first + 16, vfio_iova_range{.start = 2, .end = 1}); },
      [](Bytes& answer) {  // the only capability, with half of its range
        put(answer, first + next, std::uint32_t{0});
        put(answer, 0, std::uint32_t{first + 16 + 8});
      },
      [](Bytes& answer) {  // the number of mappings that are left, without its end
        put(answer, 0, static_cast<std::uint32_t>(answer.size() - 1));
      },
  };
  int number = 0;
  for (const auto& edit : broken) {
    edit_info = edit;
    EXPECT_THAT(container->limits(),
                HasErrorThat(AllOf(Field(&Error::code, Errc::corrupt),
                                   Property(&Error::message, HasSubstr("VFIO_IOMMU_GET_INFO")))))
        << "number " << number;
    ++number;
  }
}

TEST_F(VfioContainerTest, CapabilitiesThatAreNotKnownArePassedOver) {
  iova_ranges = {Range::of(0, 1_GiB - 1)};
  mapping_limit = 9;
  const auto container = open();
  edit_info = [](Bytes& answer) {
    put(answer, sizeof(Info), vfio_info_cap_header{.id = 77, .version = 1, .next = 0});
  };
  EXPECT_THAT(container->limits(), IsOkAndHolds(DmaLimits{.page_size = page_size}));
  edit_info = [](Bytes& answer) {
    put(answer, sizeof(Info) + offsetof(vfio_info_cap_header, version), std::uint16_t{2});
  };
  EXPECT_THAT(container->limits(), IsOkAndHolds(DmaLimits{.page_size = page_size, .available = 9}));
}

// Whatever bytes the answer has: an error or limits that make sense, and no access beyond it.
TEST_F(VfioContainerTest, AnyBytesAreAnErrorOrLimits) {
  iova_ranges = {Range::of(0, 1_GiB - 1), Range::of(4_GiB, 5_GiB)};
  mapping_limit = 9;
  const auto container = open();
  std::uint64_t state = 1;
  const auto random = [&] {  // splitmix64
    std::uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  };
  int fine = 0;
  for (int round = 0; round < 5000; ++round) {
    edit_info = [&](Bytes& answer) {
      for (std::uint64_t n = random() % 4; n != 0; --n)
        answer[random() % answer.size()] = static_cast<std::byte>(random() % 64);
    };
    const auto limits = container->limits();
    if (!limits) continue;
    ++fine;
    EXPECT_GE(limits->page_size, page_size);
    EXPECT_TRUE((limits->page_size & (limits->page_size - 1)) == 0);
  }
  EXPECT_GT(fine, 500);
}

TEST_F(VfioContainerTest, MapsWithTheFlagsOfTheMemory) {
  const auto container = open();
  VMSPACE_ASSERT_OK(container->map(
      {.iova = 4_GiB, .size = 2_MiB, .host_address = reinterpret_cast<void*>(32_TiB)}));
  VMSPACE_ASSERT_OK(container->map(ram(0, 64_KiB, true)));
  const std::uint32_t both = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  EXPECT_THAT(mapped, ElementsAre(Pair(0, Mapped{64_KiB, 0, VFIO_DMA_MAP_FLAG_READ}),
                                  Pair(4_GiB, Mapped{2_MiB, 32_TiB, both})));
  VMSPACE_ASSERT_OK(container->unmap(ram(0, 64_KiB, true)));
  VMSPACE_ASSERT_OK(container->unmap(ram(4_GiB, 2_MiB)));
  EXPECT_THAT(mapped, IsEmpty());
}

TEST_F(VfioContainerTest, AFailureToMapSaysWhatItsErrnoMeansHere) {
  const auto container = open();
  struct Case {
    int error;
    const char* text;
  };
  for (const Case& c : {Case{ENOMEM, "RLIMIT_MEMLOCK"}, Case{EFAULT, "can't be pinned"},
                        Case{ENOSPC, "no mapping left"}, Case{EEXIST, "a mapping there already"},
                        Case{EINVAL, "can't map these addresses"}, Case{EPERM, "MAP_DMA"}}) {
    fail_next(0, c.error);
    const auto refused = container->map(ram(1_MiB, 64_KiB));
    ASSERT_THAT(refused, HasError(Errc::os));
    EXPECT_EQ(refused.error().os_errno, c.error);
    EXPECT_THAT(refused.error().message(),
                AllOf(HasSubstr("VfioContainer::map: failed: [0x100000, 0x10ffff]"),
                      HasSubstr(c.text), HasSubstr(std::strerror(c.error))));
  }
  EXPECT_THAT(mapped, IsEmpty());
}

TEST_F(VfioContainerTest, TheSizeThatWasUnmappedIsChecked) {
  const auto container = open();
  const DmaMapping mapping = ram(1_MiB, 64_KiB);
  for (const std::uint64_t size : {page_size, std::uint64_t{128_KiB}, ~std::uint64_t{0}}) {
    VMSPACE_ASSERT_OK(container->map(mapping));
    unmapped_size = size;
    const auto unmapped = container->unmap(mapping);
    ASSERT_THAT(unmapped, HasError(Errc::corrupt));
    EXPECT_EQ(unmapped.error().second, Operand::size(size));
    unmapped_size.reset();
    VMSPACE_EXPECT_OK(container->unmap(mapping)) << "nothing is left";
  }
}

TEST_F(VfioContainerTest, OnlyWholeMappingsAreUnmapped) {
  const auto container = open();
  VMSPACE_ASSERT_OK(container->map(ram(1_MiB, 64_KiB)));
  for (const DmaMapping& part : {ram(1_MiB, page_size), ram(1_MiB + page_size, page_size),
                                 ram(1_MiB, 64_KiB - page_size), ram(1_MiB + 1, 64_KiB)}) {
    const auto refused = container->unmap(part);
    ASSERT_THAT(refused, HasError(Errc::os));
    EXPECT_EQ(refused.error().os_errno, EINVAL);
  }
  EXPECT_EQ(mapped.size(), 1u);
}

}  // namespace
}  // namespace vmspace::vfio_container_test
