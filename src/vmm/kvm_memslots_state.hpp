// SPDX-License-Identifier: Apache-2.0
//
// What a KvmMemslots holds; its sources share it.

#pragma once

#include <cstdint>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "os/descriptor.hpp"
#include "vmm/kvm_mapping.hpp"

namespace vmspace {

struct VMSPACE_HIDDEN KvmMemslots::State {
  detail::Descriptor vm;
  std::uint32_t limit;
  bool can_read_only;
  RangePool numbers;
  std::uint32_t used = 0;
  IntervalTree<detail::KvmMapping> mappings = {};  ///< by guest physical addresses
};

}  // namespace vmspace
