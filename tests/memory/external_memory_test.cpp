// SPDX-License-Identifier: Apache-2.0
//
// Regions of memory that comes from elsewhere: of a device's file, or mapped by something else.

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/address_space/address_space.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/region_descriptor.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/memory_blocks.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "host/host_support.hpp"

namespace vmspace::external_memory_test {
namespace {

using namespace test;

constexpr std::uint64_t size = 64_KiB;
constexpr GuestAddress bar_base{0xe000'0000};

/// A mapping that the library does not know of; counts how often it is unmapped.
struct Elsewhere {
  explicit Elsewhere(int protection = PROT_READ | PROT_WRITE) {
    void* const address = ::mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) std::abort();
    memory.data = static_cast<std::byte*>(address);
    memory.size = size;
    memory.owner = std::shared_ptr<void>(address, [count = unmapped](void* at) {
      ++*count;
      ::munmap(at, size);
    });
  }
  std::shared_ptr<int> unmapped = std::make_shared<int>(0);
  ExternalMemory memory;
};

RegionOptions described(MemorySource source, std::string name = "blob") {
  RegionOptions options{.name = std::move(name),
                        .type = RegionType::device_memory,
                        .base = bar_base,
                        .size = size,
                        .backing = {.source = source}};
  if (source == MemorySource::device) options.backing.path = "/dev/zero";
  return options;
}

TEST(ExternalMemory, IsUsedInPlaceAndItsOwnerIsLetGoOnce) {
  Elsewhere elsewhere;
  std::byte* const data = elsewhere.memory.data;
  {
    auto mapping = MemoryMapping::adopt(elsewhere.memory);
    ASSERT_THAT(mapping, IsOk());
    elsewhere.memory.owner.reset();
    EXPECT_EQ(mapping->data(), data);
    EXPECT_EQ(mapping->size(), size);
    EXPECT_EQ(mapping->backing().fd(), -1);
    EXPECT_TRUE(mapping->backing().is_external());
    MemoryMapping moved = std::move(*mapping);
    moved.data()[5] = std::byte{5};
    EXPECT_EQ(*elsewhere.unmapped, 0);
    VMSPACE_EXPECT_OK(moved.close());
    EXPECT_EQ(*elsewhere.unmapped, 1);
    EXPECT_THAT(moved.close(), HasError(Errc::bad_state));
  }
  EXPECT_EQ(*elsewhere.unmapped, 1);
}

TEST(ExternalMemory, BorrowedMemoryStaysMapped) {
  Elsewhere elsewhere;
  ExternalMemory borrowed = elsewhere.memory;
  borrowed.owner.reset();
  {
    const auto mapping = MemoryMapping::adopt(borrowed);
    ASSERT_THAT(mapping, IsOk());
    mapping->data()[0] = std::byte{1};
  }
  EXPECT_EQ(*elsewhere.memory.data, std::byte{1});
  EXPECT_EQ(permissions_at(elsewhere.memory.data), "rw-p");
}

TEST(ExternalMemory, WrongArgumentsLeaveTheOwnerToTheCaller) {
  Elsewhere elsewhere;
  const auto with = [&](std::byte* data, std::uint64_t bytes) {
    ExternalMemory memory = elsewhere.memory;
    memory.data = data;
    memory.size = bytes;
    return MemoryMapping::adopt(memory);
  };
  std::byte* const data = elsewhere.memory.data;
  EXPECT_THAT(with(nullptr, size), HasError(Errc::invalid_argument));
  EXPECT_THAT(with(data, 0), HasError(Errc::zero_size));
  EXPECT_THAT(with(data + 1, 4_KiB), HasError(Errc::misaligned));
  EXPECT_THAT(with(data, size - 1), HasError(Errc::misaligned));
  EXPECT_THAT(with(data, std::uint64_t{1} << 63), HasError(Errc::limit_exceeded));
  auto* const high = reinterpret_cast<std::byte*>(~std::uintptr_t{0} - 4095);
  EXPECT_THAT(with(high, 8_KiB), HasError(Errc::overflow));
  EXPECT_THAT(with(high, 4_KiB), HasError(Errc::not_found)) << "the kernel's own addresses";
  ASSERT_EQ(::munmap(data + 8_KiB, 4_KiB), 0);
  EXPECT_THAT(with(data, size), HasError(Errc::not_found)) << "a hole";
  EXPECT_THAT(with(data, 8_KiB), IsOk());
  ExternalMemory unknown = elsewhere.memory;
  unknown.protection = static_cast<Protection>(64);
  EXPECT_THAT(MemoryMapping::adopt(unknown), HasError(Errc::invalid_argument));
  EXPECT_EQ(*elsewhere.unmapped, 0);
}

TEST(ExternalMemory, ARegionOfItIsReadAndWrittenByTheGuest) {
  Elsewhere elsewhere;
  std::byte* const data = elsewhere.memory.data;
  MapOptions options{.external = std::move(elsewhere.memory)};
  auto region = MemoryRegion::map(described(MemorySource::external), options);
  ASSERT_THAT(region, IsOk());
  options.external.reset();
  auto memory = GuestMemory::from_regions({*region});
  ASSERT_THAT(memory, IsOk());
  VMSPACE_EXPECT_OK(memory->write(GuestAddress(bar_base.value() + 8), std::uint32_t{0x1234}));
  EXPECT_EQ(data[8], std::byte{0x34});
  region = fail({});
  *memory = GuestMemory();
  EXPECT_EQ(*elsewhere.unmapped, 1) << "with its last user";
}

TEST(ExternalMemory, ARegionMustFitItsMemory) {
  Elsewhere elsewhere(PROT_READ);
  elsewhere.memory.protection = Protection::read;
  RegionOptions rom = described(MemorySource::external);
  EXPECT_THAT(MemoryRegion::map(rom, {.external = elsewhere.memory}),
              HasError(Errc::access_denied));
  rom.protection = Protection::read;
  EXPECT_THAT(MemoryRegion::map(rom, {.external = elsewhere.memory}), IsOk());
  EXPECT_THAT(MemoryRegion::map(rom), HasError(Errc::invalid_argument));
  EXPECT_THAT(MemoryRegion::map(rom, {.external = elsewhere.memory, .guard_pages = true}),
              HasError(Errc::unsupported));
  rom.size = 4_KiB;
  EXPECT_THAT(MemoryRegion::map(rom, {.external = elsewhere.memory}),
              HasError(Errc::invalid_argument));
  elsewhere.memory.owner.reset();
  EXPECT_EQ(*elsewhere.unmapped, 1) << "nothing is left of what failed";
}

TEST(ExternalMemory, OneChangeOfTheGuestTakesOnePieceOfIt) {
  Elsewhere elsewhere;
  AddressSpaceBase space(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
  RegionOptions second = described(MemorySource::external, "blob1");
  second.base = GuestAddress(bar_base.value() + size);
  const auto insert = [&](const RegionOptions& options) {
    VMSPACE_ASSERT_OK(space.insert_region(options));
  };
  insert(described(MemorySource::external, "blob0"));
  const auto first = GuestMemory::map(space, {.external = elsewhere.memory});
  ASSERT_THAT(first, IsOk());
  insert(second);
  EXPECT_THAT(GuestMemory::map(space, {.external = elsewhere.memory}),
              HasError(Errc::invalid_argument));
  const Elsewhere other;
  const auto both = first->remap(space, {.external = other.memory});
  ASSERT_THAT(both, IsOk());
  EXPECT_EQ(both->regions()[1]->host_base(), other.memory.data);
}

TEST(DeviceMemory, ACharacterDeviceIsMappedAtItsOffset) {
  const OwnedFd fd(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  const auto backing = Backing::open(
      {.source = MemorySource::device, .fd = fd.get(), .offset = std::uint64_t{1} << 40}, size);
  ASSERT_THAT(backing, IsOk());
  EXPECT_TRUE(backing->is_external());
  EXPECT_TRUE(backing->is_shared());
  EXPECT_TRUE(backing->can_lose_pages()) << "a device may be reset";
  EXPECT_FALSE(backing->is_discardable());
  const auto mapping = MemoryMapping::map(*backing, {.size = 8_KiB, .offset = 4_KiB});
  ASSERT_THAT(mapping, IsOk());
  EXPECT_EQ(mapping->file_offset(), (std::uint64_t{1} << 40) + 4_KiB);
  EXPECT_THAT(MemoryMapping::map(*backing, {.size = size, .offset = 4_KiB}),
              HasError(Errc::out_of_bounds));
  // /dev/zero has its pages at the beginning.
  const auto zeros = Backing::open({.source = MemorySource::device, .fd = fd.get()}, size);
  const auto begin = MemoryMapping::map(*zeros, {.size = size});
  ASSERT_THAT(begin, IsOk());
  EXPECT_TRUE(holds(*begin, 0, size, 0));
}

TEST(DeviceMemory, WhatIsNotADeviceOrMapsNothingIsRefused) {
  const TemporaryDirectory directory;
  const auto open = [](const std::string& path) {
    return Backing::open({.source = MemorySource::device, .path = path}, size);
  };
  EXPECT_THAT(open(directory.file("image", size, 'i')), HasError(Errc::invalid_argument));
  EXPECT_THAT(open("/dev/vmspace-has-none"), HasError(Errc::os));
  EXPECT_THAT(Backing::open({.source = MemorySource::external}, size),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(
      Backing::open(
          {.source = MemorySource::device, .path = "/dev/zero", .sharing = Sharing::map_private},
          size),
      HasError(Errc::invalid_argument));
  const OwnedFd read_only(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const BackingSpec spec{.source = MemorySource::device, .fd = read_only.get()};
  EXPECT_THAT(Backing::open(spec, size), HasError(Errc::access_denied));
  EXPECT_THAT(Backing::open(spec, size, Protection::read), IsOk());
  const auto null = open("/dev/null");
  ASSERT_THAT(null, IsOk());
  const auto unmapped = MemoryMapping::map(*null, {.size = size});
  ASSERT_THAT(unmapped, HasError(Errc::unsupported));
  EXPECT_EQ(unmapped.error().os_errno, ENODEV);
}

// A dma-buf of pages of a memfd: what a device's driver would give.
TEST(DeviceMemory, ADmaBufIsMapped) {
  const OwnedFd driver(::open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
  if (driver.get() < 0) GTEST_SKIP() << "this kernel has no /dev/udmabuf, or it may not be opened";
  const OwnedFd memfd(::memfd_create("pages", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(memfd.get(), static_cast<off_t>(size)), 0);
  ASSERT_EQ(::fcntl(memfd.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  // struct udmabuf_create and UDMABUF_CREATE of linux/udmabuf.h.
  struct {
    std::uint32_t memfd;
    std::uint32_t flags;
    std::uint64_t offset;
    std::uint64_t size;
  } create{static_cast<std::uint32_t>(memfd.get()), 1, 0, size};
  const OwnedFd buffer(::ioctl(driver.get(), _IOW('u', 0x42, decltype(create)), &create));
  ASSERT_GE(buffer.get(), 0);
  RegionOptions options = described(MemorySource::device);
  options.backing = {.source = MemorySource::device, .fd = buffer.get()};
  const auto region = MemoryRegion::map(options);
  ASSERT_THAT(region, IsOk());
  (*region)->host_base()[3] = std::byte{3};
  char byte = 0;
  ASSERT_EQ(::pread(memfd.get(), &byte, 1, 3), 1);
  EXPECT_EQ(byte, 3);
  options.size = 2 * size;
  EXPECT_THAT(MemoryRegion::map(options), HasError(Errc::unsupported));
}

class NotOurPages : public testing::TestWithParam<MemorySource> {};

TEST_P(NotOurPages, WhatMakesNoSenseIsUnsupported) {
  Elsewhere elsewhere;
  auto region = MemoryRegion::map(described(GetParam()), {.external = elsewhere.memory});
  ASSERT_THAT(region, IsOk());
  const MemoryMapping& mapping = (*region)->mapping();
  EXPECT_THAT(mapping.discard(0, 4_KiB), HasError(Errc::unsupported));
  EXPECT_THAT(mapping.lock(0, 4_KiB), HasError(Errc::unsupported));
  EXPECT_THAT(mapping.residency(), HasError(Errc::unsupported));
  EXPECT_THAT(populate(mapping), HasError(Errc::unsupported));
  PageScan present(mapping, PageQuery::present);
  EXPECT_THAT(present.next(0, size), HasError(Errc::unsupported));
  EXPECT_EQ(mapping.collapse(0, size), Applied::not_applicable);
  VMSPACE_EXPECT_OK(mapping.msync()) << "nothing to write back";
  const auto memory = GuestMemory::from_regions({*region});
  ASSERT_THAT(memory, IsOk());
  EXPECT_THAT(describe_regions(*memory), HasError(Errc::unsupported));
  const auto vm = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
  ASSERT_THAT(vm, IsOk());
  EXPECT_THAT(MemoryBlocks::create(*vm, described(GetParam()), {.block_size = 4_KiB}),
              HasError(Errc::unsupported));
  const OwnedFd file(::memfd_create("snapshot", MFD_CLOEXEC));
  VMSPACE_EXPECT_OK(memory->fill({bar_base, size}, std::byte{7}));
  const auto saved = save_snapshot(*memory, file.get());
  if (GetParam() == MemorySource::device) {
    EXPECT_THAT(saved, HasError(Errc::unsupported));
  } else {
    ASSERT_THAT(saved, IsOk());
    EXPECT_EQ(saved->stored, size) << "all of it counts as present";
  }
  for (const auto change :
       {+[](RegionOptions& o) { o.populate = true; },
        +[](RegionOptions& o) { o.huge_pages = true; }, +[](RegionOptions& o) { o.numa_node = 0; },
        +[](RegionOptions& o) { o.backing.discardable = true; },
        +[](RegionOptions& o) { o.backing.sharing = Sharing::map_private; }}) {
    RegionOptions options = described(GetParam());
    change(options);
    EXPECT_THAT(AddressSpaceRegion::make(options), HasError(Errc::invalid_argument));
  }
  if (GetParam() == MemorySource::external) {
    EXPECT_THAT(MemoryMapping::map(mapping.backing(), {.size = size}), HasError(Errc::unsupported));
  }
}

INSTANTIATE_TEST_SUITE_P(Sources, NotOurPages,
                         testing::Values(MemorySource::device, MemorySource::external));

// VMMs look regions up by what they are for; a region's type, protection and owner say it.
TEST(RegionsByPurpose, AreFilteredByTypeProtectionAndOwner) {
  std::vector<MemoryRegionPtr> mapped;
  const auto add = [&](RegionOptions options) {
    options.base = GuestAddress(mapped.size() * 16_MiB);
    options.size = size;
    options.backing = {.source = MemorySource::anon};
    mapped.push_back(*MemoryRegion::map(options));
  };
  add({.name = "ram0"});
  add({.name = "rom", .type = RegionType::firmware_memory, .protection = Protection::read});
  add({.name = "vars", .type = RegionType::firmware_memory, .owner = "uefi"});
  add({.name = "pmem0", .type = RegionType::dax_memory});
  add({.name = "bar2", .type = RegionType::device_memory, .owner = "gpu"});
  const auto memory = GuestMemory::from_regions(mapped);
  ASSERT_THAT(memory, IsOk());
  const auto names = [&](auto wanted) {
    std::vector<std::string> found;
    for (const auto& region : memory->regions()) {
      if (wanted(region)) found.push_back(region->description().name());
    }
    return found;
  };
  const auto of_type = [](RegionType type) {
    return [type](const MemoryRegionPtr& region) { return region->description().type() == type; };
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(of_type(RegionType::default_memory)), Names{"ram0"});
  EXPECT_EQ(names(of_type(RegionType::dax_memory)), Names{"pmem0"});
  EXPECT_EQ(names(of_type(RegionType::firmware_memory)), (Names{"rom", "vars"}));
  EXPECT_EQ(names([](const MemoryRegionPtr& region) {
              return !allows(region->protection(), Protection::write);
            }),
            Names{"rom"});
  EXPECT_EQ(
      names([](const MemoryRegionPtr& region) { return region->description().owner() == "gpu"; }),
      Names{"bar2"});
}

}  // namespace
}  // namespace vmspace::external_memory_test
