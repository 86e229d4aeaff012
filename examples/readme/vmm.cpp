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

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example(int vm_fd, const vmspace::GuestMemory& memory) {
  // README begin
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(vm_fd));  // from KVM_CREATE_VM

  for (const auto& region : memory.regions()) {
    VMSPACE_TRY(slots.set(*region));  // with its protection; KVM sees all of it or nothing
  }
  const auto ram = memory.regions().front()->guest_range();
  VMSPACE_TRY(slots.start_dirty_log(ram));  // the vCPUs may run meanwhile
  const auto log = VMSPACE_TRY(slots.fetch_dirty_log(ram));
  VMSPACE_TRY(merge_dirty_log(memory, log.base, log.bits, log.unit));

  VMSPACE_TRY(slots.clear(ram));  // unplugged: no vCPU reaches it any more
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
  const vmspace::GuestRange ram[] = {{vmspace::GuestAddress{0}, 64_MiB}};
  const auto memory = vmspace::GuestMemory::create(ram);
  const auto ok = memory ? example(vm, *memory) : vmspace::fail(memory.error());
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  ::close(vm);
  ::close(kvm);
  return ok ? 0 : 1;
}
