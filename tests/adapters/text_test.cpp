// SPDX-License-Identifier: Apache-2.0

#include "vmspace/text.hpp"

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace vmspace {
namespace {

const Error overlap{.code = Errc::overlap,
                    .operation = "insert",
                    .first = Operand::range(0x200, 0x2ff),
                    .second = Operand::range(0x100, 0x20f)};

TEST(Text, CodesAreTheirNamesAndErrorsTheirMessages) {
  EXPECT_EQ(to_text(Errc::no_space), "no_space");
  EXPECT_EQ(to_text(static_cast<Errc>(999)), "Errc 999");
  std::set<std::string> names;
  for (int code = 1; code <= static_cast<int>(Errc::os); ++code)
    names.insert(to_text(static_cast<Errc>(code)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(Errc::os));
  EXPECT_EQ(to_text(overlap), "insert: [0x200, 0x2ff] overlaps [0x100, 0x20f]");
  EXPECT_EQ(to_text(Operand::number(7)), "7");
  EXPECT_EQ(to_text(Operand::range(1, 2)), "[0x1, 0x2]");
  EXPECT_EQ(to_text(Operand{}), "none");
}

TEST(Text, AResultIsItsValueOrItsMessage) {
  EXPECT_EQ(to_text(Result<Range>(Range::of(1, 2))), "[0x1-0x2]");
  EXPECT_EQ(to_text(Result<int>(7)), "7");
  EXPECT_EQ(to_text(Result<bool>(false)), "false");
  EXPECT_EQ(to_text(Result<std::string>("nic0")), "nic0");
  EXPECT_EQ(to_text(Result<>()), "ok");
  EXPECT_EQ(to_text(Result<std::vector<int>>()), "ok");
  EXPECT_EQ(to_text(Result<Result<int>>(Result<int>(3))), "3");
  EXPECT_EQ(to_text(Result<std::shared_ptr<Range>>(std::make_shared<Range>(Range::of(1, 2)))),
            "[0x1-0x2]");
  EXPECT_EQ(to_text(Result<std::shared_ptr<Range>>(nullptr)), "null");
  EXPECT_EQ(to_text(Result<int>(fail(overlap))), "error: " + overlap.message());
  EXPECT_EQ(to_text(Result<>(fail(overlap))), "error: " + overlap.message());
}

TEST(Text, OfRangesConstraintsAndStates) {
  EXPECT_EQ(to_text(Range::whole_domain()), "[0x0-0xffffffffffffffff]");
  EXPECT_EQ(to_text(Constraint{.size = 0x4000,
                               .min = 0xc000'0000,
                               .max = 0xffff'ffff,
                               .align = 0x1000,
                               .policy = AllocPolicy::last_match}),
            "0x4000 aligned to 0x1000 in [0xc0000000-0xffffffff], last_match");
  EXPECT_EQ(to_text(NodeState::valued), "valued");
  EXPECT_EQ(to_text(AllocPolicy::best_match), "best_match");
}

TEST(Text, OfATreeItsEntriesAndItsStatistics) {
  IntervalTree<std::string> tree;
  ASSERT_TRUE(tree.insert(Range::of(0x100, 0x1ff), "nic0"));
  ASSERT_TRUE(tree.insert(Range::of(0x200, 0x5ff)));
  ASSERT_TRUE(tree.insert(Range::of(0x700, 0x7ff)));
  ASSERT_TRUE(tree.allocate_at(Range::of(0x500, 0x5ff)));
  EXPECT_EQ(to_text(tree),
            "[0x100-0x1ff] nic0 | free 0x300 | [0x500-0x5ff] | gap 0x100 | free 0x100");
  EXPECT_EQ(to_text(*tree.begin()), "[0x100-0x1ff] valued nic0");
  EXPECT_EQ(to_text(*std::next(tree.begin())), "[0x200-0x4ff] free");
  EXPECT_EQ(to_text(tree.stats()),
            "2 free (0x400, largest 0x300), 1 allocated, 1 valued (0x200 taken)");
  IntervalTree<Range> ranges;
  ASSERT_TRUE(ranges.insert(Range::of(0, 0xf), Range::of(1, 2)));
  EXPECT_EQ(to_text(ranges), "[0x0-0xf] [0x1-0x2]");
}

TEST(Text, OfAddressesAndProtection) {
  EXPECT_EQ(to_text(GuestAddress(0xfee0'0000)), "0xfee00000");
  EXPECT_EQ(to_text(Protection::none), "---");
  EXPECT_EQ(to_text(Protection::read_write), "rw-");
  EXPECT_EQ(to_text(Protection::read | Protection::execute), "r-x");
}

TEST(Text, ABackingSaysWhatIsNotAsByDefault) {
  EXPECT_EQ(to_text(BackingSpec{.source = MemorySource::shmem}), "shmem");
  EXPECT_EQ(to_text(BackingSpec{.source = MemorySource::file,
                                .path = "/srv/disk",
                                .fd = 5,
                                .offset = 0x1000,
                                .page_size = 0x20'0000,
                                .sharing = Sharing::map_private,
                                .discardable = true}),
            "file /srv/disk fd 5 offset 0x1000 page_size 0x200000 map_private discardable");
}

TEST(Text, ARegionSaysWhatIsNotAsByDefault) {
  RegionOptions options{.name = "nic0 BAR0",
                        .type = RegionType::device_memory,
                        .base = GuestAddress(0xc000'0000),
                        .size = 0x4000};
  EXPECT_EQ(to_text(**AddressSpaceRegion::make(options)),
            "nic0 BAR0 device [0xc0000000-0xc0003fff] none");
  EXPECT_EQ(to_text(options), "nic0 BAR0 device 0xc0000000+0x4000 none");
  options.backing.source = MemorySource::anon;
  options.protection = Protection::read;
  options.numa_node = 1;
  options.huge_pages = options.hotplug = options.populate = true;
  options.owner = "nic0";
  EXPECT_EQ(to_text(**AddressSpaceRegion::make(options)),
            "nic0 BAR0 device [0xc0000000-0xc0003fff] anon r-- node 1 huge_pages hotplug populate "
            "owner nic0");
  EXPECT_EQ(to_text(RegionOptions{}), "ram 0x0+0x0 none");
}

TEST(Text, OfLayoutsAndWhatLiesInThem) {
  const LayoutOptions options{
      .phys_max = 0x7fff'ffff,
      .ram = Range::of(0, 0x3fff'ffff),
      .apertures = {{"ram", Range::of(0, 0x3fff'ffff), ApertureUse::ram}},
      .holes = {{"vga", Range::of(0xa'0000, 0xb'ffff), HoleKind::reserved}}};
  const auto layout = AddressSpaceLayout::make(options);
  ASSERT_TRUE(layout);
  EXPECT_EQ(to_text(*layout),
            "RAM in [0x0-0x3fffffff] of [0x0-0x7fffffff] {ram ram window [0x0-0x3fffffff]} "
            "{vga reserved hole [0xa0000-0xbffff]}");
  EXPECT_EQ(to_text(options), to_text(*layout));
  EXPECT_EQ(to_text(RamPiece{GuestAddress(0), 0xc000'0000, 1}), "0x0+0xc0000000 node 1");
  EXPECT_EQ(to_text(E820Entry{GuestAddress(0x9'fc00), 0x6'0400, E820Type::reserved}),
            "reserved 0x9fc00+0x60400");
  EXPECT_EQ(to_text(DeviceRange{"uart", Range::of(0x3f8, 0x3ff)}), "uart [0x3f8-0x3ff]");
  EXPECT_EQ(to_text(DeviceRange{"uart", Range::of(0x3f8, 0x3ff), "isa"}),
            "uart [0x3f8-0x3ff] owner isa");
  AddressSpaceBase space(*layout);
  const AddressSpaceBase before = space;
  ASSERT_TRUE(space.insert_region({.name = "ram", .size = 0x1000}));
  EXPECT_EQ(to_text(diff(before, space)), "removed {}, added {ram ram [0x0-0xfff] none}");
  EXPECT_EQ(to_text(space), memory_map(space));
}

TEST(Text, OfGuestMemory) {
  EXPECT_EQ(to_text(GuestRange{GuestAddress(0x1000), 0}), "0x1000+0x0");
  EXPECT_EQ(to_text(DirtyRange{0x1000, 0x2000}), "0x1000+0x2000");
  EXPECT_EQ(to_text(LittleEndian<std::uint16_t>(0x1234)), "0x1234");
  EXPECT_EQ(to_text(NumaPolicy{NumaMode::bind, {0, 1}}), "bind {0, 1}");
  EXPECT_EQ(to_text(Residency{.resident = 0x1000}), "0x1000 resident, ? huge");
  EXPECT_EQ(to_text(Residency{.resident = 0x1000, .huge = 0}), "0x1000 resident, 0x0 huge");
  EXPECT_EQ(
      to_text(RegionDescriptor{.range = {GuestAddress(0x1000), 0x2000}, .fd = 5, .offset = 0x3000}),
      "0x1000+0x2000 rw- of fd 5 offset 0x3000");
  EXPECT_EQ(to_text(SnapshotRegion{GuestAddress(0x1000), 0x2000, 0x3000, Protection::read}),
            "0x1000+0x2000 r-- offset 0x3000");
  const std::vector<GuestRange> ram = {{GuestAddress(0x1000), 0x1000},
                                       {GuestAddress(0x4000), 0x1000}};
  const auto memory = GuestMemory::create(ram);
  ASSERT_TRUE(memory);
  EXPECT_EQ(to_text(*memory), "{ram ram [0x1000-0x1fff] shmem, ram ram [0x4000-0x4fff] shmem}");
  EXPECT_EQ(to_text(GuestPtr<std::uint32_t>(*memory, GuestAddress(0x1000))), "0x1000");
}

TEST(Text, OfMemorySlots) {
  EXPECT_EQ(to_text(KvmMemory{.base = GuestAddress(0x1000),
                              .size = 0x2000,
                              .host_address = reinterpret_cast<void*>(0x7f00'0000'0000),
                              .read_only = true,
                              .log_dirty = true}),
            "0x1000+0x2000 at host 0x7f0000000000 read_only log_dirty");
  EXPECT_EQ(to_text(KvmSlot{3, {GuestAddress(0x1000), 0x2000}}), "slot 3 0x1000+0x2000");
}

// What appears in nobody's expectation has no text: options that are only ever passed in, and
// owners of memory that can't be compared.
template <typename... Types>
constexpr bool all_textual = (Textual<Types> && ...);
static_assert(all_textual<Access, Advice, Applied, ApertureUse, Aperture, E820Type, HoleKind, Hole,
                          MemorySource, MemoryRegion, NumaMode, PageKind, PopulateAccess,
                          RegionType, Sharing, Unsealed, AddressSpaceBase, Result<GuestMemory>>);

TEST(Text, IsOnlyOfOurTypes) {
  static_assert(!Textual<int> && !Textual<std::string> && !Textual<std::vector<Range>> &&
                !Textual<std::optional<GuestAddress>> && !Textual<std::shared_ptr<Range>>);
}

}  // namespace
}  // namespace vmspace
