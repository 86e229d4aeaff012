// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example(int vm_fd, const vmspace::GuestMemory& memory) {
  // README begin
  auto slots = vmspace::KvmMemslots::create(vm_fd);  // a descriptor from KVM_CREATE_VM
  if (!slots) return vmspace::fail(slots.error());

  for (const auto& region : memory.regions()) {
    const auto ok = slots->set(*region);  // with its protection: the guest can't write a ROM
    if (!ok) return ok;                   // KVM sees all of the region or nothing of it
  }
  const auto ram = memory.regions().front()->guest_range();
  if (auto ok = slots->start_dirty_log(ram); !ok) return ok;  // the vCPUs may run meanwhile
  const auto log = slots->fetch_dirty_log(ram);               // what the guest has written
  if (!log) return vmspace::fail(log.error());
  if (auto ok = vmspace::merge_dirty_log(memory, log->base, log->bits, log->unit); !ok) return ok;

  if (auto ok = slots->clear(ram); !ok) return ok;  // unplugged: no vCPU reaches it any more
  // README end
  return {};
}

}  // namespace

int main() {
  constexpr int skipped = 77;  // for CTest
  const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  const int vm = kvm < 0 ? -1 : ::ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) {
    std::printf("no virtual machine here: /dev/kvm: %s\n", std::strerror(errno));
    return skipped;
  }
  const vmspace::GuestRange ram[] = {{vmspace::GuestAddress{0}, 64_MiB}};
  const auto memory = vmspace::GuestMemory::create(ram);
  const auto ok = memory ? example(vm, *memory) : vmspace::fail(memory.error());
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  ::close(vm);
  ::close(kvm);
  return ok ? 0 : 1;
}
