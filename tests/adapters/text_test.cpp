// SPDX-License-Identifier: Apache-2.0

#include "vmspace/text.hpp"

#include <chrono>
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
  for (int code = 1; code <= static_cast<int>(Errc::fault); ++code)
    names.insert(to_text(static_cast<Errc>(code)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(Errc::fault));
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
  EXPECT_EQ(to_text(PageHeat{Range::of(0, 0xfff), 0.5}), "[0x0-0xfff] 0.500000");
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
  EXPECT_EQ(to_text(Extent{0x1000, 0x2000}), "0x1000+0x2000");
  EXPECT_EQ(to_text(PageQuery::present), "present");
  EXPECT_EQ(to_text(Residency{.resident = 0x1000}), "0x1000 resident, ? huge");
  EXPECT_EQ(to_text(Residency{.resident = 0x1000, .huge = 0}), "0x1000 resident, 0x0 huge");
  EXPECT_EQ(
      to_text(RegionDescriptor{.range = {GuestAddress(0x1000), 0x2000}, .fd = 5, .offset = 0x3000}),
      "0x1000+0x2000 rw- of fd 5 offset 0x3000");
  EXPECT_EQ(to_text(*WorkingSet::make({}, {{GuestAddress(0x1000), 0x2000}})),
            "1 ranges, 8192 bytes");
  EXPECT_EQ(to_text(LazyRestoreStatistics{.demand = 4096, .faults = 1}),
            "demand 4096 working_set 0 background 0 zero 0 discarded 0 lost 0 remaining 0 faults 1 "
            "errors 0");
  EXPECT_EQ(to_text(SnapshotRegion{GuestAddress(0x1000), 0x2000, 0x3000, Protection::read}),
            "0x1000+0x2000 r-- offset 0x3000");
  EXPECT_EQ(to_text(SnapshotId{{0x01, 0xab}}), "01ab0000000000000000000000000000");
  EXPECT_EQ(to_text(SnapshotId{}), "none");
  EXPECT_EQ(to_text(SavedSnapshot{.id = SnapshotId{{0xff}}, .stored = 0x1000}),
            "ff000000000000000000000000000000, 0x1000 bytes stored");
  EXPECT_EQ(to_text(LiveSnapshotStatistics{.stopped = std::chrono::microseconds(14021),
                                           .protected_bytes = 0x5000,
                                           .faults = 3,
                                           .saved_by_fault = 0x2000,
                                           .saved_by_discard = 0x1000,
                                           .saved_in_background = 0x2000,
                                           .longest_wait = std::chrono::microseconds(35)}),
            "stopped 14021 us, 0x5000 protected; saved 0x2000 by 3 faults, 0x1000 by discards, "
            "0x2000 in the background; longest wait 35 us");
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
  const auto region = MemoryRegion::map({.name = "rom",
                                         .base = GuestAddress(0x10'0000),
                                         .size = 0x4000,
                                         .backing = {.source = MemorySource::anon},
                                         .protection = Protection::read});
  ASSERT_TRUE(region);
  EXPECT_EQ(to_text(MemorySection(*region)), "rom [0x100000-0x103fff] r--");
  EXPECT_EQ(to_text(MemorySection(*region, 0x1000, 0x2000)), "rom+0x1000 [0x101000-0x102fff] r--");
}

TEST(Text, OfMemoryForDma) {
  DmaMapping mapping{
      .iova = 0x1000, .size = 0x2000, .host_address = reinterpret_cast<void*>(0x7f00'0000'0000)};
  EXPECT_EQ(to_text(mapping), "0x1000+0x2000 at host 0x7f0000000000");
  mapping.fd = 5;
  mapping.file_offset = 0x3000;
  mapping.read_only = true;
  EXPECT_EQ(to_text(mapping), "0x1000+0x2000 at host 0x7f0000000000 fd 5+0x3000 read_only");
  EXPECT_EQ(to_text(DmaLimits{}), "pages of 0x1000 in {[0x0-0xffffffffffffffff]}");
  EXPECT_EQ(
      to_text(DmaLimits{
          .iova_ranges = {Range::of(0, 1), Range::of(4, 5)}, .page_size = 0x10000, .available = 7}),
      "pages of 0x10000 in {[0x0-0x1], [0x4-0x5]}, 7 mappings left");
  const auto region = MemoryRegion::map(
      {.name = "BAR1", .size = 0x4000, .backing = {.source = MemorySource::anon}});
  ASSERT_TRUE(region);
  EXPECT_EQ(to_text(UnmappedWindow{MemorySection(*region), overlap}),
            "BAR1 [0x0-0x3fff] rw-: " + overlap.message());
}

TEST(Text, OfBlocksAndWhatIsPresent) {
  EXPECT_EQ(to_text(SectionUnit::slot), "slot");
  EXPECT_EQ(to_text(SectionUnit::block), "block");
  EXPECT_EQ(to_text(BlockState::plugged), "plugged");
  EXPECT_EQ(to_text(BlockState::unplugged), "unplugged");
  EXPECT_EQ(to_text(BlockState::mixed), "mixed");
  EXPECT_EQ(to_text(PresentBlocks::Run{.offset = 0x1000, .size = 0x2000}), "0x1000+0x2000");
  const auto none = PresentBlocks::none(0x8000, 0x1000, 0x4000).value();
  EXPECT_EQ(to_text(*none), "0x0 of 0x8000 in blocks of 0x1000: {}");
  const auto some = none->with({.offset = 0x1000, .size = 0x2000}).value();
  EXPECT_EQ(to_text(*some), "0x2000 of 0x8000 in blocks of 0x1000: {0x1000+0x2000}");
}

TEST(Text, OfWhatIsUnsettled) {
  EXPECT_EQ(
      to_text(UnsettledSection{
          .listener = "kvm", .range = {GuestAddress(0x1000), 0x2000}, .how = Unsettled::retired}),
      "kvm: 0x1000+0x2000 retired");
  EXPECT_EQ(to_text(Unsettled::missing), "missing");
  EXPECT_EQ(to_text(Unsettled::unlogged), "unlogged");
}

TEST(Text, OfVhostUser) {
  EXPECT_EQ(to_text(VhostUserAddresses::host), "host");
  EXPECT_EQ(to_text(VhostUserAddresses::guest), "guest");
  EXPECT_EQ(to_text(VhostUserLogArea{.fd = 5, .size = 0x1000, .offset = 0x2000}),
            "0x1000 bytes of fd 5 offset 0x2000");
}

TEST(Text, OfRequestsForResources) {
  EXPECT_EQ(to_text(ResourceKind::legacy_irq), "legacy_irq");
  EXPECT_EQ(to_text(MmioReach::below_4g), "below_4g");
  EXPECT_EQ(to_text(PciSlot{.segment = 1, .bus = 0x2a, .device = 0x1f}), "0001:2a:1f");
  EXPECT_EQ(to_text(PioRange{.size = 0x20}), "pio 0x20");
  EXPECT_EQ(to_text(PioRange{
                .size = 0x20, .align = 0x10, .window = Range::of(0x1000, 0x1fff), .fixed = 0x1010}),
            "pio 0x20 at 0x1010 aligned to 0x10 in [0x1000-0x1fff]");
  EXPECT_EQ(to_text(MmioRange{.size = 0x4000}), "mmio 0x4000");
  EXPECT_EQ(to_text(MmioRange{.size = 0x4000,
                              .align = 0x1000,
                              .reach = MmioReach::high,
                              .prefetchable = true,
                              .bridge = "pcie0",
                              .aperture = "mmio_low",
                              .fixed = GuestAddress(0xc000'0000),
                              .parked = true,
                              .name = "BAR0"}),
            "mmio 0x4000 at 0xc0000000 aligned to 0x1000 high prefetchable parked behind pcie0 "
            "in mmio_low named BAR0");
  EXPECT_EQ(to_text(MemoryRange{.region = {.name = "dimm0", .size = 0x1000},
                                .align = 0x1000,
                                .aperture = "ram_high",
                                .fixed = GuestAddress(0x1'0000'0000)}),
            "memory dimm0 ram 0x0+0x1000 none at 0x100000000 aligned to 0x1000 in ram_high");
  EXPECT_EQ(to_text(BridgeWindow{.size = 0x20'0000, .prefetchable = true}),
            "bridge_window 0x200000 prefetchable");
  EXPECT_EQ(to_text(LegacyIrq{}), "legacy_irq");
  EXPECT_EQ(to_text(LegacyIrq{.fixed = 5, .shared = true}), "legacy_irq at 5 shared");
  EXPECT_EQ(to_text(GenericIrq{.count = 2, .fixed = 24}), "generic_irq 2 at 24");
  EXPECT_EQ(to_text(MsiVectors{.count = 4}), "msi 4");
  EXPECT_EQ(to_text(MsixVectors{.count = 3, .fixed = 1024}), "msix 3 at 1024");
  EXPECT_EQ(to_text(KvmSlots{.count = 1, .fixed = 7}), "kvm_slot 1 at 7");
  EXPECT_EQ(to_text(PciDevice{}), "pci_device 0000:*:*");
  EXPECT_EQ(to_text(PciDevice{.segment = 0, .bus = 1, .device = 2}), "pci_device 0000:01:02");
  EXPECT_EQ(to_text(MacAddress{}), "mac_address");
  EXPECT_EQ(to_text(MacAddress{.fixed = 0x5254'0012'3456}), "mac_address at 52:54:00:12:34:56");
}

TEST(Text, OfWhatIsHeldAndWhatIsFree) {
  EXPECT_EQ(to_text(ResourceClaim{"nic0", LegacyIrq{.fixed = 5, .shared = true}}),
            "nic0: legacy_irq at 5 shared");
  EXPECT_EQ(to_text(ResourceHolder{ResourceKind::pio, Range::of(0x1000, 0x101f), "nic0"}),
            "nic0: pio [0x1000-0x101f]");
  EXPECT_EQ(to_text(ResourceHolder{ResourceKind::legacy_irq, Range::point(5), "nic0", true}),
            "nic0: legacy_irq 5 shared");
  EXPECT_EQ(to_text(ResourceHolder{.kind = ResourceKind::mmio,
                                   .range = Range::of(0, 0xfff),
                                   .owner = "nic0",
                                   .parked = true,
                                   .name = "BAR0"}),
            "nic0: mmio [0x0-0xfff] parked named BAR0");
  EXPECT_EQ(to_text(ResourceUsage{"pio", 65528, 65496, 61408}),
            "pio: 65496 of 65528 free, largest free run 61408");
  EXPECT_EQ(to_text(ResourceUsage{"mmio_low", 65536, 4096, 4096, true}),
            "mmio_low: 4096 of 65536 bytes free, largest free run 4096");
  EXPECT_EQ(to_text(ResourceMove{.to = GuestAddress(0xd000'0000)}),
            "move mmio 0 of null to 0xd0000000");
}

TEST(Text, OfADevicesResourcesIsAllOfThemByKind) {
  const auto layout = AddressSpaceLayout::x86_64({.phys_bits = 40});
  const auto space = AddressSpace::create(*layout);
  const auto manager = ResourceManager::create(
      *space, {.kvm_slots = *RangePool::create("slots", {Range::of(0, 508)}),
               .mac_addresses = Range::of(0x5254'0012'3400, 0x5254'0012'34ff)});
  ASSERT_TRUE(manager);
  auto nic = manager->acquire(
      {MacAddress{}, PciDevice{}, KvmSlots{.count = 2}, MsixVectors{.count = 3},
       MsiVectors{.count = 1}, GenericIrq{}, LegacyIrq{}, BridgeWindow{.size = 0x10'0000},
       MemoryRange{.region = {.size = 0x1000}, .aperture = "ram_high"}, MmioRange{.size = 0x1000},
       MmioRange{.size = 0x1000, .parked = true}, PioRange{.size = 8}},
      "nic0");
  ASSERT_TRUE(nic) << nic.error().message();
  EXPECT_EQ(
      to_text(*nic),
      "nic0: {pio [0x1000-0x1007], mmio [0xc0100000-0xc0100fff], mmio [0x0-0xfff] parked, "
      "memory [0x100000000-0x100000fff], bridge_window [0xc0000000-0xc00fffff], legacy_irq 5, "
      "generic_irq 24, msi 1027, msix 1024-1026, kvm_slot 0-1, pci_device 0000:00:01, "
      "mac_address 52:54:00:12:34:00}");
  EXPECT_EQ(to_text(ResourceMove{.device = &*nic, .index = 1}), "park mmio 1 of nic0");
  ASSERT_TRUE(nic->release());
  EXPECT_EQ(to_text(*nic), "released");
}

// What appears in nobody's expectation has no text: options that are only ever passed in, and
// owners of memory that can't be compared.
template <typename... Types>
constexpr bool all_textual = (Textual<Types> && ...);
static_assert(
    all_textual<Access, Advice, Applied, ApertureUse, Aperture, E820Type, HoleKind, Hole,
                MemorySource, MemoryRegion, NumaMode, PageKind, PopulateAccess, RegionType,
                Result<DeviceResources>, Sharing, Unsealed, AddressSpaceBase, Result<GuestMemory>>);

TEST(Text, IsOnlyOfOurTypes) {
  static_assert(!Textual<ResourceRequest>);  // a std::variant, which libraries print themselves
  static_assert(!Textual<int> && !Textual<std::string> && !Textual<std::vector<Range>> &&
                !Textual<std::optional<GuestAddress>> && !Textual<std::shared_ptr<Range>>);
}

}  // namespace
}  // namespace vmspace
