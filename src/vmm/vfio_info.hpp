// SPDX-License-Identifier: Apache-2.0
//
// The answer of VFIO_IOMMU_GET_INFO, and the chain of capabilities in it.

#pragma once

#include <linux/vfio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/vmm/dma_target.hpp"

namespace vmspace::detail {

/// No answer is larger: a capability has some 20 bytes, a range 16.
inline constexpr std::size_t max_vfio_info_size = std::size_t{1} << 20;

/// A buffer for the answer. Whatever the kernel, or what stands in for it, wrote there, nothing
/// beyond the buffer is read.
class VfioInfo {
 public:
  /// The question, with room for an answer of `size` bytes, which is at least that of its fixed
  /// part.
  explicit VfioInfo(std::size_t size);

  [[nodiscard]] void* data() noexcept { return bytes_.data(); }
  /// The bytes that the whole answer takes; when that is more than there was room for, the
  /// capabilities are missing.
  [[nodiscard]] std::size_t needed() const noexcept;
  /// What it says. `corrupt` for what contradicts itself.
  [[nodiscard]] Result<DmaLimits> limits(const char* operation) const;

 private:
  /// A T at this offset; nothing when it is not within the answer.
  template <typename T>
  [[nodiscard]] std::optional<T> at(std::uint64_t offset) const noexcept {
    const std::uint64_t size = std::min<std::uint64_t>(needed(), bytes_.size());
    if (offset > size || sizeof(T) > size - offset) return std::nullopt;
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }

  std::vector<std::byte> bytes_;
};

}  // namespace vmspace::detail
