// SPDX-License-Identifier: Apache-2.0

#include "vmspace/boot/srat.hpp"

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::srat_test {
namespace {

using namespace literals;
using ::testing::ElementsAre;

template <typename T>
T at(const std::vector<std::byte>& table, std::size_t offset) {
  T value;
  EXPECT_LE(offset + sizeof value, table.size());
  std::memcpy(&value, table.data() + offset, sizeof value);
  return value;
}

std::vector<std::byte> made(std::vector<SratProcessor> processors, std::vector<SratMemory> memory) {
  auto table = srat(processors, memory);
  EXPECT_THAT(table, IsOk());
  return *std::move(table);
}

unsigned sum(const std::vector<std::byte>& table) {
  return std::accumulate(table.begin(), table.end(), 0U,
                         [](unsigned total, std::byte byte) {
                           return total + std::to_integer<unsigned>(byte);
                         }) &
         0xff;
}

// As a guest reads it: header, length, a checksum of 0 over all of it.
TEST(Srat, IsAnAcpiTable) {
  for (const std::size_t count : {0U, 1U, 7U}) {
    std::vector<SratProcessor> processors;
    for (std::size_t i = 0; i < count; ++i)
      processors.push_back({.apic_id = static_cast<std::uint32_t>(i), .node = 0});
    const auto table = made(processors, {});
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(table.data()), 4), "SRAT");
    EXPECT_EQ(at<std::uint32_t>(table, 4), table.size());
    EXPECT_EQ(table.size(), 48 + 16 * count);
    EXPECT_EQ(at<std::uint8_t>(table, 8), 3);
    EXPECT_EQ(at<std::uint32_t>(table, 36), 1U);
    EXPECT_EQ(sum(table), 0U);
  }
}

TEST(Srat, GivesEachPieceOfAPlanItsNode) {
  const auto layout = AddressSpaceLayout::x86_64({.phys_bits = 46});
  const auto plan = layout->plan_ram({2_GiB, 4_GiB});
  ASSERT_THAT(plan, IsOk());
  const auto memory = srat_memory(*plan);
  const auto table = made({}, memory);
  ASSERT_EQ(table.size(), 48 + 40 * plan->size());
  std::uint64_t of_node_1 = 0;
  for (std::size_t i = 0; i < plan->size(); ++i) {
    const std::size_t entry = 48 + 40 * i;
    EXPECT_EQ(at<std::uint8_t>(table, entry), 1);
    EXPECT_EQ(at<std::uint8_t>(table, entry + 1), 40);
    EXPECT_EQ(at<std::uint32_t>(table, entry + 2), (*plan)[i].node);
    EXPECT_EQ(at<std::uint64_t>(table, entry + 8), (*plan)[i].base.value());
    EXPECT_EQ(at<std::uint64_t>(table, entry + 16), (*plan)[i].size);
    EXPECT_EQ(at<std::uint32_t>(table, entry + 28), 1U) << "enabled, and nothing else";
    if ((*plan)[i].node == 1) of_node_1 += (*plan)[i].size;
  }
  EXPECT_EQ(of_node_1, 4_GiB);
}

TEST(Srat, MarksWhereMemoryMayBePlugged) {
  const auto table =
      made({}, {{.base = GuestAddress(1_GiB), .size = 1_GiB, .node = 3, .hotplug = true}});
  EXPECT_EQ(at<std::uint32_t>(table, 48 + 28), 3U);
}

TEST(Srat, HasBothFormsOfProcessors) {
  const auto table = made({{.apic_id = 254, .node = 0x0403'0201}, {.apic_id = 255, .node = 7}}, {});
  ASSERT_EQ(table.size(), 48U + 16 + 24);
  EXPECT_EQ(at<std::uint8_t>(table, 48), 0);
  EXPECT_EQ(at<std::uint8_t>(table, 48 + 1), 16);
  EXPECT_EQ(at<std::uint8_t>(table, 48 + 2), 0x01);
  EXPECT_EQ(at<std::uint8_t>(table, 48 + 3), 254);
  EXPECT_EQ(at<std::uint32_t>(table, 48 + 4), 1U);
  EXPECT_EQ(at<std::uint8_t>(table, 48 + 9), 0x02);
  EXPECT_EQ(at<std::uint8_t>(table, 48 + 11), 0x04);
  EXPECT_EQ(at<std::uint8_t>(table, 64), 2);
  EXPECT_EQ(at<std::uint8_t>(table, 64 + 1), 24);
  EXPECT_EQ(at<std::uint32_t>(table, 64 + 4), 7U);
  EXPECT_EQ(at<std::uint32_t>(table, 64 + 8), 255U);
  EXPECT_EQ(at<std::uint32_t>(table, 64 + 12), 1U);
}

TEST(Srat, RefusesWhatAGuestCouldNotMakeSenseOf) {
  const auto refused = [](std::vector<SratMemory> memory, Errc code) {
    EXPECT_THAT(srat({}, memory), HasError(code));
  };
  refused({{.base = GuestAddress(0), .size = 0, .node = 0}}, Errc::zero_size);
  refused({{.base = GuestAddress(~0ULL), .size = 2, .node = 0}}, Errc::overflow);
  refused({{.base = GuestAddress(8_KiB), .size = 4_KiB, .node = 0},
           {.base = GuestAddress(0), .size = 8_KiB + 1, .node = 1}},
          Errc::overlap);
  EXPECT_THAT(srat({{.apic_id = 1, .node = 0}, {.apic_id = 1, .node = 0}}, {}),
              HasError(Errc::overlap));
  // Up to the last address, and right beside one another.
  made({}, {{.base = GuestAddress(~0ULL - 4095), .size = 4096, .node = 0},
            {.base = GuestAddress(~0ULL - 8191), .size = 4096, .node = 1}});
}

}  // namespace
}  // namespace vmspace::srat_test
