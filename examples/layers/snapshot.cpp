// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example(int fd) {
  const vmspace::GuestRange ram[] = {{vmspace::GuestAddress{0}, 16_MiB}};
  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::create(ram));
  VMSPACE_TRY(memory.write(vmspace::GuestAddress{0x1000}, std::uint64_t{42}));
  // README begin
  // With vCPUs and devices stopped. Pages of zeros take no space in the file.
  const vmspace::SavedSnapshot saved = VMSPACE_TRY(save_snapshot(memory, fd));
  std::printf("%llu bytes\n", saved.stored + 0ULL);  // 4096

  // Ready at once: pages are read from the file when the guest touches them.
  const auto again = VMSPACE_TRY(vmspace::map_snapshot(fd));
  const auto answer = VMSPACE_TRY(again.read<std::uint64_t>(vmspace::GuestAddress{0x1000}));
  std::printf("%llu\n", answer + 0ULL);  // 42
  // README end
  return {};
}

}  // namespace

int main() {
  const int fd = ::memfd_create("snapshot", MFD_CLOEXEC);
  const auto done = example(fd);
  ::close(fd);
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
