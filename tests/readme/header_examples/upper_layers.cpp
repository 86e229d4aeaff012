// SPDX-License-Identifier: Apache-2.0
//
// The examples in the comments of the headers, as functions that compile; see ../header_examples_test.cpp.

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::header_examples {

using namespace std::chrono_literals;
using namespace literals;

constexpr int kick_signal = SIGUSR1;

template <typename Line>
void route(Line line, GuestRange registers);
int spdk_mem_register(void* address, std::size_t size);
int spdk_mem_unregister(void* address, std::size_t size);

Result<void> resource_manager(const AddressSpace& space, DeviceResources& gpu,
                              GuestAddress gpu_base, GuestAddress nic_base) {
  // from vmspace/resources/resource_manager.hpp
  const auto manager = VMSPACE_TRY(ResourceManager::create(space));
  auto nic = VMSPACE_TRY(manager.acquire(
      {PciDevice{}, MmioRange{.size = 16_KiB}, LegacyIrq{.shared = true}, MsixVectors{.count = 3}},
      "nic0"));
  route(nic.legacy_irq(), nic.mmio()->guest_range());

  VMSPACE_TRY(
      manager.relocate({ResourceMove::place(nic, gpu_base), ResourceMove::place(gpu, nic_base)}));
  // end
  return {};
}

Result<void> dma_callbacks() {
  // from vmspace/vmm/dma_callbacks.hpp
  const DmaFunctions spdk{
      .name = "spdk",
      .map = [](void*, const DmaMapping* m) { return spdk_mem_register(m->host_address, m->size); },
      .unmap = [](void*,
                  const DmaMapping* m) { return spdk_mem_unregister(m->host_address, m->size); },
      .page_size = 2_MiB,
      .by_host_address = true};
  auto dma = VMSPACE_TRY(DmaMappings::create(VMSPACE_TRY(DmaCallbacks::make(spdk))));
  // end
  return {};
}

Result<void> memory_blocks(const VmMemory& memory, const BackingSpec& spec) {
  // from vmspace/vmm/memory_blocks.hpp
  const auto blocks = VMSPACE_TRY(MemoryBlocks::create(
      memory, {.name = "mem0", .base = GuestAddress(8_GiB), .size = 64_GiB, .backing = spec},
      {.requested_size = 4_GiB}));
  VMSPACE_TRY(blocks.plug({GuestAddress(8_GiB), 4_MiB}));
  VMSPACE_TRY(blocks.unplug({GuestAddress(8_GiB), 2_MiB}, 100ms));
  // end
  return {};
}

Result<void> vcpu_gate(const VmMemory& memory, VmMemory::Reader& reader, kvm_run* run, int fd) {
  int result = 0;
  // from vmspace/vmm/vcpu_gate.hpp
  const auto gate = std::make_shared<VcpuGate>();
  VMSPACE_TRY(memory.set_gate(gate));

  const auto vcpu = gate->add_vcpu([run, thread = pthread_self()] {
    __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(thread, kick_signal);
  });
  for (;;) {
    reader.park();
    {
      const auto inside = vcpu.enter();
      result = ioctl(fd, KVM_RUN, 0);
    }
    __atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
  }
  // end
  return {};
}

Result<void> vhost_user_backend(int socket) {
  // from vmspace/vmm/vhost_user_backend.hpp
  auto memory = VMSPACE_TRY(VhostUserBackendMemory::create());
  for (;;) {
    auto message = VMSPACE_TRY(VhostUserMessage::receive(socket, 1h));
    const bool served = VMSPACE_TRY(memory.serve(socket, message));
    if (served) continue;
    switch (message.request()) {}
  }
  // end
  return {};
}

Result<void> vhost_user_map(VhostUserBackendMemory& memory, GuestAddress address,
                            std::span<const std::byte> data) {
  // from vmspace/vmm/vhost_user_backend.hpp
  auto reader = memory.map().reader();
  const VhostUserMap& now = reader.current();
  VMSPACE_TRY(now.memory.write_slice(address, data));
  VMSPACE_TRY(now.log.mark({address, data.size()}));
  reader.park();
  // end
  return {};
}

Result<void> vhost_user_message(VhostUserBackendMemory& memory, int socket) {
  for (;;) {
    // from vmspace/vmm/vhost_user_message.hpp
    auto message = VMSPACE_TRY(VhostUserMessage::receive(socket, 10s));
    const bool served = VMSPACE_TRY(memory.serve(socket, message));
    if (served) continue;
    switch (message.request()) {}
    // end
  }
}

Result<void> vhost_user_memory(int socket, std::uint64_t negotiated, GuestRange descriptors) {
  // from vmspace/vmm/vhost_user_memory.hpp
  auto memory = VMSPACE_TRY(VhostUserMemory::create(socket, {.protocol_features = negotiated}));
  const auto ring = VMSPACE_TRY(memory->user_address(descriptors));
  // end
  return {};
}

Result<void> vhost_user_log(const std::unique_ptr<VhostUserMemory>& memory,
                            const VmMemory& vm_memory, int memfd) {
  // from vmspace/vmm/vhost_user_memory.hpp
  VMSPACE_TRY(memory->share_log({.fd = memfd, .size = memory->log_size()}));
  auto log = VMSPACE_TRY(vm_memory.start_dirty_log());
  // end
  return {};
}

Result<void> vm_memory(const AddressSpaceBase& planned_space,
                       const std::shared_ptr<MemoryListener>& kvm_slots, const BackingSpec& spec,
                       const MemoryRegionPtr& ram, GuestAddress address, std::uint64_t descriptor) {
  // from vmspace/vmm/vm_memory.hpp
  const auto memory = VMSPACE_TRY(VmMemory::create(planned_space));
  VMSPACE_TRY(memory.add_listener(kvm_slots));

  auto reader = memory.reader();
  VMSPACE_TRY(reader->memory.write(address, descriptor));

  const auto dimm = VMSPACE_TRY(memory.plug({.name = "dimm0", .size = 1_GiB, .backing = spec}));
  VMSPACE_TRY(memory.unplug(dimm->shared_description(), 1s));
  VMSPACE_TRY(memory.resize(ram->shared_description(), 2_GiB));
  // end
  return {};
}

}  // namespace vmspace::header_examples
