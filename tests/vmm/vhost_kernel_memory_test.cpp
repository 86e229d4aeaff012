// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_kernel_memory.hpp"

// Without its inline functions, which are C.
#define VIRTIO_RING_NO_LEGACY
#include <linux/vhost.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string>

#include "faults/injector.hpp"
#include "vmm/vhost_user_support.hpp"

namespace vmspace::vhost_kernel_memory_test {
namespace {

using namespace test;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Property;
using testing::SizeIs;

/// A vhost device behind the library's system calls: it keeps the table that it is given.
class VhostKernel : public testing::Test {
 protected:
  VhostKernel() {
    fake = this;
    injector_.table().ioctl = [](int, unsigned long request, void* argument) {
      return fake->ioctl(request, argument);
    };
    // Not what this machine may have loaded.
    injector_.hide_proc_and_sys();
  }

  std::unique_ptr<VhostKernelMemory> memory() {
    auto made = VhostKernelMemory::create(file_.value(), "net0");
    EXPECT_TRUE(made) << made.error().message();
    return *std::move(made);
  }

  /// Where the device's regions begin.
  [[nodiscard]] std::vector<std::uint64_t> bases() const {
    std::vector<std::uint64_t> all;
    for (const vhost_memory_region& region : table_)
      all.push_back(region.guest_phys_addr);
    return all;
  }

  std::vector<vhost_memory_region> table_;
  int tables_ = 0;  ///< how many were taken
  int refuse_ = 0;  ///< the errno for the next call

 private:
  int ioctl(unsigned long request, void* argument) {
    if (const int error = std::exchange(refuse_, 0); error != 0) {
      errno = error;
      return -1;
    }
    if (request == VHOST_GET_FEATURES) return 0;
    EXPECT_EQ(request, VHOST_SET_MEM_TABLE);
    const auto* const table = static_cast<const vhost_memory*>(argument);
    EXPECT_EQ(table->padding, 0U);
    table_.assign(table->regions, table->regions + table->nregions);
    ++tables_;
    return 0;
  }

  inline static VhostKernel* fake = nullptr;
  Injector injector_;
  Descriptor file_ = memory_file(4_KiB);
};

TEST_F(VhostKernel, TheDeviceHasWhatWasAddedAndNotWhatWasRemoved) {
  const auto listener = memory();
  EXPECT_EQ(listener->name(), "net0");
  // The kernel reaches any memory of this process.
  const MemorySection low(shared_ram(0, 64_KiB, {.backing = {.source = MemorySource::anon}}));
  const MemorySection high(shared_ram(4_GiB, 64_KiB), 4_KiB, 8_KiB);
  VMSPACE_ASSERT_OK(listener->prepare({.added = std::span(&low, 1)}));
  VMSPACE_ASSERT_OK(listener->add(low));
  VMSPACE_ASSERT_OK(listener->add(high));
  EXPECT_THAT(table_, IsEmpty()) << "not before all has been said";
  VMSPACE_ASSERT_OK(listener->commit());
  ASSERT_THAT(table_, SizeIs(2));
  EXPECT_EQ(table_[1].guest_phys_addr, 4_GiB + 4_KiB);
  EXPECT_EQ(table_[1].memory_size, 8_KiB);
  EXPECT_EQ(table_[1].userspace_addr, reinterpret_cast<std::uintptr_t>(high.host_base()));
  EXPECT_EQ(table_[1].flags_padding, 0U);
  VMSPACE_ASSERT_OK(listener->commit());
  EXPECT_EQ(tables_, 1) << "not again unless it has changed";

  VMSPACE_ASSERT_OK(listener->remove(low));
  VMSPACE_ASSERT_OK(listener->commit());
  EXPECT_THAT(bases(), ElementsAre(4_GiB + 4_KiB));
  VMSPACE_ASSERT_OK(listener->remove(high));
  VMSPACE_ASSERT_OK(listener->commit());
  EXPECT_THAT(table_, IsEmpty());
  EXPECT_EQ(tables_, 3);
  EXPECT_EQ(listener->used(), 0U);
  EXPECT_FALSE(listener->is_gone());
}

TEST_F(VhostKernel, ATableThatTheKernelRefusesChangesNothing) {
  const auto listener = memory();
  const MemorySection one(shared_ram(0, 64_KiB));
  const MemorySection two(shared_ram(64_KiB, 64_KiB));
  refuse_ = ENOMEM;
  VMSPACE_ASSERT_OK(listener->add(one));
  EXPECT_THAT(listener->commit(),
              HasErrorThat(Property(&Error::message, HasSubstr("\"net0\": failed: 1"))));
  EXPECT_EQ(listener->used(), 0U);
  EXPECT_THAT(listener->remove(one), HasError(Errc::not_found));
  VMSPACE_ASSERT_OK(listener->add(one));
  VMSPACE_ASSERT_OK(listener->commit());

  VMSPACE_ASSERT_OK(listener->remove(one));
  VMSPACE_ASSERT_OK(listener->add(two));
  refuse_ = EFAULT;
  EXPECT_THAT(listener->commit(), HasError(Errc::os));
  EXPECT_THAT(bases(), ElementsAre(0U));
  EXPECT_EQ(listener->used(), 1U);
  VMSPACE_ASSERT_OK(listener->remove(one));
  refuse_ = EINTR;
  VMSPACE_ASSERT_OK(listener->commit());
  EXPECT_THAT(table_, IsEmpty());
}

TEST_F(VhostKernel, SectionsThatADeviceCanNotHaveAreRefused) {
  const auto listener = memory();
  const MemoryRegionPtr region = shared_ram(0, 64_KiB);
  const MemorySection odd(region, 512, 4_KiB);
  EXPECT_THAT(listener->prepare({.added = std::span(&odd, 1)}), HasError(Errc::misaligned));
  EXPECT_THAT(listener->add(odd), HasError(Errc::misaligned));
  EXPECT_THAT(listener->add(MemorySection(region, 0, 512)), HasError(Errc::misaligned));
  VMSPACE_ASSERT_OK(listener->add(MemorySection(region)));
  EXPECT_THAT(listener->add(MemorySection(region, 4_KiB, 4_KiB)), HasError(Errc::overlap));
  const MemorySection rom(shared_ram(1_MiB, 64_KiB, {.protection = Protection::read}));
  VMSPACE_EXPECT_OK(listener->add(rom));
  VMSPACE_EXPECT_OK(listener->remove(rom));
  EXPECT_EQ(listener->used(), 1U);
}

TEST_F(VhostKernel, HasTheKernelsDefaultLimitWhereItIsNotTold) {
  const auto listener = memory();
  EXPECT_EQ(listener->limit(), 64U);
  const MemoryRegionPtr region = shared_ram(0, 1_MiB);
  std::vector<MemorySection> sections;
  for (std::uint64_t i = 0; i < 65; ++i)
    sections.emplace_back(region, i * 4_KiB, 4_KiB);
  EXPECT_THAT(listener->prepare({.added = sections}), HasError(Errc::limit_exceeded));
  VMSPACE_EXPECT_OK(listener->prepare({.added = std::span(sections).first(64)}));
  for (std::uint64_t i = 0; i < 64; ++i)
    VMSPACE_ASSERT_OK(listener->add(sections[i]));
  EXPECT_THAT(listener->add(sections[64]), HasError(Errc::limit_exceeded));
  VMSPACE_ASSERT_OK(listener->commit());
  EXPECT_THAT(table_, SizeIs(64));
  // Where one goes, one can come, although the device has both until the next table.
  VMSPACE_ASSERT_OK(listener->remove(sections[0]));
  VMSPACE_ASSERT_OK(listener->add(sections[64]));
  VMSPACE_ASSERT_OK(listener->commit());
  EXPECT_THAT(table_, SizeIs(64));
}

TEST_F(VhostKernel, OnlyVhostDevicesAreTaken) {
  EXPECT_THAT(VhostKernelMemory::create(-1), HasError(Errc::os));
  refuse_ = ENOTTY;
  EXPECT_THAT(VhostKernelMemory::create(0), HasError(Errc::os));
}

TEST(VhostKernelDevice, TakesATableOfMemory) {
  Descriptor device;
  for (const char* path : {"/dev/vhost-net", "/dev/vhost-vsock"}) {
    if (device.value() < 0) device = Descriptor(::open(path, O_RDWR | O_CLOEXEC));
  }
  if (device.value() < 0) GTEST_SKIP() << "neither /dev/vhost-net nor /dev/vhost-vsock opens";
  ASSERT_EQ(::ioctl(device.value(), VHOST_SET_OWNER), 0);
  const auto listener = VMSPACE_ASSERT_OK(VhostKernelMemory::create(device.value()));
  EXPECT_GE(listener->limit(), 1U);
  const MemorySection ram(shared_ram(0, 64_KiB));
  VMSPACE_ASSERT_OK(listener->add(ram));
  VMSPACE_ASSERT_OK(listener->commit());
  VMSPACE_ASSERT_OK(listener->remove(ram));
  VMSPACE_ASSERT_OK(listener->commit());
}

}  // namespace
}  // namespace vmspace::vhost_kernel_memory_test
