// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vfio_container.hpp"

#include <fcntl.h>
#include <linux/vfio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/vfio_info.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;

namespace {

Operand operand_of(const DmaMapping& mapping) noexcept {
  return Operand::span(mapping.iova, mapping.size);
}

/// What an errno of VFIO_IOMMU_MAP_DMA means there.
const char* why_not_mapped(int error) noexcept {
  switch (error) {
    case EEXIST: return "VFIO_IOMMU_MAP_DMA: the container has a mapping there already";
    case EFAULT: return "VFIO_IOMMU_MAP_DMA: the memory can't be pinned";
    case EINVAL: return "VFIO_IOMMU_MAP_DMA: the IOMMU can't map these addresses";
    case ENOMEM: return "VFIO_IOMMU_MAP_DMA: pinning the memory may pass RLIMIT_MEMLOCK";
    case ENOSPC: return "VFIO_IOMMU_MAP_DMA: the container has no mapping left";
    default: return "VFIO_IOMMU_MAP_DMA";
  }
}

}  // namespace

VfioContainer::~VfioContainer() {
  kernel().close(fd_);
}

Result<std::unique_ptr<VfioContainer>> VfioContainer::open(int container_fd) {
  constexpr const char* operation = "VfioContainer::open";
  const Operand which =
      container_fd < 0 ? Operand{} : Operand::number(static_cast<std::uint64_t>(container_fd));
  detail::Descriptor fd(kernel().fcntl(container_fd, F_DUPFD_CLOEXEC, 0));
  if (fd.value() < 0) return fail_os(operation, which, "duplicating container_fd");
  const auto refuse = [&](const char* reason) {
    return fail(
        {.code = Errc::unsupported, .operation = operation, .first = which, .reason = reason});
  };
  const int version = kernel().ioctl(fd.value(), VFIO_GET_API_VERSION, nullptr);
  if (version < 0) return fail_os(operation, which, "VFIO_GET_API_VERSION");
  if (version != VFIO_API_VERSION) return refuse("this version of VFIO is not known");
  const int type1 =
      kernel().ioctl(fd.value(), VFIO_CHECK_EXTENSION,
                     reinterpret_cast<void*>(static_cast<std::uintptr_t>(VFIO_TYPE1v2_IOMMU)));
  if (type1 < 0) return fail_os(operation, which, "VFIO_CHECK_EXTENSION");
  if (type1 == 0) return refuse("the container has no IOMMU of type 1, version 2");
  std::unique_ptr<VfioContainer> made(new VfioContainer(fd.value()));
  static_cast<void>(fd.release());
  return made;
}

std::string_view VfioContainer::name() const noexcept {
  return "vfio";
}

Result<DmaLimits> VfioContainer::limits() const {
  constexpr const char* operation = "VfioContainer::limits";
  // The answer says how large it is. Devices may come between two questions and make it larger.
  std::size_t size = 4096;
  for (int attempt = 0; attempt < 8 && size <= detail::max_vfio_info_size; ++attempt) {
    detail::VfioInfo info(size);
    if (kernel().ioctl(fd_, VFIO_IOMMU_GET_INFO, info.data()) < 0) {
      return fail_os(operation, {}, "VFIO_IOMMU_GET_INFO");
    }
    if (info.needed() <= size) return info.limits(operation);
    size = info.needed();
  }
  return fail({.code = Errc::corrupt,
               .operation = operation,
               .first = Operand::size(size),
               .reason = "VFIO_IOMMU_GET_INFO: the answer is too large"});
}

Result<void> VfioContainer::map(const DmaMapping& mapping) {
  vfio_iommu_type1_dma_map request{};
  request.argsz = sizeof request;
  request.flags = VFIO_DMA_MAP_FLAG_READ | (mapping.read_only ? 0u : VFIO_DMA_MAP_FLAG_WRITE);
  request.vaddr = reinterpret_cast<std::uintptr_t>(mapping.host_address);
  request.iova = mapping.iova;
  request.size = mapping.size;
  if (kernel().ioctl(fd_, VFIO_IOMMU_MAP_DMA, &request) >= 0) return {};
  const int error = errno;
  return fail_os("VfioContainer::map", operand_of(mapping), why_not_mapped(error), error);
}

Result<void> VfioContainer::unmap(const DmaMapping& mapping) noexcept {
  constexpr const char* operation = "VfioContainer::unmap";
  vfio_iommu_type1_dma_unmap request{};
  request.argsz = sizeof request;
  request.iova = mapping.iova;
  request.size = mapping.size;
  if (kernel().ioctl(fd_, VFIO_IOMMU_UNMAP_DMA, &request) < 0) {
    return fail_os(operation, operand_of(mapping), "VFIO_IOMMU_UNMAP_DMA");
  }
  // 0: there is no mapping, not even a part of one.
  if (request.size == mapping.size || request.size == 0) return {};
  return fail(
      {.code = Errc::corrupt,
       .operation = operation,
       .first = operand_of(mapping),
       .second = Operand::size(request.size),
       .reason = "VFIO_IOMMU_UNMAP_DMA: the container unmapped another size than was mapped"});
}

}  // namespace vmspace
