// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/guest_access.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

namespace vmspace::detail::guest_access_test {
namespace {

struct Part {
  std::size_t offset;
  std::size_t size;
};

std::vector<Part> parts(std::uintptr_t address, std::size_t bytes) {
  std::vector<Part> found;
  for_each_word(address, bytes, [&]<typename Word>(std::size_t offset, Word) {
    found.push_back({offset, sizeof(Word)});
  });
  return found;
}

TEST(GuestAccess, WordsCoverAnObjectOnceAndDivideNoAlignedInteger) {
  for (std::uintptr_t address = 64; address < 72; ++address) {
    for (std::size_t bytes = 1; bytes <= inline_copy_limit; ++bytes) {
      SCOPED_TRACE(std::to_string(bytes) + " bytes at " + std::to_string(address));
      const auto words = parts(address, bytes);
      std::size_t covered = 0;
      for (const Part& word : words) {
        ASSERT_EQ(word.offset, covered);
        ASSERT_EQ((address + word.offset) % word.size, 0U);
        covered += word.size;
      }
      ASSERT_EQ(covered, bytes);
      for (std::size_t size = 1; size <= 8; size *= 2) {
        for (std::size_t offset = 0; offset + size <= bytes; ++offset) {
          if ((address + offset) % size != 0) continue;
          std::size_t in = 0;
          for (const Part& word : words) {
            in += word.offset <= offset && offset + size <= word.offset + word.size ? 1 : 0;
          }
          ASSERT_EQ(in, 1U) << "an integer of " << size << " at " << offset;
        }
      }
    }
  }
}

template <std::size_t size>
void expect_copies() {
  using Object = std::array<std::uint8_t, size>;
  alignas(8) std::array<std::byte, 80> memory{};
  for (std::size_t start = 1; start < 10; ++start) {
    Object object;
    for (std::size_t i = 0; i < size; ++i)
      object[i] = static_cast<std::uint8_t>(i + start);
    memory.fill(std::byte{0xee});
    store_once(memory.data() + start, object);
    for (std::size_t i = 0; i < memory.size(); ++i) {
      const bool inside = i >= start && i < start + size;
      ASSERT_EQ(memory[i], inside ? std::byte{object[i - start]} : std::byte{0xee}) << i;
    }
    Object loaded{};
    load_once(loaded, memory.data() + start);
    ASSERT_EQ(loaded, object);
  }
}

TEST(GuestAccess, ObjectsOfEverySizeAreCopiedAtEveryAlignment) {
  [&]<std::size_t... size>(std::index_sequence<size...>) {
    (expect_copies<size + 1>(), ...);
  }
  (std::make_index_sequence<inline_copy_limit>{});
}

// What programs under ThreadSanitizer call, of a library that was compiled without it too.

TEST(GuestAccess, MovingAtomicallyIsMemmove) {
  for (std::size_t to = 0; to < 24; ++to) {
    for (std::size_t from = 0; from < 24; ++from) {
      for (std::size_t bytes = 0; bytes <= 40; ++bytes) {
        alignas(8) std::array<std::byte, 64> moved;
        for (std::size_t i = 0; i < moved.size(); ++i)
          moved[i] = static_cast<std::byte>(i);
        auto expected = moved;
        std::memmove(expected.data() + to, expected.data() + from, bytes);
        move_atomically(moved.data() + to, moved.data() + from, bytes);
        ASSERT_EQ(moved, expected) << to << ' ' << from << ' ' << bytes;
      }
    }
  }
}

TEST(GuestAccess, FillingAtomicallyIsMemset) {
  std::array<std::byte, 16> filled{};
  fill_atomically(filled.data() + 3, std::byte{7}, 9);
  for (std::size_t i = 0; i < filled.size(); ++i)
    EXPECT_EQ(filled[i], std::byte{i >= 3 && i < 12 ? std::uint8_t{7} : std::uint8_t{0}}) << i;
}

}  // namespace
}  // namespace vmspace::detail::guest_access_test
