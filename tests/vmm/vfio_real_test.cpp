// SPDX-License-Identifier: Apache-2.0
//
// VfioContainer and DmaMappings on the kernel's own VFIO, where there is one.

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/dma_mappings.hpp"
#include "vmspace/vmm/vfio_container.hpp"

#include "os/descriptor.hpp"

namespace vmspace::vfio_real_test {
namespace {

using namespace literals;
namespace fs = std::filesystem;

class RealVfio : public ::testing::Test {
 protected:
  void SetUp() override {
    container_ = detail::Descriptor(::open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
    if (container_.value() < 0) GTEST_SKIP() << "/dev/vfio/vfio: " << std::strerror(errno);
  }

  /// Adds a group that can be used, so that the container has an IOMMU; says why there is none.
  std::string set_iommu() {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator("/dev/vfio", error)) {
      detail::Descriptor group(::open(entry.path().c_str(), O_RDWR | O_CLOEXEC));
      vfio_group_status status{};
      status.argsz = sizeof status;
      if (group.value() < 0 || ::ioctl(group.value(), VFIO_GROUP_GET_STATUS, &status) != 0 ||
          (status.flags & VFIO_GROUP_FLAGS_VIABLE) == 0) {
        continue;
      }
      int container = container_.value();
      if (::ioctl(group.value(), VFIO_GROUP_SET_CONTAINER, &container) != 0) continue;
      if (::ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) != 0) continue;
      group_ = std::move(group);
      return {};
    }
    return "no group of /dev/vfio can be used";
  }

  detail::Descriptor container_;
  detail::Descriptor group_;
};

TEST_F(RealVfio, AContainerWithoutAGroupHasNoLimitsToTell) {
  const auto container = VfioContainer::open(container_.value());
  if (!container) GTEST_SKIP() << container.error().message();
  EXPECT_THAT((*container)->limits(), HasError(Errc::os));
}

TEST_F(RealVfio, MapsAndUnmapsMemoryForAGroup) {
  if (const std::string why = set_iommu(); !why.empty()) GTEST_SKIP() << why;
  auto container = VMSPACE_ASSERT_OK(VfioContainer::open(container_.value()));
  auto dma = DmaMappings::create(std::move(container));
  ASSERT_THAT(dma, IsOk());
  const auto region = VMSPACE_ASSERT_OK(MemoryRegion::map(
      {.name = "ram", .base = {}, .size = 2_MiB, .backing = {.source = MemorySource::anon}}));
  const MemorySection section[] = {MemorySection(region)};
  for (int round = 0; round < 3; ++round) {
    VMSPACE_ASSERT_OK(dma->prepare({.added = section}));
    VMSPACE_ASSERT_OK(dma->add(section[0]));
    EXPECT_TRUE(dma->is_mapped(region->guest_range()));
    VMSPACE_ASSERT_OK(dma->remove(section[0]));
  }
}

}  // namespace
}  // namespace vmspace::vfio_real_test
