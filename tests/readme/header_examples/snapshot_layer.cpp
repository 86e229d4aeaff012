// SPDX-License-Identifier: Apache-2.0
//
// The examples in the comments of the headers, as functions that compile; see ../header_examples_test.cpp.

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/snapshot.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::header_examples {

Result<void> save_vcpus_and_devices();

Result<void> handover(int socket, const AddressSpaceBase& space, const GuestMemory& memory,
                      const std::vector<std::byte>& registers) {
  // from vmspace/snapshot/handover.hpp
  VMSPACE_TRY(send_handover(socket, {.space = space, .memory = memory, .state = registers}));
  const Handover taken = VMSPACE_TRY(receive_handover(socket));
  const auto vm_memory = VMSPACE_TRY(VmMemory::adopt({taken.space, taken.memory}));
  // end
  return {};
}

Result<void> lazy_restore(const AddressSpaceBase& space, const std::shared_ptr<PageSource>& source,
                          const WorkingSet& last_run) {
  // from vmspace/snapshot/lazy_restore.hpp
  auto memory = VMSPACE_TRY(GuestMemory::map(space));
  auto restore = VMSPACE_TRY(LazyRestore::start(memory, source, {.working_set = last_run}));
  VMSPACE_TRY(restore.wait(std::chrono::minutes(1)));
  // end
  return {};
}

Result<void> live_snapshot(const GuestMemory& memory, const VcpuGate& gate, int fd) {
  // from vmspace/snapshot/live_snapshot.hpp
  auto writer = VMSPACE_TRY(SnapshotWriter::create(fd, memory));
  auto snapshot = VMSPACE_TRY(LiveSnapshot::prepare(memory, std::move(writer)));
  {
    const auto paused = VMSPACE_TRY(gate.pause_vcpus());
    VMSPACE_TRY(snapshot.take());
    VMSPACE_TRY(save_vcpus_and_devices());
  }
  const SnapshotId id = VMSPACE_TRY(snapshot.wait());
  // end
  return {};
}

Result<void> snapshot(const GuestMemory& memory, int full, int changes) {
  // from vmspace/snapshot/snapshot.hpp
  const SavedSnapshot base = VMSPACE_TRY(save_snapshot(memory, full));
  const std::vector<GuestRange> written = VMSPACE_TRY(harvest_dirty(memory));
  VMSPACE_TRY(save_snapshot(memory, changes, {.changes = SnapshotChanges{base.id, written}}));

  VMSPACE_TRY(restore_snapshot(memory, VMSPACE_TRY(SnapshotReader::open(changes, {{full}}))));
  // end
  return {};
}

Result<void> snapshot_writer(const GuestMemory& memory, int fd, GuestAddress address,
                             std::span<const std::byte> pages) {
  // from vmspace/snapshot/snapshot_writer.hpp
  auto writer = VMSPACE_TRY(SnapshotWriter::create(fd, memory));
  VMSPACE_TRY(writer.write(address, pages));
  const SnapshotId id = VMSPACE_TRY(writer.finish());
  // end
  return {};
}

}  // namespace vmspace::header_examples
