// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_log.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "faults/injector.hpp"
#include "vmm/vhost_user_support.hpp"

namespace vmspace::vhost_user_log_test {
namespace {

using namespace test;

/// A log of so many bytes, and the other process's view of its bits.
struct LogAndBits {
  explicit LogAndBits(std::uint64_t size) : file(memory_file(8_KiB)) {
    log = VhostUserLog::map({.fd = file.value(), .size = size}).value_or(VhostUserLog());
    EXPECT_TRUE(log.is_on());
  }
  [[nodiscard]] std::vector<unsigned char> bits() const {
    std::vector<unsigned char> bytes(8_KiB);
    EXPECT_EQ(::pread(file.value(), bytes.data(), bytes.size(), 0), 8192);
    return bytes;
  }
  [[nodiscard]] std::vector<std::uint64_t> marked() const {
    std::vector<std::uint64_t> pages;
    const auto bytes = bits();
    for (std::uint64_t page = 0; page < bytes.size() * 8; ++page) {
      if ((bytes[page / 8] >> page % 8 & 1) != 0) pages.push_back(page);
    }
    return pages;
  }

  Descriptor file;
  VhostUserLog log;
};

TEST(VhostUserLog, MarksEveryPageThatARangeTouchesAndNoOther) {
  for (const std::uint64_t first : {0U, 1U, 7U, 8U, 13U, 64U}) {
    for (const std::uint64_t count : {1U, 2U, 7U, 8U, 9U, 16U, 33U}) {
      const LogAndBits made(64);
      // From the last byte of the first page to the first of the last, or one byte.
      const std::uint64_t base = first * 4_KiB + 4095;
      const std::uint64_t size = count == 1 ? 1 : (count - 2) * 4_KiB + 2;
      VMSPACE_EXPECT_OK(made.log.mark({GuestAddress(base), size}));
      std::vector<std::uint64_t> expected(count);
      std::iota(expected.begin(), expected.end(), first);
      EXPECT_EQ(made.marked(), expected) << first << " " << count;
    }
  }
}

TEST(VhostUserLog, KeepsBitsThatAreSet) {
  const LogAndBits made(64);
  VMSPACE_EXPECT_OK(made.log.mark({GuestAddress(0), 4_KiB}));
  VMSPACE_EXPECT_OK(made.log.mark({GuestAddress(8_KiB), 4_KiB}));
  VMSPACE_EXPECT_OK(made.log.mark({GuestAddress(0), 4_KiB}));
  EXPECT_THAT(made.marked(), testing::ElementsAre(0, 2));
}

TEST(VhostUserLog, RangesBeyondItMarkNothing) {
  const LogAndBits made(3);  // 24 pages: a log need not end with a word
  const auto mark = [&](std::uint64_t base, std::uint64_t size) {
    return made.log.mark({GuestAddress(base), size});
  };
  EXPECT_TRUE(made.log.covers({GuestAddress(0), 96_KiB}));
  EXPECT_FALSE(made.log.covers({GuestAddress(0), 96_KiB + 1}));
  EXPECT_FALSE(made.log.covers({GuestAddress(4_KiB), UINT64_MAX}));
  EXPECT_THAT(mark(0, 96_KiB + 1), HasError(Errc::out_of_bounds));
  EXPECT_THAT(mark(96_KiB, 1), HasError(Errc::out_of_bounds));
  EXPECT_THAT(mark(UINT64_MAX, 1), HasError(Errc::out_of_bounds));
  EXPECT_THAT(mark(UINT64_MAX, 2), HasError(Errc::overflow));
  VMSPACE_EXPECT_OK(mark(UINT64_MAX, 0));
  EXPECT_THAT(made.marked(), testing::IsEmpty());
  VMSPACE_EXPECT_OK(mark(96_KiB - 1, 1));
  EXPECT_THAT(made.marked(), testing::ElementsAre(23));
}

TEST(VhostUserLog, WhatIsTakenOfARangeThatPasses2To64EndsThere) {
  const LogAndBits made(64);
  VMSPACE_EXPECT_OK(made.log.mark({GuestAddress(8_KiB), 1}));
  std::vector<GuestRange> taken;
  const auto take = [&](std::uint64_t base) {
    made.log.take({GuestAddress(base), UINT64_MAX},
                  [&](GuestRange range) { taken.push_back(range); });
  };
  take(12_KiB);
  EXPECT_THAT(taken, testing::IsEmpty());
  take(4_KiB);
  EXPECT_THAT(taken, testing::ElementsAre(GuestRange{GuestAddress(8_KiB), 4_KiB}));
}

TEST(VhostUserLog, NoLogTakesAnyMark) {
  const VhostUserLog none;
  EXPECT_FALSE(none.is_on());
  EXPECT_EQ(none.size(), 0U);
  VMSPACE_EXPECT_OK(none.mark({GuestAddress(UINT64_MAX), 5}));
}

TEST(VhostUserLog, CopiesAreOneLogAndTheLastUnmapsIt) {
  const std::uint64_t before = address_space_bytes();
  const Descriptor file = memory_file(256_MiB);
  {
    VhostUserLog copy;
    {
      const auto log =
          VMSPACE_ASSERT_OK(VhostUserLog::map({.fd = file.value(), .size = 256_MiB - 3}));
      copy = log;
    }
    VMSPACE_EXPECT_OK(copy.mark({GuestAddress(0), 1}));
    EXPECT_GE(address_space_bytes(), before + 256_MiB);
  }
  EXPECT_LT(address_space_bytes(), before + 128_MiB);
}

TEST(VhostUserLog, AMovedHandleIsStillAHandle) {
  LogAndBits made(64);
  { const VhostUserLog moved = std::move(made.log); }
  VMSPACE_EXPECT_OK(made.log.mark({GuestAddress(4_KiB), 1}));  // NOLINT(bugprone-use-after-move)
  EXPECT_THAT(made.marked(), testing::ElementsAre(1));
}

TEST(VhostUserLog, BeginsWhereTheAreaDoes) {
  const Descriptor file = memory_file(8_KiB);
  const auto log =
      VMSPACE_ASSERT_OK(VhostUserLog::map({.fd = file.value(), .size = 4_KiB, .offset = 4_KiB}));
  VMSPACE_EXPECT_OK(log.mark({GuestAddress(0), 1}));
  unsigned char byte = 0;
  EXPECT_EQ(::pread(file.value(), &byte, 1, 4096), 1);
  EXPECT_EQ(byte, 1U);
}

TEST(VhostUserLog, AreasThatCanNotBeMappedAreRefused) {
  const Descriptor file = memory_file(8_KiB);
  const auto map = [&](std::uint64_t size, std::uint64_t offset) {
    return VhostUserLog::map({.fd = file.value(), .size = size, .offset = offset});
  };
  EXPECT_THAT(map(0, 0), HasError(Errc::zero_size));
  EXPECT_THAT(map(64, 64), HasError(Errc::misaligned));
  EXPECT_THAT(map(8_KiB + 1, 0), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map(64, 8_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map(UINT64_MAX, 0), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map(UINT64_MAX, 4_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map(64, UINT64_MAX - 4095), HasError(Errc::out_of_bounds));
  EXPECT_THAT(VhostUserLog::map({.fd = -1, .size = 64}), HasError(Errc::os));
  const SocketPair pair;
  EXPECT_THAT(VhostUserLog::map({.fd = pair.front.value(), .size = 64}),
              HasError(Errc::invalid_argument));
  const Descriptor sealed = memory_file(8_KiB, F_SEAL_SHRINK | F_SEAL_WRITE);
  EXPECT_THAT(VhostUserLog::map({.fd = sealed.value(), .size = 64}), HasError(Errc::os));
  EXPECT_THAT(VhostUserLog::map({.fd = file.value(), .size = 64}, static_cast<Unsealed>(9)),
              HasError(Errc::invalid_argument));
}

TEST(VhostUserLog, AFileThatCanShrinkIsTakenOnlyWhenThatIsAccepted) {
  const Descriptor file = memory_file(4_KiB, 0);
  const VhostUserLogArea area{.fd = file.value(), .size = 64};
  EXPECT_THAT(VhostUserLog::map(area), HasError(Errc::access_denied));
  EXPECT_THAT(VhostUserLog::map(area, Unsealed::accept), IsOk());
}

TEST(VhostUserLogFaults, EveryFailingCallIsReportedAndLeavesNoMapping) {
  const Descriptor file = memory_file(256_MiB);
  const VhostUserLogArea area{.fd = file.value(), .size = 256_MiB};
  Injector injector;
  injector.fail_none();
  EXPECT_THAT(VhostUserLog::map(area), IsOk());
  const auto calls = injector.calls();
  const std::uint64_t mapped = address_space_bytes();
  for (std::size_t index = 0; index < calls.size(); ++index) {
    if (calls[index] == "munmap") continue;  // its memory is lost
    for (const int error : {EINTR, ENOMEM, EACCES}) {
      injector.fail_call(index, error);
      const auto done = VhostUserLog::map(area);
      ASSERT_TRUE(injector.has_failed());
      if (error == EINTR && calls[index] != "mmap") {
        EXPECT_THAT(done, IsOk());
      } else {
        ASSERT_THAT(done, HasError(Errc::os)) << calls[index];
        EXPECT_EQ(done.error().os_errno, error);
        EXPECT_LT(address_space_bytes(), mapped + 128_MiB);
      }
    }
  }
}

}  // namespace
}  // namespace vmspace::vhost_user_log_test
