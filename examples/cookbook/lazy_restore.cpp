// SPDX-License-Identifier: Apache-2.0

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/snapshot.hpp"

using namespace vmspace::literals;
using namespace std::chrono_literals;
using vmspace::GuestAddress;
using vmspace::GuestMemory;

namespace {

constexpr vmspace::GuestRange ram[] = {{GuestAddress{0}, 64_MiB}};

/// A guest that has written to every sixteenth page, saved to the file.
vmspace::Result<void> save_guest(int file) {
  const auto memory = VMSPACE_TRY(GuestMemory::create(ram));
  for (std::uint64_t at = 0; at < 64_MiB; at += 64_KiB)
    VMSPACE_TRY(memory.write(GuestAddress{at}, at + 1));
  VMSPACE_TRY(save_snapshot(memory, file));
  return {};
}

// README begin
vmspace::Result<void> restore_guest(int file) {
  const auto memory = VMSPACE_TRY(GuestMemory::create(ram));  // nobody has touched it yet
  auto reader = VMSPACE_TRY(vmspace::SnapshotReader::open(file));
  const vmspace::SnapshotId id = reader.id();
  auto restore = VMSPACE_TRY(vmspace::LazyRestore::start(
      memory, std::make_shared<vmspace::SnapshotReader>(std::move(reader)),
      {.background = false, .snapshot = id}));

  // The guest runs from here on: whoever touches a page waits for that page only.
  const auto value = VMSPACE_TRY(memory.read<std::uint64_t>(GuestAddress{32_MiB}));
  std::cout << "read: " << value << '\n';

  // What it has touched first: the next restore brings that before anybody asks.
  const vmspace::WorkingSet first = VMSPACE_TRY(restore.working_set());
  std::cout << "working set: " << first.total_size() / 1_KiB << " KiB\n";

  // The rest, in the background. Until it has all come, the memory can be neither saved nor shared.
  restore.resume_background();
  VMSPACE_TRY(restore.wait(1min));
  std::cout << "lost: " << restore.statistics().lost << " bytes\n";
  return {};
}
// README end

}  // namespace

int main() {
  const int file = ::memfd_create("snapshot", MFD_CLOEXEC);
  vmspace::exit_unless(file >= 0, "a memfd can be made");
  vmspace::value_or_exit(save_guest(file));
  const auto restored = restore_guest(file);
  ::close(file);
  if (!restored && (restored.error().code == vmspace::Errc::access_denied ||
                    restored.error().code == vmspace::Errc::unsupported)) {
    std::cout << "skipped: no userfaultfd for this process: " << restored.error().message() << '\n';
    return 77;  // CTest shows it as skipped
  }
  vmspace::value_or_exit(restored);
}
