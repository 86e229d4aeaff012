// SPDX-License-Identifier: Apache-2.0
//
// The IOMMU mappings of a VFIO container: devices that are passed through to the guest access the
// guest's memory by them.
//
// Source: the kernel's Documentation/driver-api/vfio.rst and linux/vfio.h (VFIO_IOMMU_GET_INFO,
// VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA).

#pragma once

#include <memory>
#include <string_view>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/dma_target.hpp"

namespace vmspace {

/// A container of type 1, version 2, as a DmaTarget.
///
/// The VMM opens it (/dev/vfio/vfio, or /dev/iommu where the kernel emulates VFIO), adds groups and
/// sets VFIO_TYPE1v2_IOMMU before limits() is called; it removes the last group after the mappings
/// are gone, because the container knows nothing of them without a group.
///
/// Mapping pins memory, which counts against RLIMIT_MEMLOCK.
class VMSPACE_EXPORT VfioContainer final : public DmaTarget {
 public:
  /// Takes a descriptor of a container, and duplicates it, so that the caller may close its own at
  /// any time. Errors: `os` when it can't be duplicated or is not a container; `unsupported` for
  /// another version of VFIO, and where there is no IOMMU of type 1. A few system calls.
  [[nodiscard]] static Result<std::unique_ptr<VfioContainer>> open(int container_fd);
  VfioContainer(const VfioContainer&) = delete;
  VfioContainer& operator=(const VfioContainer&) = delete;
  /// Closes its descriptor. Mappings last until the container's last descriptor is closed.
  ~VfioContainer() override;

  /// "vfio".
  [[nodiscard]] std::string_view name() const noexcept override;

  /// What VFIO_IOMMU_GET_INFO says: IOVA ranges, the smallest page, and how many mappings are left.
  /// Where a kernel does not say, everything is possible. Errors: `os` when it is refused, as it is
  /// before VFIO_SET_IOMMU; `corrupt` for an answer that contradicts itself or is above 1 MiB.
  [[nodiscard]] Result<DmaLimits> limits() const override;

  /// Errors: `os`, for example with ENOMEM when RLIMIT_MEMLOCK is too low, EFAULT when pages can't
  /// be pinned, EEXIST when the addresses are mapped already, ENOSPC when no mapping is left, and
  /// EINVAL for addresses that limits() excludes. Pins every page, which takes as long as
  /// populating it.
  [[nodiscard]] Result<void> map(const DmaMapping& mapping) override;

  /// Errors: `os`; `corrupt` when the container unmapped some bytes, and other than were asked for:
  /// somebody else changes its mappings. When it has nothing left to unmap there, that is success:
  /// the kernel took the mapping away together with the last group.
  [[nodiscard]] Result<void> unmap(const DmaMapping& mapping) noexcept override;

 private:
  explicit VfioContainer(int fd) noexcept : fd_(fd) {}

  int fd_;
};

}  // namespace vmspace
