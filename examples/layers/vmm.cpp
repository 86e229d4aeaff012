// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "vmspace/base/literals.hpp"
#include "vmspace/text.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example(int vm_fd) {
  // README begin
  // A machine with 64 MiB of RAM, all of it mapped.
  auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  vmspace::AddressSpaceBase plan(std::move(layout));
  VMSPACE_TRY(plan.insert_region(
      {.name = "ram", .size = 64_MiB, .backing = {.source = vmspace::MemorySource::shmem}}));
  const auto memory = VMSPACE_TRY(vmspace::VmMemory::create(plan));

  // KVM is told of what there is, and from now on of every change.
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(vm_fd));
  VMSPACE_TRY(memory.add_listener(std::make_shared<vmspace::KvmMemslots>(std::move(slots))));

  // A DIMM comes: readers and the guest see it at once, or nobody does and this is an error.
  const auto dimm = VMSPACE_TRY(memory.plug({.name = "dimm0",
                                             .base = vmspace::GuestAddress{4_GiB},
                                             .size = 256_MiB,
                                             .backing = {.source = vmspace::MemorySource::shmem},
                                             .hotplug = true}));
  auto reader = memory.reader();  // one for each thread
  VMSPACE_TRY(reader->memory.write(dimm->base(), std::uint64_t{42}));

  // Who migrates the machine asks what was written since it last looked.
  auto log = VMSPACE_TRY(memory.start_dirty_log());
  VMSPACE_TRY(reader->memory.write(dimm->base(), std::uint64_t{43}));
  for (const vmspace::GuestRange& dirty : VMSPACE_TRY(log.harvest()))
    std::printf("written: %s\n", to_text(dirty).c_str());  // 0x100000000+0x1000

  // And goes again, unmapped when this returns: no reader may hold on to an old map meanwhile.
  reader.park();
  VMSPACE_TRY(memory.unplug(dimm->shared_description(), std::chrono::seconds(1)));
  // README end
  return {};
}

}  // namespace

int main() {
  constexpr int skipped = 77;  // for CTest
  const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  const int vm = kvm < 0 ? -1 : ::ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) {
    std::printf("skipped: no virtual machine here: /dev/kvm: %s\n", std::strerror(errno));
    return skipped;
  }
  const auto done = example(vm);
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  ::close(vm);
  ::close(kvm);
  return done ? 0 : 1;
}
