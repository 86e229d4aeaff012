// SPDX-License-Identifier: Apache-2.0
//
// The input is a snapshot file. Whatever it holds, reading it gives an error or a guest that can be
// read and saved again. An input whose first byte is odd gets the checksum that belongs to it, so
// that what lies behind that check is reached.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/snapshot.hpp"

namespace {

using namespace vmspace;

/// As the format describes it, written a second time.
void mend_checksum(std::vector<std::uint8_t>& file) {
  if (file.size() < 64) return;
  std::fill(file.begin() + 24, file.begin() + 32, std::uint8_t{0});
  const std::size_t regions = file[12] + 256u * file[13];
  const std::size_t end = std::min(file.size(), 64 + 32 * regions);
  std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < end; ++i)
    sum = (sum ^ file[i]) * 0x0000'0100'0000'01b3;
  const Le64 stored = sum;
  std::memcpy(file.data() + 24, &stored, sizeof stored);
}

void touch(const GuestMemory& memory) {
  if (!memory.check_invariants()) std::abort();
  for (const auto& region : memory.regions()) {
    (void)memory.read<std::uint64_t>(region->base());
    (void)memory.write(GuestAddress(region->last_addr().value() - 7), std::uint64_t{1});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  std::vector<std::uint8_t> bytes(data + 2, data + size);
  if (data[0] % 2 == 1) mend_checksum(bytes);
  static const int file = memfd_create("snapshot", MFD_CLOEXEC);
  if (ftruncate(file, 0) != 0) std::abort();
  if (pwrite(file, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    std::abort();
  }
  // Whole pages, as a snapshot has; a few of them.
  if (ftruncate(file, (1 + data[1] % 64) * 4096) != 0) std::abort();

  static const GuestMemory target = *GuestMemory::create(
      std::vector<GuestRange>{{GuestAddress(0x1000), 0x2000}, {GuestAddress(0x10000), 0x1000}});
  (void)restore_snapshot(target, file);
  touch(target);
  const auto regions = inspect_snapshot(file);
  const auto mapped = map_snapshot(file);
  if (mapped) {
    if (!regions || mapped->regions().size() != regions->size()) std::abort();
    touch(*mapped);
    // The file is memory now; another takes what can be read.
    if (!mapped->regions().empty() && save_snapshot(target, file)) std::abort();
    static const int again = memfd_create("again", MFD_CLOEXEC);
    if (save_snapshot(*mapped, again) && !restore_snapshot(*mapped, again)) std::abort();
  }
  return 0;
}
