// SPDX-License-Identifier: Apache-2.0

#include "spec/backing_rules.hpp"

namespace vmspace::detail {

const char* broken_rule(const BackingSpec& backing) noexcept {
  const bool needs_path = backing.source == MemorySource::hugetlbfs;
  const bool is_device = backing.source == MemorySource::device;
  const bool is_file = backing.source == MemorySource::file || is_device;
  if (needs_path && backing.path.empty())
    return "source hugetlbfs requires the path of a directory in a mounted hugetlbfs";
  if (is_file && backing.path.empty() == !backing.fd) {
    return is_device ? "source device requires either a path or an fd, not both"
                     : "source file requires either a path or an fd, not both";
  }
  if ((is_device || backing.source == MemorySource::external) &&
      backing.sharing == Sharing::map_private) {
    return "memory of sources device and external is always shared";
  }
  if (!is_file && backing.fd) return "fd is only for sources file and device";
  if (!is_file && !needs_path && !backing.path.empty())
    return "path is only for sources file, device and hugetlbfs";
  if (!is_file && backing.offset != 0) return "offset is only for sources file and device";
  if (backing.source != MemorySource::file && backing.discardable)
    return "discardable is only for source file";
  return nullptr;
}

}  // namespace vmspace::detail
