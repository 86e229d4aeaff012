// SPDX-License-Identifier: Apache-2.0
//
// How memory that is too large for one of KVM's slots is cut into several.

#include "vmm/kvm_pieces.hpp"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "vmm/fake_kvm.hpp"

namespace vmspace::kvm_pieces_test {
namespace {

using namespace literals;
using testing::IsEmpty;
using testing::SizeIs;

class KvmPiecesTest : public test::FakeKvm {};

TEST_F(KvmPiecesTest, SplitsARangeThatIsAboveKvmsLimitOfPages) {
  KvmMemslots memslots = make();
  const KvmMemory memory{.base = GuestAddress(4_GiB), .size = 16_TiB, .host_address = host(32_TiB)};
  VMSPACE_ASSERT_OK(memslots.set(memory));
  EXPECT_EQ(memslots.used(), 3u);

  const auto pieces = memslots.slots({memory.base, memory.size});
  ASSERT_THAT(pieces, IsOk());
  std::uint64_t next = 4_GiB;
  for (const KvmSlot& piece : *pieces) {
    ASSERT_TRUE(slots.contains(piece.number));
    const Slot& slot = slots.at(piece.number);
    EXPECT_THAT(piece.range.range(), IsOkAndHolds(slot.range));
    EXPECT_EQ(piece.range.base, GuestAddress(next));
    EXPECT_TRUE(piece.range.base.is_aligned(1_GiB)) << "cuts one of the guest's huge pages";
    EXPECT_EQ(slot.host_address - 32_TiB, next - 4_GiB);
    next += piece.range.size;
  }
  EXPECT_EQ(next, 4_GiB + 16_TiB);

  VMSPACE_ASSERT_OK(memslots.clear({memory.base, memory.size}));
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(memslots.used(), 0u);
}

TEST_F(KvmPiecesTest, TheLargestSlotIsNotSplitAndOnePageMoreIs) {
  KvmMemslots memslots = make();
  const std::uint64_t largest = ((std::uint64_t{1} << 31) - 1) * page_size / 1_GiB * 1_GiB;
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(0), .size = largest, .host_address = host(1_GiB)}));
  EXPECT_EQ(memslots.used(), 1u);
  VMSPACE_ASSERT_OK(memslots.set(
      {.base = GuestAddress(largest), .size = largest + page_size, .host_address = host(1_GiB)}));
  EXPECT_EQ(memslots.used(), 3u);
  // In the middle of a GiB the first piece is shorter, so this needs another one.
  const std::uint64_t base = 64_TiB + 512_MiB;
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(base), .size = largest, .host_address = host(1_GiB)}));
  const auto pieces = memslots.slots({GuestAddress(base), largest});
  ASSERT_THAT(pieces, IsOk());
  ASSERT_THAT(*pieces, SizeIs(2));
  EXPECT_EQ(slots.at(pieces->back().number).range.max(), base + largest - 1);
}

// Wherever a range begins, its pieces meet where the guest's largest pages do, and have whole words
// of its dirty log; for a base inside of such a word (256 KiB on x86) the words go first.
TEST_F(KvmPiecesTest, PiecesMeetAtMultiplesOfOneGibibyte) {
  for (const std::uint64_t base :
       {std::uint64_t{0}, 2_MiB, 4_GiB + 2_MiB, 5_GiB - 2_MiB, 5_GiB - page_size}) {
    KvmMemslots memslots = make();
    const std::uint64_t host_base = 32_TiB + base % 1_GiB;
    VMSPACE_ASSERT_OK(memslots.set(
        {.base = GuestAddress(base), .size = 20_TiB, .host_address = host(host_base)}));
    const auto pieces = memslots.slots({GuestAddress(base), 20_TiB});
    ASSERT_THAT(pieces, IsOk());
    EXPECT_THAT(*pieces, SizeIs(3));
    std::uint64_t next = base;
    for (const KvmSlot& piece : *pieces) {
      EXPECT_EQ(piece.range.base, GuestAddress(next));
      EXPECT_THAT(piece.range.range(), IsOkAndHolds(slots.at(piece.number).range));
      EXPECT_EQ(slots.at(piece.number).host_address - host_base, next - base);
      EXPECT_TRUE(next == base || next % 1_GiB == base % (64 * page_size)) << "cuts a huge page";
      EXPECT_EQ((next - base) / page_size % 64, 0u) << "cuts a word of the dirty log";
      next += piece.range.size;
    }
    EXPECT_EQ(next, base + 20_TiB);
  }
}

TEST_F(KvmPiecesTest, FreedNumbersInTwoPlacesStillMakeOneSplitRange) {
  slot_limit = 5;
  KvmMemslots memslots = make();
  for (std::uint64_t i = 0; i < 5; ++i) {
    VMSPACE_ASSERT_OK(memslots.set({.base = GuestAddress(32_TiB + i * page_size),
                                    .size = page_size,
                                    .host_address = host(1_GiB)}));
  }
  for (const std::uint64_t i : {0u, 2u, 4u}) {
    VMSPACE_ASSERT_OK(memslots.clear({GuestAddress(32_TiB + i * page_size), page_size}));
  }
  VMSPACE_EXPECT_OK(
      memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
  EXPECT_THAT(slots, SizeIs(5));
}

// More slots than any KVM has: pieces are counted and cut without passing 2^64.
TEST_F(KvmPiecesTest, ARangeOfNearlyAllAddressesIsCutToItsEnd) {
  constexpr std::uint64_t last = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint64_t base : {page_size, 1_GiB - page_size}) {
    const KvmMemory memory{.base = GuestAddress(base),
                           .size = last - base - page_size + 1,
                           .host_address = host(base)};
    const detail::KvmPieces pieces(memory);
    std::uint64_t next = base;
    for (std::uint64_t i = 0; i < pieces.count(); ++i) {
      const KvmMemory part = pieces[i];
      ASSERT_EQ(part.base.value(), next);
      ASSERT_EQ(part.host_address, host(next));
      ASSERT_NE(part.size, 0u);
      ASSERT_LE(part.size / page_size, (std::uint64_t{1} << 31) - 1);
      next += part.size;
    }
    EXPECT_EQ(next, base + memory.size);
  }
}

}  // namespace
}  // namespace vmspace::kvm_pieces_test
