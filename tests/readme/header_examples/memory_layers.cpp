// SPDX-License-Identifier: Apache-2.0
//
// The examples in the comments of the headers, as functions that compile; see ../header_examples_test.cpp.

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/base/literals.hpp"
#include "vmspace/virtio.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::header_examples {

using namespace std::chrono_literals;
using namespace literals;

struct Header {
  Le32 type;
  Le32 reserved;
  Le64 sector;
};
enum class Status : std::uint8_t { ok };
struct Descriptor {
  Le64 address;
};
struct BootParams {
  std::uint64_t initrd_size;
};
struct Ring {
  Le16 flags;
  Le16 index;
};
Result<IoTlbEntry> ask_the_iommu(GuestAddress iova, Access access);
void interrupt();
void refuse(const Error& error);

Result<void> memory_map_picture(const GuestMemory& memory, const AddressSpace& space) {
  // from vmspace/address_space/memory_map_svg.hpp
  std::vector<PageHeat> dirty;  // of the last round of a migration
  for (const GuestRange& written : VMSPACE_TRY(harvest_dirty(memory))) {
    const Range range = VMSPACE_TRY(written.range());
    dirty.push_back({range});
  }
  std::ofstream("guest.svg") << memory_map_svg(*space.snapshot(), {.dirty = dirty});
  // end
  return {};
}

Result<void> fault_guard(std::span<const RegionDescriptor> described, GuestAddress address) {
  // from vmspace/host/fault_guard.hpp
  const auto guard = VMSPACE_TRY(FaultGuard::install());
  auto memory = VMSPACE_TRY(map_regions(described));
  const auto value = memory.read<std::uint32_t>(address);
  // end
  return {};
}

Result<void> page_scan(MemoryMapping& mapping) {
  // from vmspace/host/page_scan.hpp
  vmspace::PageScan scan(mapping, vmspace::PageQuery::zero);
  for (std::uint64_t at = 0; at < mapping.size();) {
    const vmspace::Extent found = VMSPACE_TRY(scan.next(at, mapping.size()));
    if (found.size != 0) VMSPACE_TRY(mapping.discard(found.offset, found.size));
    at = found.end();
  }
  // end
  return {};
}

void discarding(const GuestMemory& memory, std::span<const GuestRange> reported) {
  // from vmspace/memory/discard_memory.hpp
  for (const GuestRange& range : reported) {
    if (const auto done = discard_memory(memory, range); !done) refuse(done.error());
  }
  // end
}

Result<void> dirty_tracking(const GuestMemory& memory, const std::vector<KvmDirtyLog>& logs) {
  // from vmspace/memory/dirty_tracking.hpp
  VMSPACE_TRY(enable_dirty_tracking(memory));
  for (const KvmDirtyLog& log : logs)
    VMSPACE_TRY(merge_dirty_log(memory, log.base, log.bits, log.unit));
  for (const GuestRange& range : VMSPACE_TRY(harvest_dirty(memory)))
    static_cast<void>(range);
  // end
  return {};
}

Result<void> guest_cursor(const GuestMemory& memory, const DescriptorChain& chain, int disk) {
  // from vmspace/memory/guest_cursor.hpp
  auto in = VMSPACE_TRY(GuestReader::make(memory, chain.readable()));
  auto out = VMSPACE_TRY(GuestWriter::make(memory, chain.writable()));
  const Header header = VMSPACE_TRY(in.read<Header>());
  VMSPACE_TRY(out.write_exact_from(disk, out.remaining() - 1, header.sector * 512));
  VMSPACE_TRY(out.write(Status::ok));
  // end
  return {};
}

Result<void> guest_ptr(const GuestMemory& memory, GuestAddress table_address, std::uint64_t index,
                       std::uint64_t queue_size) {
  // from vmspace/memory/guest_ptr.hpp
  const GuestPtr<Descriptor> table(memory, table_address);
  const auto entry = VMSPACE_TRY(table.at(index, queue_size));
  const Descriptor descriptor = VMSPACE_TRY(entry.read());
  // end
  return {};
}

Result<void> guest_ref(const GuestMemory& memory, GuestAddress address) {
  // from vmspace/memory/guest_ref.hpp
  const auto ring = VMSPACE_TRY(GuestPtr<Ring>(memory, address).pin());
  const Le16 index = ring.member(&Ring::index).load(std::memory_order_acquire);
  ring.member(&Ring::flags).store(Le16(1), std::memory_order_relaxed);
  // end
  return {};
}

Result<void> load_files(const GuestMemory& memory, BootParams& boot_params) {
  // from vmspace/memory/load_file.hpp
  const auto kernel = VMSPACE_TRY(load_file("bzImage", memory, GuestAddress{1_MiB}));
  const auto initrd = VMSPACE_TRY(load_file("initrd", memory, GuestAddress{64_MiB}));
  boot_params.initrd_size = initrd.size;
  // end
  return {};
}

Result<void> io_tlb(const GuestMemory& memory, GuestAddress iova, std::uint64_t size,
                    GuestRange range) {
  // from vmspace/memory/io_tlb.hpp
  IoTlb tlb = VMSPACE_TRY(IoTlb::make({.on_miss = ask_the_iommu}));
  VMSPACE_TRY(tlb.update({.iova = iova, .guest = range}));
  VMSPACE_TRY(tlb.invalidate({iova, size}, 1s));

  IoTlbReader reader = tlb.reader();
  IommuView view(reader, memory);
  // end
  return {};
}

Result<void> iommu_view(IoTlbReader& reader, const GuestMemory& memory,
                        const DescriptorChain& chain, GuestAddress ring) {
  // from vmspace/memory/iommu_view.hpp
  IommuView view(reader, memory);
  auto in = VMSPACE_TRY(view.reader(chain.readable()));
  const auto header = VMSPACE_TRY(in.read<Header>());
  const auto flags = VMSPACE_TRY(view.load<Le16>(ring, std::memory_order_acquire));
  // end
  return {};
}

Result<void> split_queue(SplitQueue& queue, const GuestMemory& memory, DescriptorChain& chain,
                         std::uint32_t written) {
  // from vmspace/virtio/split_queue.hpp
  const bool any = VMSPACE_TRY(queue.pop(memory, chain));
  if (!any) return {};
  VMSPACE_TRY(queue.push_used(memory, chain.id(), written));
  const bool notify = VMSPACE_TRY(queue.needs_notification(memory));
  if (notify) interrupt();
  // end
  return {};
}

}  // namespace vmspace::header_examples
