// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host.hpp"

#include <cstdio>
#include <cstring>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  // README begin
  // Addresses for all that may ever be plugged; they cost no memory.
  const auto arena = VMSPACE_TRY(vmspace::HostArena::reserve({.size = 1_GiB}));

  const auto backing =
      VMSPACE_TRY(vmspace::Backing::open({.source = vmspace::MemorySource::shmem}, 64_MiB));
  auto mapping = VMSPACE_TRY(vmspace::MemoryMapping::map(
      backing, {.size = 64_MiB, .arena = arena, .arena_offset = 128_MiB}));

  VMSPACE_TRY(mapping.use_hugepages());  // before anything touches it
  VMSPACE_TRY(populate(mapping, {.threads = 2}));
  std::memset(mapping.data(), 0x5a, 1_MiB);

  VMSPACE_TRY(mapping.discard(0, 2_MiB));  // back to the host; reads as zeros
  const auto residency = VMSPACE_TRY(mapping.residency());
  std::printf("%llu MiB are resident\n", residency.resident / 1_MiB + 0ULL);  // 62
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
