// SPDX-License-Identifier: Apache-2.0
//
// What the tests of snapshots share: files, a guest to save, and comparing two.

#pragma once

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::test {

using test::contents;
using test::guest;
using test::page;
using test::pattern;
using test::RegionSpec;
using test::resized;

/// A file without a name.
class TempFile {
 public:
  TempFile() : fd_(memfd_create("snapshot", MFD_CLOEXEC)) {}
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  ~TempFile() { close(fd_); }
  [[nodiscard]] int fd() const { return fd_; }

  [[nodiscard]] struct stat status() const {
    struct stat result {};
    EXPECT_EQ(fstat(fd_, &result), 0);
    return result;
  }
  [[nodiscard]] std::vector<std::byte> read(std::size_t size, off_t offset = 0) const {
    std::vector<std::byte> bytes(size);
    EXPECT_EQ(pread(fd_, bytes.data(), size, offset), static_cast<ssize_t>(size));
    return bytes;
  }
  void write(const std::vector<std::byte>& bytes, off_t offset = 0) const {
    EXPECT_EQ(pwrite(fd_, bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
  }

 private:
  int fd_;
};

inline constexpr std::uint64_t low = 0x1000;
inline constexpr std::uint64_t high = 0x1'0000'0000;
/// The address of the last page that there is.
inline constexpr std::uint64_t last_page = ~std::uint64_t{0xfff};
/// The bytes of header and table of sample().
inline constexpr std::size_t metadata = 128 + 2 * 32;

/// Two regions, at `low` and `high`, with a few pages that are not zero.
inline GuestMemory sample(MemorySource source) {
  const GuestMemory memory = guest({{low, 64 * page, Protection::read_write, source},
                                    {high, 300 * page, Protection::read_write, source}});
  EXPECT_TRUE(memory.write_slice(GuestAddress(low + 3 * page + 17), pattern(2 * page, 1)));
  EXPECT_TRUE(memory.write_slice(GuestAddress(high + 299 * page), pattern(page, 2)));
  VMSPACE_EXPECT_OK(memory.write(GuestAddress(high), std::uint8_t{1}));
  // Written once, and zero again: used memory that need not be saved.
  EXPECT_TRUE(memory.fill({GuestAddress(high + 100 * page), page}, std::byte{7}));
  EXPECT_TRUE(memory.fill({GuestAddress(high + 100 * page), page}, std::byte{0}));
  return memory;
}

inline void expect_same(const GuestMemory& a, const GuestMemory& b) {
  ASSERT_EQ(a.regions().size(), b.regions().size());
  for (const auto& region : a.regions()) {
    EXPECT_EQ(contents(a, region->base().value(), region->size()),
              contents(b, region->base().value(), region->size()));
  }
}

}  // namespace vmspace::test
