// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/zero_test.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "host/zero_test_variants.hpp"

namespace vmspace::zero_test_test {
namespace {

using Variant = bool (*)(std::span<const std::byte>) noexcept;

/// Each variant that this processor can run, and what chooses between them.
std::vector<Variant> variants() {
  std::vector<Variant> all{is_zero, detail::is_zero_baseline};
#if defined(__x86_64__)
  if (detail::has_avx2()) all.push_back(detail::is_zero_avx2);
#endif
  return all;
}

TEST(IsZero, EveryBitOfAPageIsSeen) {
  for (const Variant test : variants()) {
    std::array<std::byte, 4096> page{};
    ASSERT_TRUE(test(page));
    for (std::size_t i = 0; i < page.size(); ++i) {
      for (unsigned bit = 0; bit < 8; ++bit) {
        page[i] = std::byte{1} << bit;
        ASSERT_FALSE(test(page)) << i << " " << bit;
      }
      page[i] = {};
    }
  }
}

// Where a block, a vector or a word ends, one byte less and one more, at any address.
TEST(IsZero, AnyLengthAtAnyAddressIsExact) {
  for (const Variant test : variants()) {
    // Of ones but for the part that is asked about.
    std::vector<std::byte> memory(600, std::byte{0xff});
    for (std::size_t offset = 0; offset <= 33; ++offset) {
      for (std::size_t size = 0; size <= 300; ++size) {
        const auto part = std::span(memory).subspan(64 + offset, size);
        std::fill(part.begin(), part.end(), std::byte{0});
        ASSERT_TRUE(test(part)) << offset << " " << size;
        for (const std::size_t at : {std::size_t{0}, size / 2, size - 1}) {
          if (size == 0) break;
          part[at] = std::byte{0x80};
          ASSERT_FALSE(test(part)) << offset << " " << size << " " << at;
          part[at] = {};
        }
        std::fill(part.begin(), part.end(), std::byte{0xff});
      }
    }
  }
}

TEST(IsZero, NoBytesAreZero) {
  for (const Variant test : variants())
    EXPECT_TRUE(test({}));
}

TEST(IsZero, NothingPastTheEndIsRead) {
  constexpr std::size_t page = 65536;  // the largest page size that Linux has
  void* const pages =
      ::mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(pages, MAP_FAILED);
  auto* const end = static_cast<std::byte*>(pages) + page;
  ASSERT_EQ(::mprotect(end, page, PROT_NONE), 0);
  for (const Variant test : variants()) {
    for (std::size_t size = 0; size <= 520; ++size)
      EXPECT_TRUE(test({end - size, size}));
  }
  ::munmap(pages, 2 * page);
}

}  // namespace
}  // namespace vmspace::zero_test_test
