// SPDX-License-Identifier: Apache-2.0
//
// A guest whose memory is another's file, which can be truncated under it.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/host/fault_guard.hpp"
#include "vmspace/memory/detail/guest_access.hpp"
#include "vmspace/memory/region_descriptor.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

// ThreadSanitizer runs handlers with all signals blocked, where a fault kills the process.
#define VMSPACE_SKIP_WHERE_HANDLERS_CANT_FAULT()                                               \
  if (VMSPACE_DETAIL_TSAN)                                                                     \
  GTEST_SKIP() << "ThreadSanitizer blocks all signals in a handler, so that a fault in it is " \
                  "fatal"

// Its runtime makes ordered atomic accesses under a lock of its own, which a fault leaves locked.
#define VMSPACE_SKIP_WHERE_ATOMICS_CANT_FAULT() \
  if (VMSPACE_DETAIL_TSAN)                      \
  GTEST_SKIP() << "ThreadSanitizer holds a lock during an atomic access that faults"

namespace vmspace::test {

/// A file that is not sealed; closed at the end.
class UnsealedFile {
 public:
  explicit UnsealedFile(std::uint64_t size) : fd_(memfd_create("unsealed", MFD_CLOEXEC)) {
    resize(size);
  }
  UnsealedFile(const UnsealedFile&) = delete;
  UnsealedFile& operator=(const UnsealedFile&) = delete;
  ~UnsealedFile() { close(fd_); }

  [[nodiscard]] int fd() const { return fd_; }
  void resize(std::uint64_t size) const {
    ASSERT_EQ(ftruncate(fd_, static_cast<off_t>(size)), 0) << size;
  }

 private:
  int fd_;
};

/// Two adjacent regions of four pages of one file; the pages after `kept` can be taken away:
///
///   0x10000 ........ ........ | ........ ........ 0x18000
class Guarded : public ::testing::Test {
 protected:
  static constexpr std::uint64_t base = 0x10000;
  static constexpr std::uint64_t half = 4 * page;
  static constexpr std::uint64_t size = 2 * half;

  void SetUp() override {
    auto guard = FaultGuard::install();
    ASSERT_THAT(guard, IsOk());
    const std::vector<RegionDescriptor> halves{
        {.range = {at(base), half}, .fd = file.fd()},
        {.range = {at(base + half), half}, .fd = file.fd(), .offset = half}};
    auto mapped = map_regions(halves);
    ASSERT_THAT(mapped, IsOk());
    memory = *mapped;
    ASSERT_THAT(memory.check_invariants(), IsOk());
    bytes = pattern(size);
    ASSERT_THAT(memory.write_slice(at(base), bytes), IsOk());
    ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  }

  /// Leaves the first `count` pages.
  void keep(std::uint64_t count) const { file.resize(count * page); }

  std::vector<GuestRange> harvest() const {
    auto ranges = harvest_dirty(memory);
    VMSPACE_EXPECT_OK(ranges);
    return *ranges;
  }
  static GuestRange pages(std::uint64_t first, std::uint64_t count) {
    return {at(base + first * page), count * page};
  }
  [[nodiscard]] std::span<const std::byte> written(std::uint64_t offset,
                                                   std::uint64_t count) const {
    return std::span(bytes).subspan(static_cast<std::size_t>(offset),
                                    static_cast<std::size_t>(count));
  }

  UnsealedFile file{size};
  GuestMemory memory;
  std::vector<std::byte> bytes;
};

/// `fault` at this address.
template <typename R>
void expect_fault(const R& result, std::uint64_t address, const char* operation) {
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::fault) << result.error().message();
  EXPECT_EQ(result.error().second, Operand::address(address)) << result.error().message();
  EXPECT_STREQ(result.error().operation, operation);
}

}  // namespace vmspace::test
