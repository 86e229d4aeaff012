// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/endian.hpp"

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace {
namespace {

using testing::guest;
using testing::page;

template <typename T>
constexpr auto bytes_of(T value) {
  return std::bit_cast<std::array<std::uint8_t, sizeof(T)>>(value);
}

TEST(LittleEndian, TheLowestByteComesFirstWhateverTheHost) {
  EXPECT_EQ(bytes_of(Le16(0x0102)), (std::array<std::uint8_t, 2>{2, 1}));
  EXPECT_EQ(bytes_of(Le32(0x0102'0304)), (std::array<std::uint8_t, 4>{4, 3, 2, 1}));
  EXPECT_EQ(bytes_of(Le64(0x0102'0304'0506'0708)),
            (std::array<std::uint8_t, 8>{8, 7, 6, 5, 4, 3, 2, 1}));
}

TEST(LittleEndian, ConvertsBackAtBothEndsOfItsType) {
  for (const std::uint64_t value :
       {std::uint64_t{0}, std::uint64_t{0x80}, std::numeric_limits<std::uint64_t>::max()}) {
    EXPECT_EQ(Le64(value).value(), value);
    EXPECT_EQ(Le32(static_cast<std::uint32_t>(value)), static_cast<std::uint32_t>(value));
    EXPECT_EQ(Le16(static_cast<std::uint16_t>(value)), static_cast<std::uint16_t>(value));
  }
  static_assert(Le16(0xabcd).value() == 0xabcd);
}

TEST(LittleEndian, IsReadFromAndWrittenToAGuest) {
  const GuestAddress base(0x10000);
  const GuestMemory memory = guest({{base.value(), page}});
  ASSERT_THAT(memory.write(base, Le32(0x0102'0304)), IsOk());
  using Bytes = std::array<std::uint8_t, 4>;
  EXPECT_THAT(memory.read<Bytes>(base), IsOkAndHolds((Bytes{4, 3, 2, 1})));
  const auto back = memory.read<Le32>(base);
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(back->value(), 0x0102'0304U);
  EXPECT_EQ(*back + 1, 0x0102'0305U);
}

}  // namespace
}  // namespace vmspace
