// SPDX-License-Identifier: Apache-2.0
//
// Guest memory for libraries of drivers and devices: how SPDK and libvfio-user are connected, with
// stand-ins that have their functions and rules.

#include "vmspace/vmm/dma_callbacks.hpp"

#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/dma_mappings.hpp"

namespace vmspace::dma_callbacks_test {
namespace {

using namespace literals;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Key;
using testing::SizeIs;

// --- SPDK (spdk/env.h) -------------------------------------------------------------------------

std::map<std::uintptr_t, std::size_t> registered;  // what the stand-in of SPDK holds

int spdk_mem_register(void* vaddr, std::size_t len) {
  const auto start = reinterpret_cast<std::uintptr_t>(vaddr);
  if (start % 2_MiB != 0 || len % 2_MiB != 0) return -EINVAL;
  for (const auto& [other, size] : registered) {
    if (start < other + size && other < start + len) return -EBUSY;
  }
  registered[start] = len;
  return 0;
}

int spdk_mem_unregister(void* vaddr, std::size_t len) {
  const auto found = registered.find(reinterpret_cast<std::uintptr_t>(vaddr));
  if (found == registered.end() || found->second != len) return -ERANGE;
  registered.erase(found);
  return 0;
}

// What a VMM writes.
constexpr DmaFunctions spdk{
    .name = "spdk",
    .map = [](void*, const DmaMapping* m) { return spdk_mem_register(m->host_address, m->size); },
    .unmap = [](void*,
                const DmaMapping* m) { return spdk_mem_unregister(m->host_address, m->size); },
    .page_size = 2_MiB,
    .by_host_address = true};

Result<DmaMappings> create(const DmaFunctions& functions) {
  return VMSPACE_TRY(DmaMappings::create(VMSPACE_TRY(DmaCallbacks::make(functions))));
}

MemoryRegionPtr ram(std::string name, std::uint64_t base, std::uint64_t size,
                    Protection protection = Protection::read_write,
                    MemorySource source = MemorySource::anon) {
  auto region = MemoryRegion::map({.name = std::move(name),
                                   .base = GuestAddress(base),
                                   .size = size,
                                   .backing = {.source = source},
                                   .protection = protection},
                                  {.align = 2_MiB});
  VMSPACE_EXPECT_OK(region);
  return *region;
}

class SpdkTest : public ::testing::Test {
 protected:
  SpdkTest() { registered.clear(); }

  const MemorySection low{ram("low", 0, 4_MiB)};
};

TEST_F(SpdkTest, MemoryIsRegisteredByItsHostAddress) {
  {
    auto dma = create(spdk);
    ASSERT_THAT(dma, IsOk());
    EXPECT_EQ(dma->name(), "spdk");
    VMSPACE_ASSERT_OK(dma->add(low));
    EXPECT_THAT(registered,
                ElementsAre(std::pair(reinterpret_cast<std::uintptr_t>(low.host_base()), 4_MiB)));
    EXPECT_TRUE(dma->is_mapped(low.guest_range()));
  }
  EXPECT_THAT(registered, IsEmpty());
}

TEST_F(SpdkTest, MemoryThatIsNotOfItsPagesIsRefusedBeforehand) {
  auto dma = create(spdk);
  ASSERT_THAT(dma, IsOk());
  const MemorySection odd[] = {MemorySection(ram("odd", 0, 3_MiB))};
  const auto refused = dma->prepare({.added = odd});
  ASSERT_THAT(refused, HasError(Errc::misaligned));
  EXPECT_THAT(refused.error().message(), HasSubstr("\"odd\": misaligned: 0x300000"));
}

TEST_F(SpdkTest, WhatTheLibraryRefusesIsAnErrorWithItsErrno) {
  auto dma = create(spdk);
  ASSERT_THAT(dma, IsOk());
  const MemorySection all(ram("ram", 1_GiB, 4_MiB));
  VMSPACE_ASSERT_OK(dma->add(all));
  const auto moved = all.region()->at(GuestAddress(2_GiB));
  ASSERT_THAT(moved, IsOk());
  const auto refused = dma->add(MemorySection(*moved, 0, 2_MiB));  // a part of what it has
  ASSERT_THAT(refused, HasError(Errc::os));
  EXPECT_EQ(refused.error().os_errno, EBUSY);
  EXPECT_THAT(refused.error().message(),
              AllOf(HasSubstr("DmaMappings::add: \"ram\""), HasSubstr("refused it")));
}

// A moved region is added before the old one is removed.
TEST_F(SpdkTest, MemoryThatMovesStaysRegisteredOnce) {
  auto dma = create(spdk);
  ASSERT_THAT(dma, IsOk());
  const auto region = low.region()->at(GuestAddress(1_GiB));
  ASSERT_THAT(region, IsOk());
  const MemorySection moved(*region);
  VMSPACE_ASSERT_OK(dma->add(low));
  VMSPACE_ASSERT_OK(dma->add(moved));
  EXPECT_THAT(registered, SizeIs(1));
  VMSPACE_ASSERT_OK(dma->remove(low));
  EXPECT_THAT(registered, SizeIs(1)) << "the guest has it at its new address";
  EXPECT_TRUE(dma->is_mapped(moved.guest_range()));
  VMSPACE_ASSERT_OK(dma->remove(moved));
  EXPECT_THAT(registered, IsEmpty());

  VMSPACE_ASSERT_OK(dma->add(low));
  VMSPACE_ASSERT_OK(dma->add(moved));
  dma = create(spdk);
  EXPECT_THAT(registered, IsEmpty()) << "destruction unregisters it once";
}

// A region of 64 GiB in blocks of 2 MiB, of which every other is there. Were each section compared with
// all others, this would take a minute.
TEST_F(SpdkTest, KnowsAsManySectionsAsARegionHasBlocks) {
  static std::uint64_t mappings = 0;
  auto dma = create({.map = [](void*, const DmaMapping*) { return ++mappings, 0; },
                     .unmap = [](void*, const DmaMapping*) { return --mappings, 0; },
                     .by_host_address = true});
  ASSERT_THAT(dma, IsOk());
  constexpr std::uint64_t count = 32'768;
  const MemoryRegionPtr region = ram("ram", 64_GiB, 2 * count * 4_KiB);
  const auto block = [&](std::uint64_t index) {
    return MemorySection(region, 2 * index * 4_KiB, 4_KiB);
  };
  for (std::uint64_t i = 0; i < count; ++i)
    ASSERT_THAT(dma->add(block(i)), IsOk());
  EXPECT_EQ(mappings, count);
  for (std::uint64_t i = 0; i < count; ++i) {
    ASSERT_THAT(region->mapping().discard(2 * i * 4_KiB, 4_KiB), HasError(Errc::bad_state));
    ASSERT_THAT(region->mapping().discard(2 * i * 4_KiB + 4_KiB, 4_KiB), IsOk());
    ASSERT_THAT(dma->remove(block(i)), IsOk());
  }
  EXPECT_EQ(mappings, 0U);
  VMSPACE_EXPECT_OK(region->mapping().discard(0, region->size()));
}

// --- libvfio-user (libvfio-user.h): a device in this process gets the callbacks of its DMA
// ---------

struct vfu_dma_info_t {
  iovec iova;
  void* vaddr;
  iovec mapping;
  std::size_t page_size;
  std::uint32_t prot;
};

struct vfu_ctx_t {  // and the device behind it
  std::map<std::uint64_t, vfu_dma_info_t> memory;
};

void dma_register(vfu_ctx_t* context, vfu_dma_info_t* info) {
  context->memory[reinterpret_cast<std::uintptr_t>(info->iova.iov_base)] = *info;
}

void dma_unregister(vfu_ctx_t* context, vfu_dma_info_t* info) {
  context->memory.erase(reinterpret_cast<std::uintptr_t>(info->iova.iov_base));
}

// What a VMM writes.
vfu_dma_info_t dma_info(const DmaMapping& m) {
  constexpr std::uint32_t read = 1;  // PROT_READ, PROT_WRITE
  constexpr std::uint32_t write = 2;
  return {.iova = {reinterpret_cast<void*>(m.iova), m.size},
          .vaddr = m.host_address,
          .mapping = {m.host_address, m.size},
          .page_size = 4096,
          .prot = m.read_only ? read : read | write};
}

DmaFunctions vfio_user(vfu_ctx_t* context) {
  return {.name = "vfio-user",
          .context = context,
          .map =
              [](void* device, const DmaMapping* m) {
                vfu_dma_info_t info = dma_info(*m);
                dma_register(static_cast<vfu_ctx_t*>(device), &info);
                return 0;
              },
          .unmap =
              [](void* device, const DmaMapping* m) {
                vfu_dma_info_t info = dma_info(*m);
                dma_unregister(static_cast<vfu_ctx_t*>(device), &info);
                return 0;
              }};
}

TEST(VfioUser, ADeviceFindsMemoryAtTheGuestsAddressesWithItsProtection) {
  vfu_ctx_t device;
  auto dma = create(vfio_user(&device));
  ASSERT_THAT(dma, IsOk());
  const MemorySection low(ram("low", 0, 1_MiB));
  const MemorySection rom(ram("rom", 4_GiB, 64_KiB, Protection::read));
  VMSPACE_ASSERT_OK(dma->add(low));
  VMSPACE_ASSERT_OK(dma->add(rom));
  EXPECT_THAT(device.memory, ElementsAre(Key(0), Key(4_GiB)));
  EXPECT_EQ(device.memory[0].vaddr, low.host_base());
  EXPECT_EQ(device.memory[0].prot, 3u);
  EXPECT_EQ(device.memory[4_GiB].iova.iov_len, 64_KiB);
  EXPECT_EQ(device.memory[4_GiB].prot, 1u);
  VMSPACE_ASSERT_OK(dma->remove(low));
  EXPECT_THAT(device.memory, ElementsAre(Key(4_GiB)));
}

// A device in another process maps the descriptor that a client sends it.
TEST(VfioUser, AClientHasTheDescriptorAndTheOffsetToSend) {
  static std::vector<DmaMapping> sent;
  sent.clear();
  const auto record = [](void*, const DmaMapping* m) {
    sent.push_back(*m);
    return 0;
  };
  auto dma = create({.name = "client", .map = record, .unmap = record});
  ASSERT_THAT(dma, IsOk());
  const MemorySection shared(ram("ram", 0, 1_MiB, Protection::read_write, MemorySource::shmem),
                             64_KiB, 128_KiB);
  VMSPACE_ASSERT_OK(dma->add(shared));
  EXPECT_EQ(sent.back(), (DmaMapping{.iova = 64_KiB,
                                     .size = 128_KiB,
                                     .host_address = shared.host_base(),
                                     .fd = shared.fd(),
                                     .file_offset = 64_KiB,
                                     .read_only = false}));
  VMSPACE_ASSERT_OK(dma->remove(shared));
  ASSERT_THAT(sent, SizeIs(2));
  EXPECT_EQ(sent[0], sent[1]) << "unmap gets what map got";
  VMSPACE_ASSERT_OK(dma->add(MemorySection(ram("anon", 1_GiB, 64_KiB))));
  EXPECT_EQ(sent.back().fd, -1);
}

TEST(DmaCallbacks, NeedsBothFunctionsAndAPageSize) {
  const auto ok = [](void*, const DmaMapping*) { return 0; };
  EXPECT_THAT(DmaCallbacks::make({.map = ok}), HasError(Errc::invalid_argument));
  EXPECT_THAT(DmaCallbacks::make({.unmap = ok}), HasError(Errc::invalid_argument));
  EXPECT_THAT(DmaCallbacks::make({.name = nullptr, .map = ok, .unmap = ok}),
              HasError(Errc::invalid_argument));
  for (const std::uint64_t size : {0u, 3u}) {
    EXPECT_THAT(DmaCallbacks::make({.map = ok, .unmap = ok, .page_size = size}),
                HasError(Errc::bad_alignment));
  }
  VMSPACE_EXPECT_OK(DmaCallbacks::make({.map = ok, .unmap = ok, .page_size = 1}));
}

TEST(DmaCallbacks, WhateverIsNotZeroIsAnErrno) {
  static int answer = 0;
  const auto answered = [](void*, const DmaMapping*) { return answer; };
  const auto target = DmaCallbacks::make({.map = answered, .unmap = answered});
  ASSERT_THAT(target, IsOk());
  for (const auto& [returned, error] :
       {std::pair(-ENOMEM, ENOMEM), std::pair(ENOMEM, ENOMEM), std::pair(-1, EPERM),
        std::pair(std::numeric_limits<int>::min(), EIO)}) {
    answer = returned;
    for (const auto& refused : {(*target)->map({}), (*target)->unmap({})}) {
      ASSERT_THAT(refused, HasError(Errc::os));
      EXPECT_EQ(refused.error().os_errno, error);
    }
  }
}

TEST(DmaTargets, WhatThrowsWhenItMapsHasNothingMapped) {
  static bool runs_out;
  static int mapped;
  struct Target final : DmaTarget {
    std::string_view name() const noexcept override { return "library"; }
    Result<DmaLimits> limits() const override { return DmaLimits{}; }
    Result<void> map(const DmaMapping&) override {
      if (runs_out) throw std::bad_alloc();
      ++mapped;
      return {};
    }
    Result<void> unmap(const DmaMapping&) noexcept override {
      --mapped;
      return {};
    }
    bool is_by_host_address() const noexcept override { return true; }
  };
  runs_out = true;
  mapped = 0;
  auto dma = DmaMappings::create(std::make_unique<Target>());
  ASSERT_THAT(dma, IsOk());
  const MemorySection section(ram("ram", 0, 2_MiB));
  EXPECT_THROW(static_cast<void>(dma->add(section)), std::bad_alloc);
  EXPECT_FALSE(dma->is_mapped(section.guest_range()));
  VMSPACE_EXPECT_OK(section.region()->mapping().discard(0, 2_MiB)) << "nor is it pinned";
  runs_out = false;
  VMSPACE_EXPECT_OK(dma->add(section));
  EXPECT_EQ(mapped, 1);
  VMSPACE_EXPECT_OK(dma->remove(section));
  EXPECT_EQ(mapped, 0);
  VMSPACE_EXPECT_OK(dma->check_invariants());
}

TEST(DmaTargets, APageSizeThatIsNoneIsAnError) {
  struct Target final : DmaTarget {
    explicit Target(std::uint64_t size) : page_size(size) {}
    std::string_view name() const noexcept override { return "library"; }
    Result<DmaLimits> limits() const override { return DmaLimits{.page_size = page_size}; }
    Result<void> map(const DmaMapping&) override { return {}; }
    Result<void> unmap(const DmaMapping&) noexcept override { return {}; }
    std::uint64_t page_size;
  };
  const std::vector<MemorySection> added{MemorySection(ram("ram", 0, 2_MiB))};
  for (const std::uint64_t size : {0U, 3U}) {
    auto dma = DmaMappings::create(std::make_unique<Target>(size));
    ASSERT_THAT(dma, IsOk());
    EXPECT_THAT(dma->prepare({.added = added}), HasError(Errc::bad_alignment));
    EXPECT_THAT(dma->add(added[0]), HasError(Errc::bad_alignment));
    EXPECT_FALSE(dma->is_mapped(added[0].guest_range()));
  }
}

}  // namespace
}  // namespace vmspace::dma_callbacks_test
