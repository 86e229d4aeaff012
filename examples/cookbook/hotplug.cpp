// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <chrono>
#include <iostream>
#include <memory>
#include <thread>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/ostream.hpp"
#include "vmspace/vmm.hpp"

using namespace vmspace::literals;
using namespace std::chrono_literals;

namespace {

// README begin
/// A device's thread: looks into the guest's memory again and again, while that comes and goes.
void serve_device(const vmspace::VmMemory& memory, vmspace::GuestAddress address,
                  const std::atomic<bool>& stop) {
  auto reader = memory.reader();  // one for each thread
  while (!stop) {
    const vmspace::GuestMemory& now = reader.current().memory;  // asked for anew each time
    static_cast<void>(now.fetch_or(address, std::uint32_t{1}));
    reader.park();  // before it sleeps: no old map is kept alive
    std::this_thread::sleep_for(1ms);
  }
}

vmspace::Result<void> plug_and_unplug(const vmspace::VmMemory& memory) {
  const auto dimm = VMSPACE_TRY(memory.plug({.name = "dimm0",
                                             .base = vmspace::GuestAddress{4_GiB},
                                             .size = 1_GiB,
                                             .backing = {.source = vmspace::MemorySource::shmem},
                                             .hotplug = true}));
  std::atomic<bool> stop = false;
  std::thread device([&] { serve_device(memory, dimm->base(), stop); });

  // ... the guest is told by ACPI, uses the DIMM, and lets go of it when it is asked to.
  const auto unplugged = memory.unplug(dimm->shared_description(), 1s);
  stop = true;
  device.join();
  return unplugged;  // timed_out: gone for everybody, but somebody still uses an old map
}
// README end

vmspace::Result<void> example() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  vmspace::AddressSpaceBase plan(layout);
  VMSPACE_TRY(plan.insert_region(
      {.name = "ram", .size = 1_GiB, .backing = {.source = vmspace::MemorySource::shmem}}));
  const auto memory = VMSPACE_TRY(vmspace::VmMemory::create(plan));

  // A VMM adds its KvmMemslots here, and what else has a table of the memory.
  const auto recorder = std::make_shared<vmspace::MemoryRecorder>();
  VMSPACE_TRY(memory.add_listener(recorder));
  VMSPACE_TRY(plug_and_unplug(memory));
  std::cout << recorder->text();
  std::cout << "mapped: " << memory.map()->memory.total_size() / 1_MiB << " MiB\n";
  return {};
}

}  // namespace

int main() {
  vmspace::value_or_exit(example());
}
