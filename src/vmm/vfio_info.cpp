// SPDX-License-Identifier: Apache-2.0

#include "vmm/vfio_info.hpp"

#include <bit>

#include "vmspace/base/try.hpp"

#include "base/corrupt.hpp"
#include "os/page_size.hpp"

namespace vmspace::detail {

namespace {

using Info = vfio_iommu_type1_info;

}  // namespace

VfioInfo::VfioInfo(std::size_t size) : bytes_(size) {
  const auto argsz = static_cast<std::uint32_t>(size);
  std::memcpy(bytes_.data() + offsetof(Info, argsz), &argsz, sizeof argsz);
}

std::size_t VfioInfo::needed() const noexcept {
  std::uint32_t argsz = 0;
  std::memcpy(&argsz, bytes_.data() + offsetof(Info, argsz), sizeof argsz);
  return argsz;
}

Result<DmaLimits> VfioInfo::limits(const char* operation) const {
  DmaLimits limits{.page_size = base_page_size()};
  const auto flags = at<std::uint32_t>(offsetof(Info, flags));
  const auto page_sizes = at<std::uint64_t>(offsetof(Info, iova_pgsizes));
  if (!flags || !page_sizes) {
    return corrupt(operation, "VFIO_IOMMU_GET_INFO: the answer lacks its fixed part");
  }
  if ((*flags & VFIO_IOMMU_INFO_PGSIZES) != 0) {
    if (*page_sizes == 0) {
      return corrupt(operation, "VFIO_IOMMU_GET_INFO: the IOMMU has no page size");
    }
    // A page smaller than the host's can't be pinned by itself.
    const std::uint64_t smallest = std::uint64_t{1} << std::countr_zero(*page_sizes);
    limits.page_size = std::max(limits.page_size, smallest);
  }
  if ((*flags & VFIO_IOMMU_INFO_CAPS) == 0) return limits;

  const char* const broken = "VFIO_IOMMU_GET_INFO: a capability is not within the answer";
  auto offset = at<std::uint32_t>(offsetof(Info, cap_offset));
  if (!offset) return corrupt(operation, broken);
  constexpr auto fixed = offsetof(Info, cap_offset) + sizeof(Info::cap_offset);
  // Each capability has bytes of its own: a chain with more members than fit runs in a circle.
  std::size_t left = bytes_.size() / sizeof(vfio_info_cap_header);
  while (*offset != 0) {
    const auto header = at<vfio_info_cap_header>(*offset);
    if (!header || *offset < fixed) return corrupt(operation, broken);
    if (left-- == 0) {
      return corrupt(operation, "VFIO_IOMMU_GET_INFO: the chain of capabilities does not end");
    }
    // What a later version looks like is not known.
    if (header->version == 1 && header->id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
      using Ranges = vfio_iommu_type1_info_cap_iova_range;
      const auto count = at<std::uint32_t>(std::uint64_t{*offset} + offsetof(Ranges, nr_iovas));
      if (!count) return corrupt(operation, broken);
      limits.iova_ranges.clear();
      for (std::uint64_t i = 0; i < *count; ++i) {
        const auto range = at<vfio_iova_range>(std::uint64_t{*offset} + sizeof(Ranges) +
                                               i * sizeof(vfio_iova_range));
        if (!range) return corrupt(operation, broken);
        if (range->start > range->end) {
          return corrupt(operation, "VFIO_IOMMU_GET_INFO: an IOVA range ends before it begins");
        }
        limits.iova_ranges.push_back(unchecked_range(range->start, range->end));
      }
    } else if (header->version == 1 && header->id == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL) {
      using Available = vfio_iommu_type1_info_dma_avail;
      const auto count = at<std::uint32_t>(std::uint64_t{*offset} + offsetof(Available, avail));
      if (!count) return corrupt(operation, broken);
      limits.available = *count;
    }
    offset = header->next;
  }
  return limits;
}

}  // namespace vmspace::detail
