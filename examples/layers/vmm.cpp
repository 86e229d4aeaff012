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

vmspace::Result<void> example(int vm_fd) {
  // README begin
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(vm_fd));

  // A ROM: filled by the host, then shown. Guest writes to it exit to the VMM.
  const auto description = VMSPACE_TRY(
      vmspace::AddressSpaceRegion::make({.name = "firmware",
                                         .type = vmspace::RegionType::firmware_memory,
                                         .base = vmspace::GuestAddress{0xffe0'0000},
                                         .size = 2_MiB,
                                         .backing = {.source = vmspace::MemorySource::anon},
                                         .protection = vmspace::Protection::read}));
  const auto rom = VMSPACE_TRY(vmspace::MemoryRegion::map(description));
  const std::byte hlt[] = {std::byte{0xf4}};
  VMSPACE_TRY(rom->load_image(2_MiB - 16, hlt));
  VMSPACE_TRY(slots.set(*rom));

  std::printf("%u of %u slots\n", slots.used(), slots.limit());  // 1 of 32764, or what KVM has
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
  const auto done = example(vm);
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  ::close(vm);
  ::close(kvm);
  return done ? 0 : 1;
}
