// SPDX-License-Identifier: Apache-2.0
//
// The machine of the soak: real parts, put together as a VMM does it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <vector>

#include "vmspace/allocator.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/vmm.hpp"

#include "vm.hpp"

namespace vmspace::soak {

using namespace literals;

/// The contents of guest memory, one region after the other.
using Contents = std::vector<std::byte>;

class Machine {
 public:
  // Regions that stay. None touches another, so that what is written is reported for each alone.
  static constexpr GuestAddress ram{0};                    ///< the processor's
  static constexpr GuestAddress queues{4_GiB};             ///< of drivers and their devices
  static constexpr GuestAddress patches{4_GiB + 512_MiB};  ///< pages, and what devices see by IOVA
  static constexpr GuestAddress shared{5_GiB};             ///< written by the vhost-user device
  static constexpr GuestAddress handed{5_GiB + 512_MiB};   ///< written by the next VMM
  // Places for what comes and goes.
  static constexpr GuestAddress window{0xe000'0000};
  static constexpr GuestAddress dimm{8_GiB};
  static constexpr GuestAddress resized{9_GiB};
  static constexpr GuestAddress blocks{10_GiB};
  static constexpr std::uint64_t region_size = 4_MiB;  ///< of those that stay
  static constexpr std::uint64_t page = 4_KiB;

  Machine();

  /// These regions alone, as a device has them that holds on to no map.
  [[nodiscard]] GuestMemory only(std::initializer_list<GuestAddress> bases) const;
  /// Throws unless every part is as it should be. At rest.
  void check() const;

  VmMemory memory;
  RangePool slot_numbers;
  ResourceManager manager;
  std::shared_ptr<VcpuGate> gate;
  std::shared_ptr<MemoryRecorder> recorder;
  Result<tiny_vm::Vm> vm;  ///< an error without /dev/kvm
  /// What nobody writes to but through this process's page tables and KVM's.
  GuestMemory still;
};

Contents contents_of(const GuestMemory& memory);
/// Throws, naming the first page, unless the memory holds this.
void require_contents(const GuestMemory& memory, const Contents& expected, const char* what);
/// Memory of the same layout, as yet untouched.
GuestMemory fresh_copy(const GuestMemory& memory, MemorySource source);
/// What the ranges have of each region. (Ranges of neighbours are reported as one.)
std::vector<GuestRange> parts_of(const GuestMemory& memory, const std::vector<GuestRange>& ranges);
/// Brings contents of `memory` up to date for what was written of it; of other memory nothing.
void update(Contents& contents, const GuestMemory& memory, const std::vector<GuestRange>& written);

}  // namespace vmspace::soak
