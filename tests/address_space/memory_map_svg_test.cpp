// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map_svg.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <regex>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/golden.hpp"
#include "address_space/space_support.hpp"
#include "address_space/xml_check.hpp"

namespace vmspace::memory_map_svg_test {
namespace {

using namespace literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Lt;
using ::testing::Not;

/// The picture, of which a reader of XML can make sense.
std::string drawn(const AddressSpaceBase& space, const MemoryMapSvgOptions& options = {}) {
  std::string svg = memory_map_svg(space, options);
  EXPECT_EQ(test::XmlCheck::find_fault(svg), "");
  return svg;
}

/// A space of RAM and nothing else.
AddressSpaceBase plain_space(std::uint64_t phys_max = 1_TiB - 1) {
  return AddressSpaceBase(
      *AddressSpaceLayout::make({.phys_max = phys_max, .ram = *Range::make(0, phys_max)}));
}

/// The numbers of an attribute of every rectangle of this class, from top to bottom.
std::vector<std::string> values_of(const std::string& svg, const std::string& css,
                                   const std::string& attribute) {
  const std::regex rect("<rect [^>]*" + attribute + "=\"([0-9.]+)\"[^>]*class=\"" + css +
                        "\"[^>]*>");
  std::vector<std::string> values;
  for (std::sregex_iterator it(svg.begin(), svg.end(), rect), end; it != end; ++it)
    values.push_back((*it)[1]);
  return values;
}

/// The height of a colour that is explained below the picture.
constexpr const char* legend = "12";

/// How warm the slices of the picture are, where they are.
std::vector<std::string> shades_of(const std::string& svg, const std::string& css) {
  const std::string map = svg.substr(0, svg.find("0 to 100"));
  const std::regex slice("class=\"" + css + "\" fill-opacity=\"([0-9.]+)\"");
  std::vector<std::string> shades;
  for (std::sregex_iterator it(map.begin(), map.end(), slice), end; it != end; ++it)
    shades.push_back((*it)[1]);
  return shades;
}

int height_of(const std::string& svg) {
  std::smatch found;
  EXPECT_TRUE(std::regex_search(svg, found, std::regex("height=\"([0-9]+)\"")));
  return std::stoi(found[1]);
}

TEST(MemoryMapSvg, IsToScale) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(0, 1_GiB)));
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(512_GiB, 3_GiB)));
  EXPECT_THAT(values_of(drawn(space), "ram", "height"), ElementsAre("109", "329", legend));
}

TEST(MemoryMapSvg, SaysWhatIsLargerThanToScale) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(0, 1_GiB)));
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(512_GiB, 4_KiB)));
  const std::string svg = drawn(space);
  EXPECT_THAT(values_of(svg, "ram", "height"), ElementsAre("439", legend));
  EXPECT_THAT(values_of(svg, "ram enlarged", "height"), ElementsAre("21"));
}

TEST(MemoryMapSvg, FoldsHoles) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(1_GiB, 1_GiB)));
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(900_GiB, 1_GiB)));
  const std::string svg = drawn(space);
  for (const char* size : {">1 GiB<", ">898 GiB<", ">123 GiB<", ">0x80000000<", ">0xffffffffff<"})
    EXPECT_THAT(svg, HasSubstr(size));
  EXPECT_THAT(height_of(svg), Lt(700));
}

TEST(MemoryMapSvg, TellsAllInTooltips) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region({.name = "dimm",
                                         .base = GuestAddress{1_GiB},
                                         .size = 1_GiB,
                                         .backing = {.source = MemorySource::shmem},
                                         .numa_node = 9,
                                         .hotplug = true,
                                         .owner = "vmm"}));
  EXPECT_THAT(drawn(space), HasSubstr("<title>dimm\n0x40000000-0x7fffffff\nram, 1 GiB\nowner vmm\n"
                                      "shmem\nhost node 9\nhotplug</title>"));
}

TEST(MemoryMapSvg, ShowsHeatWhereMemoryIsWarm) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(1_GiB, 1_GiB)));
  const PageHeat resident[] = {{Range::of(1_GiB, 2_GiB - 1), 0.3}};
  const PageHeat dirty[] = {{Range::of(2_GiB - 256_MiB, 3_GiB)},
                            {Range::of(0, 1_GiB + 512_MiB - 1)}};
  const std::string svg = drawn(space, {.resident = resident, .dirty = dirty});
  EXPECT_THAT(shades_of(svg, "resident"), ElementsAre("0.3"));
  EXPECT_THAT(shades_of(svg, "dirty"), ElementsAre("1.0", "1.0"));
  EXPECT_THAT(svg, HasSubstr("height=\"219\" class=\"dirty\""));  // half of the block
}

TEST(MemoryMapSvg, AddsUpHeatInOneSlice) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(0, 4_KiB)));
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(1_GiB, 1_TiB - 1_GiB)));
  std::vector<PageHeat> pages;
  for (std::uint64_t at = 512_GiB; at < 512_GiB + 32_GiB; at += 64_MiB)
    pages.push_back({*Range::from_base_size(at, 32_MiB)});
  const auto shades = shades_of(drawn(space, {.dirty = pages}), "dirty");
  EXPECT_THAT(shades, testing::Contains("0.5").Times(1));
  EXPECT_THAT(shades, testing::SizeIs(testing::Le(3U)));  // and what is cut at both ends
}

TEST(MemoryMapSvg, ClampsHeat) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(0, 1_GiB)));
  const auto shades = [&](double density) {
    const PageHeat heat[] = {{Range::of(0, 1_GiB - 1), density}, {Range::of(0, 1_GiB - 1), 0.2}};
    return shades_of(drawn(space, {.dirty = heat}), "dirty");
  };
  EXPECT_THAT(shades(1e300), ElementsAre("1.0"));
  EXPECT_THAT(shades(-1e300), ElementsAre("0.2"));
  EXPECT_THAT(shades(std::numeric_limits<double>::quiet_NaN()), ElementsAre("0.2"));
  EXPECT_THAT(shades(0.9), ElementsAre("1.0"));
}

TEST(MemoryMapSvg, ShowsNoHeatOfRegisters) {
  AddressSpaceBase space(test::pc());
  VMSPACE_EXPECT_OK(space.insert_region(test::device(0xc000'0000, 64_KiB)));
  const PageHeat all[] = {{Range::whole_domain()}};
  EXPECT_THAT(shades_of(drawn(space, {.resident = all}), "resident"), ElementsAre());
}

TEST(MemoryMapSvg, OfNothingIsAPicture) {
  const AddressSpaceBase nothing(*AddressSpaceLayout::make({.phys_max = 0}));
  EXPECT_THAT(height_of(drawn(nothing)), Lt(200));
  const PageHeat heat[] = {{Range::of(0, 0)}};
  drawn(nothing, {.resident = heat, .dirty = heat});
  drawn(AddressSpaceBase(test::pc()), {.empty_apertures = false});
}

TEST(MemoryMapSvg, ReachesTheLastAddress) {
  AddressSpaceBase space = plain_space(UINT64_MAX);
  const PageHeat heat[] = {{Range::whole_domain(), 0.5}, {Range::of(UINT64_MAX, UINT64_MAX)}};
  drawn(space, {.dirty = heat});
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(UINT64_MAX - 4095, 4_KiB)));
  const DeviceRange devices[] = {{"all", Range::whole_domain()},
                                 {"last", Range::of(UINT64_MAX, UINT64_MAX)}};
  const std::string svg = drawn(space, {.devices = devices, .dirty = heat});
  EXPECT_THAT(svg, HasSubstr(">0xffffffffffffffff<"));
  EXPECT_THAT(svg, HasSubstr(">16 EiB<"));
  EXPECT_THAT(height_of(svg), Lt(1000));
}

TEST(MemoryMapSvg, SizesAreRoundedDown) {
  const DeviceRange devices[] = {{"most", Range::of(1, UINT64_MAX)}};
  const std::string svg = drawn(plain_space(), {.devices = devices});
  EXPECT_THAT(svg, HasSubstr(">15.99 EiB<"));
}

TEST(MemoryMapSvg, IsBoundedForTenThousandRegions) {
  AddressSpaceBase space = plain_space();
  for (std::uint64_t i = 0; i < 10'000; ++i)
    VMSPACE_EXPECT_OK(space.insert_region(test::ram(i * 64_MiB, (1 + i % 97) * 4_KiB)));
  std::vector<PageHeat> heat;
  for (std::uint64_t i = 0; i < 100'000; ++i)
    heat.push_back({*Range::from_base_size(i * 8_MiB, 4_KiB)});
  const std::string svg = drawn(space, {.resident = heat, .dirty = heat});
  EXPECT_THAT(height_of(svg), Lt(8'000));
  EXPECT_THAT(svg.size(), Lt(300'000U));
  EXPECT_THAT(svg, HasSubstr("entries, ram"));
}

TEST(MemoryMapSvg, IsBoundedForDeepNestingAndForEmptyApertures) {
  std::vector<DeviceRange> nested;
  std::vector<DeviceRange> crossing;
  for (std::uint64_t i = 0; i < 10'000; ++i) {
    nested.push_back({"n", *Range::make(i, UINT64_MAX - i)});
    crossing.push_back({"c", *Range::make(i, i + 5'000), "owner"});
  }
  EXPECT_THAT(height_of(drawn(plain_space(), {.devices = nested})), Lt(8'000));
  EXPECT_THAT(height_of(drawn(plain_space(), {.devices = crossing})), Lt(8'000));
  LayoutOptions layout{.phys_max = UINT64_MAX};
  for (std::uint64_t i = 0; i < 200; ++i)
    layout.apertures.push_back(
        {std::to_string(i), *Range::from_base_size(i << 50, 1_TiB), ApertureUse::mmio});
  EXPECT_THAT(height_of(drawn(AddressSpaceBase(*AddressSpaceLayout::make(layout)))), Lt(8'000));
}

TEST(MemoryMapSvg, CountsWhatHasNoBlockOfItsOwn) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(512_GiB, 1_GiB)));
  for (std::uint64_t i = 0; i < 150; ++i)
    VMSPACE_EXPECT_OK(space.insert_region(test::ram(i * 1_MiB, i < 87 ? 4_KiB : 8_KiB)));
  // 64 entries are drawn: of 151, the first 87 are the smallest.
  const std::string svg = drawn(space);
  EXPECT_THAT(svg, HasSubstr("<title>87 entries, ram\n0x0-0x5600fff\n348 KiB</title>"));
}

TEST(MemoryMapSvg, EscapesWhatUsersCallThings) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region({.name = "</svg>&amp;\xef\xbf\xbf",
                                         .size = 1_MiB,
                                         .owner = "<script>alert(\"1\")</script>"}));
  const DeviceRange devices[] = {{"]]>\x01", Range::of(0, 7), "a'b"}};
  const std::string svg = drawn(space, {.title = "<&>\"\n\x1b", .devices = devices});
  EXPECT_THAT(svg, HasSubstr("&lt;/svg&gt;&amp;amp;\xef\xbf\xbd"));
  EXPECT_THAT(svg, HasSubstr("<title>&lt;&amp;&gt;\\x22\\x0a\\x1b</title>"));
  EXPECT_THAT(svg, Not(HasSubstr("<script")));
}

TEST(MemoryMapSvg, ShortensLongNames) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region({.name = std::string(10'000, 'n'), .size = 1_MiB}));
  VMSPACE_EXPECT_OK(space.insert_region(
      {.name =
           "\xe4\xb8\xad\xe6\x96\x87\xe4\xb8\xad\xe6\x96\x87\xe4\xb8\xad\xe6\x96\x87\xe4\xb8\xad"
           "\xe6\x96\x87\xe4\xb8\xad\xe6\x96\x87\xe4\xb8\xad\xe6\x96\x87\xe4\xb8\xad\xe6\x96\x87",
       .base = GuestAddress{1_MiB},
       .size = 1_MiB}));
  const std::string svg = drawn(space, {.title = std::string(10'000, 't')});
  EXPECT_THAT(svg, HasSubstr(">nnnnnnnnnnnnnnnnnnnnnnn\xe2\x80\xa6<"));
  EXPECT_THAT(svg, HasSubstr("\xe6\x96\x87\xe4\xb8\xad\xe2\x80\xa6<"));
}

TEST(MemoryMapSvg, EndsWithWhatIsParked) {
  AddressSpaceBase space = plain_space();
  VMSPACE_EXPECT_OK(space.insert_region(test::ram(0, 1_GiB)));
  VMSPACE_EXPECT_OK(space.insert_parked_region(test::made(test::device(0, 4_KiB))));
  EXPECT_THAT(drawn(space), HasSubstr("<title>device\nparked\ndevice, 4 KiB</title>"));
}

TEST(MemoryMapSvg, CountsWhatIsParkedWithoutABlockOfItsOwn) {
  AddressSpaceBase space = plain_space();
  // 64 entries are drawn: of 150, the 63 larger ones and one of the others.
  for (std::uint64_t i = 0; i < 150; ++i)
    VMSPACE_EXPECT_OK(
        space.insert_parked_region(test::made(test::device(0, i < 87 ? 4_KiB : 8_KiB))));
  EXPECT_THAT(drawn(space), HasSubstr("<title>86 entries, device\nparked\n344 KiB</title>"));
}

TEST(MemoryMapSvg, LooksAsItDid) {
  AddressSpaceBase space(test::pc());
  VMSPACE_EXPECT_OK(space.insert_region(
      {.name = "ram", .size = 2_GiB, .backing = {.source = MemorySource::shmem}, .numa_node = 1}));
  VMSPACE_EXPECT_OK(space.insert_region(test::device(0xc000'0000, 64_KiB)));
  const DeviceRange devices[] = {
      {"bus 1", *Range::from_base_size(0xc000'0000, 1_MiB), "bridge", true},
      {"<&>", Range::of(0xc000'1000, 0xc000'1fff), "nic"}};
  const PageHeat heat[] = {{Range::of(1_GiB, 1_GiB + 128_MiB - 1), 0.5}};
  test::expect_golden(drawn(space, {.title = "A map", .devices = devices, .dirty = heat}),
                      "map_small.svg");
}

}  // namespace
}  // namespace vmspace::memory_map_svg_test
