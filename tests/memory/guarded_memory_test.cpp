// SPDX-License-Identifier: Apache-2.0
//
// Accesses to memory whose pages go away. Signals as such are in fault_guard_test.cpp.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/memory/guest_ptr.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "host/host_support.hpp"
#include "memory/guarded_support.hpp"
#include "os/system_calls.hpp"

namespace vmspace::guarded_memory_test {
namespace {

using test::at;
using test::expect_fault;
using test::Guarded;
using test::guest;
using test::page;
using test::pattern;
using test::UnsealedFile;
using namespace literals;

constexpr auto relaxed = std::memory_order_relaxed;

TEST_F(Guarded, IsOrdinaryMemoryWhileItsPagesAreThere) {
  EXPECT_TRUE(memory.regions().front()->may_fault());
  std::vector<std::byte> read(size);
  ASSERT_THAT(memory.read_slice(at(base), read), IsOk());
  EXPECT_EQ(read, bytes);
  ASSERT_THAT(memory.write(at(base + half - 4), std::uint64_t{0x0102'0304'0506'0708}), IsOk());
  EXPECT_THAT(memory.read<std::uint64_t>(at(base + half - 4)), IsOkAndHolds(0x0102'0304'0506'0708));
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(3, 2)}));
  ASSERT_THAT(memory.store<std::uint32_t>(at(base), 7, relaxed), IsOk());
  EXPECT_THAT(memory.load<std::uint32_t>(at(base), relaxed), IsOkAndHolds(7U));
  EXPECT_THAT(memory.compare_exchange<std::uint32_t>(at(base), 7, 9), IsOkAndHolds(7U));
  EXPECT_THAT(memory.fetch_or<std::uint32_t>(at(base), 6), IsOkAndHolds(9U));
  EXPECT_THAT(memory.load<Le32>(at(base), relaxed), IsOkAndHolds(Le32(15)));
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(0, 1)}));
  EXPECT_THAT(memory.read<std::uint8_t>(at(base + size)), HasError(Errc::not_found));
  EXPECT_THAT(memory.read<std::uint64_t>(at(base + size - 4)), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory.load<std::uint32_t>(at(base + 1), relaxed), HasError(Errc::misaligned));
}

TEST_F(Guarded, ObjectsFaultAtTheirFirstByteThatIsGone) {
  keep(2);
  const std::uint64_t gone = base + 2 * page;
  expect_fault(memory.read<std::uint8_t>(at(gone)), gone, "GuestMemory::read");
  expect_fault(memory.read<std::uint64_t>(at(gone - 4)), gone, "GuestMemory::read");
  expect_fault(memory.write(at(gone - 4), std::uint64_t{0}), gone, "GuestMemory::write");
  using Large = std::array<std::uint8_t, 200>;
  expect_fault(memory.read<Large>(at(gone - 100)), gone, "GuestMemory::read");
  expect_fault(memory.write(at(gone - 100), Large{}), gone, "GuestMemory::write");
  const GuestPtr<std::uint32_t> pointer(memory, at(gone));
  expect_fault(pointer.read(), gone, "GuestMemory::read");
  EXPECT_THAT(memory.read<std::uint64_t>(at(gone - 8)), IsOk());
}

TEST_F(Guarded, AFaultTellsWhichAddress) {
  keep(2);
  const auto refused = memory.read<std::uint64_t>(at(base + 2 * page + 8));
  ASSERT_THAT(refused, HasError(Errc::fault));
  EXPECT_EQ(refused.error().message(),
            "GuestMemory::read: memory fault: [0x12008, 0x1200f] at 0x12008 (the page behind this "
            "address is gone: its file was truncated, or a hole punched)");
}

TEST_F(Guarded, IntegersFault) {
  VMSPACE_SKIP_WHERE_ATOMICS_CANT_FAULT();
  keep(2);
  const std::uint64_t gone = base + 2 * page + 8;
  const auto every_size = [&]<typename T>(T) {
    expect_fault(memory.load<T>(at(gone), relaxed), gone, "GuestMemory::load");
    expect_fault(memory.store<T>(at(gone), 1, relaxed), gone, "GuestMemory::store");
    expect_fault(memory.compare_exchange<T>(at(gone), 0, 1), gone, "GuestMemory::compare_exchange");
    expect_fault(memory.fetch_or<T>(at(gone), 1), gone, "GuestMemory::fetch_or");
  };
  every_size(std::uint8_t{});
  every_size(std::uint16_t{});
  every_size(std::uint32_t{});
  every_size(std::uint64_t{});
  expect_fault(memory.load<Le16>(at(gone), relaxed), gone, "GuestMemory::load");
  EXPECT_TRUE(harvest().empty());
}

TEST_F(Guarded, ASliceIsReadUpToThePageThatIsGone) {
  keep(3);
  std::vector<std::byte> to(size);
  expect_fault(memory.read_slice(at(base + 8), std::span(to).first(half)), base + 3 * page,
               "GuestMemory::read_slice");
  EXPECT_TRUE(std::ranges::equal(std::span(to).first(3 * page - 8), written(8, 3 * page - 8)));
  EXPECT_THAT(memory.read_some(at(base + 8), to), IsOkAndHolds(3 * page - 8));
  expect_fault(memory.read_some(at(base + 3 * page + 1), to), base + 3 * page + 1,
               "GuestMemory::read_some");
}

TEST_F(Guarded, WhatWasWrittenBeforeAFaultIsMarked) {
  keep(3);
  const auto from = pattern(5 * page, 9);
  expect_fault(memory.write_slice(at(base + page + 8), from), base + 3 * page,
               "GuestMemory::write_slice");
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(1, 2)}));
  std::vector<std::byte> to(2 * page - 8);
  ASSERT_THAT(memory.read_slice(at(base + page + 8), to), IsOk());
  EXPECT_TRUE(std::ranges::equal(to, std::span(from).first(to.size())));

  EXPECT_THAT(memory.write_some(at(base + 2 * page), from), IsOkAndHolds(page));
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(2, 1)}));
  expect_fault(memory.write_some(at(base + 3 * page), from), base + 3 * page,
               "GuestMemory::write_some");
  expect_fault(memory.fill(pages(1, 4), std::byte{5}), base + 3 * page, "GuestMemory::fill");
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(1, 2)}));
  EXPECT_THAT(memory.read<std::uint8_t>(at(base + 3 * page - 1)), IsOkAndHolds(5));
}

TEST_F(Guarded, AFaultInTheSecondRegionLeavesTheFirstWrittenAndMarked) {
  keep(4);
  expect_fault(memory.write_slice(at(base + 3 * page), pattern(2 * page, 9)), base + half,
               "GuestMemory::write_slice");
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(3, 1)}));
}

TEST_F(Guarded, CopiesFaultOnEitherSideAndMarkWhatIsDone) {
  keep(6);
  // Upwards, from what is gone; then downwards, to it.
  expect_fault(memory.copy(at(base), pages(4, 4)), base + 6 * page, "GuestMemory::copy");
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(0, 2)}));
  expect_fault(memory.copy(at(base + 4 * page), pages(0, 4)), base + 8 * page - page,
               "GuestMemory::copy");
  EXPECT_TRUE(harvest().empty());
}

TEST_F(Guarded, CopiesThatOverlapAreThoseOfMemmove) {
  std::vector<std::byte> expected = bytes;
  const auto check = [&](std::uint64_t to, std::uint64_t from, std::uint64_t count) {
    ASSERT_THAT(memory.copy(at(base + to), {at(base + from), count}), IsOk());
    std::memmove(expected.data() + to, expected.data() + from, count);
    std::vector<std::byte> now(size);
    ASSERT_THAT(memory.read_slice(at(base), now), IsOk());
    EXPECT_EQ(now, expected) << to << " " << from << " " << count;
  };
  check(100, 37, 5 * page + 11);
  check(37, 100, 5 * page + 11);
  check(page, 0, 7 * page);
  check(0, page, 7 * page);
  check(3, 2, 9000);
}

TEST_F(Guarded, StringsEndBeforeWhatIsGoneOrFault) {
  keep(1);
  ASSERT_THAT(memory.write_slice(at(base + page - 3), std::as_bytes(std::span("ab", 3))), IsOk());
  EXPECT_THAT(memory.read_string(at(base + page - 3), 100), IsOkAndHolds(std::string("ab")));
  ASSERT_THAT(memory.write(at(base + page - 1), std::uint8_t{'c'}), IsOk());
  expect_fault(memory.read_string(at(base + page - 3), 100), base + page,
               "GuestMemory::read_string");
}

TEST_F(Guarded, SystemCallsGiveTheErrorInsteadOfEfault) {
  const UnsealedFile source(size);
  ASSERT_EQ(pwrite(source.fd(), bytes.data(), size, 0), static_cast<ssize_t>(size));
  keep(2);
  const GuestRange gone = pages(2, 2);
  expect_fault(read_into_guest(source.fd(), memory, gone), gone.base.value(), "read_into_guest");
  expect_fault(write_from_guest(source.fd(), memory, gone), gone.base.value(), "write_from_guest");
  // A part, and then the error.
  ASSERT_EQ(lseek(source.fd(), 0, SEEK_SET), 0);
  EXPECT_THAT(read_into_guest(source.fd(), memory, pages(1, 2)), IsOkAndHolds(page));
  ASSERT_EQ(lseek(source.fd(), 0, SEEK_SET), 0);
  EXPECT_THAT(write_from_guest(source.fd(), memory, pages(1, 2)), IsOkAndHolds(page));
  const MemoryRegion& region = *memory.regions().front();
  expect_fault(region.load_image_from(source.fd(), 2 * page, page), gone.base.value(),
               "MemoryRegion::load_image_from");
  expect_fault(region.load_image(2 * page, std::span(bytes).first(page)), gone.base.value(),
               "MemoryRegion::load_image");
}

TEST_F(Guarded, SavingASnapshotFails) {
  const UnsealedFile target(0);
  EXPECT_THAT(save_snapshot(memory, target.fd()), IsOk());
  ASSERT_THAT(restore_snapshot(memory, target.fd()), IsOk());
  keep(2);
  for (const bool sparse : {true, false}) {
    // What was truncated before is found by its size; in between, by the fault.
    EXPECT_THAT(save_snapshot(memory, target.fd(), {.sparse = sparse}),
                HasError(Errc::out_of_bounds));
  }
}

// A file that is truncated by its owner between two system calls of ours.
const UnsealedFile* shrinking = nullptr;

class SystemCallsOf {
 public:
  explicit SystemCallsOf(const detail::SystemCalls& calls) : calls_(calls) {
    detail::current_system_calls = &calls_;
  }
  SystemCallsOf(const SystemCallsOf&) = delete;
  SystemCallsOf& operator=(const SystemCallsOf&) = delete;
  ~SystemCallsOf() { detail::current_system_calls = &detail::real_system_calls; }

 private:
  detail::SystemCalls calls_;
};

TEST_F(Guarded, AFileThatIsTruncatedBeforeItIsSavedFaults) {
  const UnsealedFile target(0);
  shrinking = &file;
  detail::SystemCalls calls = detail::real_system_calls;
  calls.lseek = [](int fd, off_t offset, int whence) {
    const off_t found = lseek(fd, offset, whence);
    if (whence == SEEK_HOLE) shrinking->resize(2 * page);
    return found;
  };
  const SystemCallsOf hooked(calls);
  // Where zeros are looked for, and where all of it is copied.
  for (const bool sparse : {true, false}) {
    shrinking->resize(size);
    ASSERT_THAT(memory.write_slice(at(base), bytes), IsOk());
    expect_fault(save_snapshot(memory, target.fd(), {.sparse = sparse}), base + 2 * page,
                 "save_snapshot");
  }
}

TEST_F(Guarded, ReadersPassWhatIsThereAndFaultBehind) {
  const GuestRange ranges[] = {{at(base + 100), 8}, pages(1, 3)};
  auto reader = VMSPACE_ASSERT_OK(GuestReader::make(memory, ranges));
  EXPECT_EQ(reader.remaining(), 3 * page + 8);
  std::array<std::byte, 8> head{};
  ASSERT_THAT(reader.read_exact(head), IsOk());
  EXPECT_TRUE(std::ranges::equal(head, written(100, 8)));
  EXPECT_EQ(reader.position(), 8U);
  EXPECT_THAT(reader.read<std::uint8_t>(), IsOkAndHolds(std::to_integer<unsigned>(bytes[page])));
  EXPECT_EQ(reader.iovecs().size(), 1U);
  EXPECT_EQ(reader.iovecs().front().iov_len, 3 * page - 1);

  keep(2);
  std::vector<std::byte> rest(3 * page - 1);
  expect_fault(reader.read_exact(rest), base + 2 * page, "GuestReader::read_exact");
  EXPECT_TRUE(std::ranges::equal(std::span(rest).first(page - 1), written(page + 1, page - 1)));
  EXPECT_EQ(reader.position(), 8 + page);
  EXPECT_EQ(reader.remaining(), 2 * page);
  expect_fault(reader.read<std::uint64_t>(), base + 2 * page, "GuestReader::read");
  const UnsealedFile target(0);
  expect_fault(reader.read_to(target.fd(), page, 0), base + 2 * page, "GuestReader::read_to");
  ASSERT_THAT(reader.skip(page), IsOk());
  expect_fault(reader.read<std::uint64_t>(), base + 3 * page, "GuestReader::read");
  EXPECT_THAT(reader.skip(page + 1), HasError(Errc::out_of_bounds));
}

TEST_F(Guarded, WritersMarkAndPassWhatTheyHaveWritten) {
  keep(2);
  const GuestRange ranges[] = {{at(base + 100), 8}, pages(1, 3)};
  auto writer = VMSPACE_ASSERT_OK(GuestWriter::make(memory, ranges));
  ASSERT_THAT(writer.write(std::uint32_t{7}), IsOk());
  EXPECT_THAT(memory.read<std::uint32_t>(at(base + 100)), IsOkAndHolds(7U));
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(0, 1)}));
  expect_fault(writer.write_exact(pattern(2 * page, 9)), base + 2 * page,
               "GuestWriter::write_exact");
  EXPECT_EQ(writer.position(), 8 + page);
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(0, 2)}));
  expect_fault(writer.write(std::uint8_t{1}), base + 2 * page, "GuestWriter::write");
  const UnsealedFile source(page);
  expect_fault(writer.write_from(source.fd(), page, 0), base + 2 * page, "GuestWriter::write_from");
  (void)harvest();
  ASSERT_THAT(writer.commit(page), IsOk());
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(2, 1)}));
  EXPECT_EQ(writer.remaining(), page);
}

TEST_F(Guarded, CursorsAreSplitAndMovedAsOthers) {
  const GuestRange ranges[] = {{at(base + 100), 8}, pages(1, 1), {at(base + half - 3), 10}};
  std::vector<std::byte> expected;
  for (const auto& [from, count] : ranges) {
    const auto part = written(from.value() - base, count);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  for (const std::size_t where : {std::size_t{0}, std::size_t{5}, std::size_t{8}, std::size_t{4104},
                                  std::size_t{4110}, expected.size()}) {
    auto first = VMSPACE_ASSERT_OK(GuestReader::make(memory, ranges));
    ASSERT_THAT(first.skip(std::min<std::size_t>(where, 2)), IsOk());
    const std::size_t passed = std::min<std::size_t>(where, 2);
    auto second = VMSPACE_ASSERT_OK(first.split_at(where - passed));
    EXPECT_EQ(first.remaining(), where - passed);
    EXPECT_EQ(second.remaining(), expected.size() - where);
    GuestReader moved = std::move(second);
    std::vector<std::byte> got(expected.size());
    ASSERT_THAT(first.read_exact(std::span(got).subspan(passed, where - passed)), IsOk());
    ASSERT_THAT(moved.read_exact(std::span(got).subspan(where)), IsOk());
    EXPECT_TRUE(
        std::ranges::equal(std::span(got).subspan(passed), std::span(expected).subspan(passed)));
    EXPECT_THAT(first.read<std::uint8_t>(), HasError(Errc::out_of_bounds));

    auto before = VMSPACE_ASSERT_OK(GuestWriter::make(memory, ranges));
    auto after = VMSPACE_ASSERT_OK(before.split_at(where));
    ASSERT_THAT(after.write_exact(std::span(expected).subspan(where)), IsOk());
    ASSERT_THAT(before.write_exact(std::span(expected).first(where)), IsOk());
    EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(0, 2), pages(3, 2)}));
    EXPECT_EQ(after.remaining(), 0U);
  }
}

TEST_F(Guarded, ACursorOverGuardedAndOtherMemoryFaultsWhereItIsGone) {
  auto mixed = VMSPACE_ASSERT_OK(memory.with_region(test::region({0, page})));
  keep(1);
  const GuestRange ranges[] = {{at(8), 16}, pages(1, 1)};
  auto writer = VMSPACE_ASSERT_OK(GuestWriter::make(mixed, ranges));
  ASSERT_THAT(writer.write(std::uint64_t{5}), IsOk());
  expect_fault(writer.write_exact(pattern(100)), base + page, "GuestWriter::write_exact");
  EXPECT_EQ(writer.position(), 16U);
  EXPECT_THAT(mixed.read<std::uint64_t>(at(8)), IsOkAndHolds(5U));
}

TEST_F(Guarded, RegionsMadeOfItAreGuardedToo) {
  const MemoryRegionPtr region = memory.regions().front();
  const auto moved = VMSPACE_ASSERT_OK(region->at(at(0x100000)));
  EXPECT_TRUE(moved->may_fault());
  RegionOptions smaller = region->description().options();
  smaller.size = 2 * page;
  const auto resized =
      VMSPACE_ASSERT_OK(region->with_size(VMSPACE_ASSERT_OK(AddressSpaceRegion::make(smaller))));
  EXPECT_TRUE(resized->may_fault());
  EXPECT_THAT(region->with_size(nullptr), HasError(Errc::invalid_argument));
  smaller.name = "another";
  const auto another = VMSPACE_ASSERT_OK(AddressSpaceRegion::make(smaller));
  EXPECT_THAT(region->with_size(another), HasError(Errc::invalid_argument));
  keep(1);
  const auto elsewhere = VMSPACE_ASSERT_OK(GuestMemory::from_regions({moved}));
  expect_fault(elsewhere.read<std::uint8_t>(at(0x101000)), 0x101000, "GuestMemory::read");
  const auto small = VMSPACE_ASSERT_OK(GuestMemory::from_regions({resized}));
  expect_fault(small.read<std::uint8_t>(at(base + page)), base + page, "GuestMemory::read");
}

TEST_F(Guarded, PagesThatComeBackCanBeUsed) {
  keep(2);
  expect_fault(memory.read<std::uint8_t>(at(base + 2 * page)), base + 2 * page,
               "GuestMemory::read");
  keep(8);
  EXPECT_THAT(memory.read<std::uint8_t>(at(base + 2 * page)), IsOkAndHolds(0));
}

TEST(GuardedHugePages, APageThatWasPunchedOutFaultsWhereThePoolIsEmpty) {
  const test::HugePages pool(2_MiB, 2);
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  const int file = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
  ASSERT_GE(file, 0);
  ASSERT_EQ(ftruncate(file, 4_MiB), 0);
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const std::vector<RegionDescriptor> regions{{.range = {at(0), 4_MiB}, .fd = file}};
  const auto memory = VMSPACE_ASSERT_OK(map_regions(regions));
  ASSERT_THAT(memory.fill({at(0), 4_MiB}, std::byte{1}), IsOk());
  ASSERT_EQ(ftruncate(file, 2_MiB), 0);
  expect_fault(memory.read<std::uint32_t>(at(2_MiB + 12)), 2_MiB + 12, "GuestMemory::read");
  EXPECT_THAT(memory.read<std::uint8_t>(at(2_MiB - 1)), IsOkAndHolds(1));
  // A hole is filled from the pool, unless somebody else has taken its last page.
  ASSERT_EQ(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2_MiB), 0);
  const std::uint64_t left = pool.free() * 2_MiB;
  void* const taken = mmap(nullptr, left, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
  ASSERT_NE(taken, MAP_FAILED);
  expect_fault(memory.write(at(16), std::uint64_t{1}), 16, "GuestMemory::write");
  ASSERT_EQ(munmap(taken, left), 0);
  EXPECT_THAT(memory.write(at(16), std::uint64_t{1}), IsOk());
  close(file);
}

}  // namespace
}  // namespace vmspace::guarded_memory_test
