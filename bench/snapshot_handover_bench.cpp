// SPDX-License-Identifier: Apache-2.0
//
// A guest of n GiB, all of it resident in a memfd, goes to a receiver at the other end of a UNIX
// socket: as descriptors, and for comparison byte by byte, through the largest buffers that the socket
// may have. What is measured is until the receiver has the guest; both run on threads of one process.

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/snapshot/handover.hpp"

#include "snapshot_bench.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

using bench::expect;

/// Two ends of a connection.
class Ends {
 public:
  Ends() {
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds_.data()) != 0) std::abort();
    const int size = 4 << 20;
    for (const int fd : fds_) {
      setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
      setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  ~Ends() {
    for (const int fd : fds_)
      close(fd);
  }
  [[nodiscard]] int sender() const { return fds_[0]; }
  [[nodiscard]] int receiver() const { return fds_[1]; }

 private:
  std::array<int, 2> fds_{};
};

/// Guest RAM from 4 GiB on, with a byte that is not 0 in each page.
Handover resident_guest(std::uint64_t size) {
  auto layout = expect(AddressSpaceLayout::x86_64({.phys_bits = 40}));
  AddressSpaceBase space(std::move(layout));
  expect(space.insert_region({.name = "ram",
                              .base = GuestAddress(4_GiB),
                              .size = size,
                              .backing = {.source = MemorySource::shmem}}));
  auto memory = expect(GuestMemory::map(space));
  std::byte* const bytes = expect(memory.host_address({GuestAddress(4_GiB), size}));
  for (std::uint64_t at = 0; at < size; at += 4096)
    bytes[at] = std::byte{0x5a};
  return {.space = std::move(space), .memory = memory, .state = std::vector<std::byte>(4096)};
}

void hand_over(benchmark::State& state) {
  const Handover guest = resident_guest(static_cast<std::uint64_t>(state.range(0)) * 1_GiB);
  for (auto _ : state) {
    const Ends ends;
    std::thread sender([&] {
      if (!send_handover(ends.sender(), guest)) std::abort();
    });
    const auto taken = expect(receive_handover(ends.receiver()));
    benchmark::DoNotOptimize(expect(taken.memory.read<std::uint8_t>(GuestAddress(4_GiB))));
    sender.join();
  }
}

/// Moves all of `bytes` by read(2) or write(2).
template <typename Call, typename Byte>
void move_all(Call call, int fd, std::span<Byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = call(fd, bytes.data(), std::min<std::size_t>(bytes.size(), 1_MiB));
    if (done <= 0) std::abort();
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
}

void copy_over(benchmark::State& state) {
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1_GiB;
  const GuestRange ram{GuestAddress(4_GiB), size};
  const Handover guest = resident_guest(size);
  for (auto _ : state) {
    const Ends ends;
    std::thread sender([&] {
      move_all(write, ends.sender(), std::span(expect(guest.memory.const_host_address(ram)), size));
    });
    const auto taken = expect(GuestMemory::create(std::array{ram}));
    move_all(read, ends.receiver(), std::span(expect(taken.host_address(ram)), size));
    sender.join();
    state.PauseTiming();  // unmapping it is not part of the handover
    static_cast<void>(taken.regions()[0]->mapping().discard(0, size));
    state.ResumeTiming();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(size));
}

[[maybe_unused]] const bool registered = [] {
  benchmark::RegisterBenchmark("handover/vmspace", hand_over)
      ->Arg(4)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  benchmark::RegisterBenchmark("handover/copy", copy_over)
      ->Arg(4)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  return true;
}();

}  // namespace
