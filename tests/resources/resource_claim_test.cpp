// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_claim.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "resources/claim_samples.hpp"

namespace vmspace::resource_claim_test {
namespace {

using namespace std::string_literals;
using namespace test;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

using Claims = std::vector<ResourceClaim>;

/// The text of claims whose lines are `lines`.
std::string text_of(std::string_view lines) {
  return "vmspace-claims 1\n" + std::string(lines) + "end\n";
}

void expect_round_trip(const Claims& claims) {
  const std::string text = format_claims(claims);
  EXPECT_THAT(parse_claims(text), IsOkAndHolds(claims)) << text;
}

TEST(ResourceClaim, EachKindIsALineThatReadsBackAsTheClaim) {
  EXPECT_EQ(format_claims(sample_claims()), sample_text);
  EXPECT_THAT(parse_claims(sample_text), IsOkAndHolds(sample_claims()));
}

TEST(ResourceClaim, AnEmptyListHasATextToo) {
  EXPECT_EQ(format_claims({}), text_of(""));
  EXPECT_THAT(parse_claims(text_of("")), IsOkAndHolds(Claims{}));
}

TEST(ResourceClaim, ARequestThatIsNotFixedReadsBackAsOne) {
  const Claims claims = {
      {"a", PioRange{.size = 1}},
      {"a", MmioRange{.size = 1}},
      {"a", MemoryRange{}},
      {"a", BridgeWindow{.size = 1}},
      {"a", LegacyIrq{}},
      {"a", GenericIrq{}},
      {"a", MsiVectors{.count = 1}},
      {"a", MsixVectors{.count = 1}},
      {"a", KvmSlots{}},
      {"a", PciDevice{}},
      {"a", PciDevice{.device = 31}},
      {"a", MacAddress{}},
  };
  expect_round_trip(claims);
  EXPECT_EQ(format_claims(std::span(claims).subspan(9)),
            text_of("pci_device owner=\"a\"\npci_device owner=\"a\" device=31\n"
                    "mac_address owner=\"a\"\n"));
}

TEST(ResourceClaim, FirstMembersAndLastOnesReadBackAsTheyAre) {
  constexpr std::uint64_t last = std::numeric_limits<std::uint64_t>::max();
  constexpr std::uint32_t last_number = std::numeric_limits<std::uint32_t>::max();
  expect_round_trip({
      {"", PioRange{.size = 0, .fixed = 0}},
      {"", PioRange{.size = last, .align = last, .window = Range::whole_domain(), .fixed = last}},
      {"", MmioRange{.size = last, .fixed = GuestAddress(last)}},
      {"", LegacyIrq{.fixed = 0}},
      {"", LegacyIrq{.fixed = last_number}},
      {"", GenericIrq{.count = 0, .fixed = 0}},
      {"", MsiVectors{.count = last_number, .fixed = last_number}},
      {"", MemoryRange{.region = {.protection = Protection::none, .numa_node = last_number}}},
      {"", MemoryRange{.region = {.protection = Protection::read_write | Protection::execute}}},
      {"", PciDevice{.segment = 65535, .bus = 255, .device = 255}},
      {"", MacAddress{.fixed = 0}},
      {"", MacAddress{.fixed = 0xffff'ffff'ffff}},
  });
}

TEST(ResourceClaim, ANumberThatIsNotAMacAddressIsKeptForAdoptToRefuse) {
  const Claims claims = {{"a", MacAddress{.fixed = 0x1'0000'0000'0000}}};
  expect_round_trip(claims);
  EXPECT_THAT(format_claims(claims), HasSubstr("address=00:01:00:00:00:00:00:00"));
}

TEST(ResourceClaim, NamesMayHaveAnyBytes) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte)
    all += static_cast<char>(byte);
  const std::string names[] = {
      all,           "\0"s,          "\"",   "\\",           "\\x41",
      "line\nend\n", "a=b size=1",   "\r\n", "\xc3",         "\xed\xa0\x80",
      "\xff\xfe",    "\xe2\x80\xae", " ",    "ends with \\", "\xf0\x9f\x92\xbe"};
  for (const std::string& name : names) {
    const Claims claims = {
        {name, MmioRange{.size = 1, .bridge = name, .name = name}},
        {"next", MemoryRange{.region = {.name = name}, .aperture = name}},
    };
    expect_round_trip(claims);
    EXPECT_EQ(std::ranges::count(format_claims(claims), '\n'), 4);
  }
}

TEST(ResourceClaim, NamesAreEscapedOnlyWhereTheyMustBe) {
  EXPECT_EQ(format_claims(Claims{{"a \"b\"\\\n\xc3\xa9\xff", LegacyIrq{}}}),
            text_of("legacy_irq owner=\"a \\x22b\\x22\\x5c\\x0a\xc3\xa9\\xff\"\n"));
}

TEST(ResourceClaim, WhatMemoryIsMadeOfAndWhatTheManagerSetsIsNotInTheText) {
  const MemoryRange bare = {.region = {.name = "dimm0", .size = 0x20'0000}};
  MemoryRange full = bare;
  full.region.backing = {.source = MemorySource::file, .path = "/srv/secret", .offset = 0x1000};
  full.region.base = GuestAddress(0x1234'5000);
  full.region.owner = "somebody";
  const std::string text = format_claims(Claims{{"dimm0", full}});
  EXPECT_EQ(text, format_claims(Claims{{"dimm0", bare}}));
  EXPECT_THAT(text, AllOf(Not(HasSubstr("secret")), Not(HasSubstr("somebody"))));
  EXPECT_THAT(parse_claims(text), IsOkAndHolds(Claims{{"dimm0", bare}}));
}

TEST(ResourceClaim, AnUnnamedValueIsWrittenAsOneThatReadingRefuses) {
  for (const ResourceRequest& request : std::vector<ResourceRequest>{
           MmioRange{.size = 1, .reach = static_cast<MmioReach>(3)},
           MemoryRange{.region = {.type = static_cast<RegionType>(200)}},
           MemoryRange{.region = {.protection = static_cast<Protection>(8)}}}) {
    const std::string text = format_claims(Claims{{"a", request}});
    EXPECT_THAT(text, HasSubstr("=unknown"));
    EXPECT_THAT(parse_claims(text), HasError(Errc::corrupt));
  }
}

TEST(ResourceClaim, FieldsMayStandInAnyOrderAndHaveTheirDefaults) {
  const Claims claims = {{"a", MmioRange{.size = 0x20, .fixed = GuestAddress(0x10)}}};
  EXPECT_THAT(parse_claims(text_of("mmio size=0x20 name=\"\" reach=any align=0 base=0x10 "
                                   "bridge=\"\" owner=\"a\"\n")),
              IsOkAndHolds(claims));
}

TEST(ResourceClaim, EveryNumberMayBeDecimalOrHexadecimal) {
  EXPECT_THAT(
      parse_claims(text_of("pio owner=\"a\" first=256 size=0x0F\nmsi owner=\"a\" count=0x10\n")),
      IsOkAndHolds(
          Claims{{"a", PioRange{.size = 15, .fixed = 256}}, {"a", MsiVectors{.count = 16}}}));
}

TEST(ResourceClaim, EveryNameOfAnEnumerationCanBeRead) {
  for (const auto reach : {MmioReach::any, MmioReach::below_4g, MmioReach::high}) {
    EXPECT_THAT(
        parse_claims(text_of("mmio owner=\"\" size=0 reach=" + std::string(name_of(reach)) + "\n")),
        IsOkAndHolds(Claims{{"", MmioRange{.size = 0, .reach = reach}}}));
  }
  for (const auto type : {RegionType::default_memory, RegionType::device_memory,
                          RegionType::dax_memory, RegionType::firmware_memory}) {
    EXPECT_THAT(
        parse_claims(text_of("memory owner=\"\" size=0 type=" + std::string(name_of(type)) + "\n")),
        IsOkAndHolds(Claims{{"", MemoryRange{.region = {.type = type}}}}));
  }
}

TEST(ResourceClaim, AByteOfANameMayBeEscapedWithoutNeed) {
  EXPECT_THAT(parse_claims(text_of("legacy_irq owner=\"\\x6eic\\x30\\x5C\"\n")),
              IsOkAndHolds(Claims{{"nic0\\", LegacyIrq{}}}));
}

TEST(ResourceClaim, TheLastNewlineMayBeMissing) {
  EXPECT_THAT(parse_claims(sample_text.substr(0, sample_text.size() - 1)),
              IsOkAndHolds(sample_claims()));
}

TEST(ResourceClaim, LongNamesAndManyClaimsReadBackAsTheyAre) {
  expect_round_trip({{std::string(1 << 20, '\\'), LegacyIrq{.fixed = 1}}});
  expect_round_trip(Claims(10'000, {"nic0", LegacyIrq{.fixed = 5, .shared = true}}));
}

}  // namespace
}  // namespace vmspace::resource_claim_test
