// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/endian.hpp"

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_ptr.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::endian_test {
namespace {

using test::guest;
using test::page;

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

TEST(BigEndian, TheHighestByteComesFirstWhateverTheHost) {
  EXPECT_EQ(bytes_of(Be16(0x0102)), (std::array<std::uint8_t, 2>{1, 2}));
  EXPECT_EQ(bytes_of(Be32(0x0102'0304)), (std::array<std::uint8_t, 4>{1, 2, 3, 4}));
  EXPECT_EQ(bytes_of(Be64(0x0102'0304'0506'0708)),
            (std::array<std::uint8_t, 8>{1, 2, 3, 4, 5, 6, 7, 8}));
  static_assert(Be32(0xabcd'ef01).value() == 0xabcd'ef01);
}

// In both orders, so that one of them differs from the host's.
template <typename T>
class EndianAtomics : public ::testing::Test {};
using Orders = ::testing::Types<Le16, Be16, Le32, Be32, Le64, Be64>;
TYPED_TEST_SUITE(EndianAtomics, Orders);

TYPED_TEST(EndianAtomics, AreTheNumbersWhateverTheirBytes) {
  using Number = typename TypeParam::value_type;
  const GuestAddress base(0x10000);
  const GuestMemory memory = guest({{base.value(), page}});
  const GuestPtr<TypeParam> pointer(memory, base);
  const auto loaded = [&] {
    return memory.load<TypeParam>(base, std::memory_order_acquire)->value();
  };

  ASSERT_THAT(memory.store(base, TypeParam(0x0102), std::memory_order_release), IsOk());
  EXPECT_EQ(memory.read<TypeParam>(base)->value(), 0x0102);
  EXPECT_EQ(loaded(), 0x0102);
  EXPECT_EQ(memory.fetch_or(base, TypeParam(0x8001))->value(), 0x0102);
  EXPECT_EQ(loaded(), 0x8103);
  EXPECT_EQ(memory.compare_exchange(base, TypeParam(0x8103), TypeParam(Number{5}))->value(),
            0x8103);
  EXPECT_EQ(loaded(), 5);
  EXPECT_EQ(memory.compare_exchange(base, TypeParam(Number{6}), TypeParam(Number{7}))->value(), 5);
  EXPECT_EQ(loaded(), 5) << "it was not the number expected";

  EXPECT_EQ(pointer.fetch_or(Number{2})->value(), 5);
  EXPECT_EQ(pointer.compare_exchange(Number{7}, Number{9})->value(), 7);
  EXPECT_EQ(pointer.load(std::memory_order_relaxed)->value(), 9);

  EXPECT_THAT(memory.load<TypeParam>(GuestAddress(base.value() + 1), std::memory_order_relaxed),
              HasError(Errc::misaligned));
  EXPECT_THAT(memory.fetch_or(GuestAddress(base.value() + page), TypeParam(Number{1})),
              HasError(Errc::not_found));
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
}  // namespace vmspace::endian_test
