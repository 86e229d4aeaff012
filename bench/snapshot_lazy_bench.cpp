// SPDX-License-Identifier: Apache-2.0
//
// Restoring on demand, beside bare loops around userfaultfd(2). Numbers in names are GiB of guest
// memory.
//
//   ready/lazy         until the first byte of a guest without data can be read
//   ready/copy         until a guest full of data is copied from a file
//   fault/...          one page that is touched, and brought from memory
//   background/...     a guest full of data, read from a file on tmpfs in pieces of 2 MiB
//   replay             the pages of the last run brought beforehand; counters: faults in a run
//                      without and with its working set

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "snapshot_bench.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

using bench::expect;
using bench::TempFile;

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t piece = 2_MiB;

GuestMemory anonymous(std::uint64_t size) {
  return expect(GuestMemory::from_regions(
      {expect(MemoryRegion::map({.name = "ram",
                                 .base = GuestAddress(0),
                                 .size = size,
                                 .backing = {.source = MemorySource::anon}}))}));
}

void check(const Result<void>& done) {
  if (done) return;
  std::cerr << done.error().message() << '\n';
  std::exit(1);
}

/// No data at all.
class EmptySource : public PageSource {
 public:
  Result<void> read(GuestAddress, std::span<std::byte> to) override {
    std::memset(to.data(), 0, to.size());
    return {};
  }
  Result<GuestRange> next_data(GuestRange range) override {
    return GuestRange{GuestAddress(range.base.value() + range.size), 0};
  }
};

/// Pages from memory.
class MemorySourceOfOnePage : public PageSource {
 public:
  Result<void> read(GuestAddress, std::span<std::byte> to) override {
    std::memcpy(to.data(), bytes_.data(), to.size());
    return {};
  }

 private:
  std::vector<std::byte> bytes_ = std::vector<std::byte>(page, std::byte{0x5a});
};

/// A file on tmpfs that holds the guest's bytes at their addresses.
class FileSource : public PageSource {
 public:
  explicit FileSource(std::uint64_t size) : fd_(memfd_create("source", MFD_CLOEXEC)) {
    const std::vector<std::byte> bytes(piece, std::byte{0x5a});
    for (std::uint64_t at = 0; at < size; at += piece) {
      if (pwrite(fd_, bytes.data(), piece, static_cast<off_t>(at)) != piece) std::abort();
    }
  }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  ~FileSource() override { close(fd_); }

  [[nodiscard]] int fd() const { return fd_; }
  Result<void> read(GuestAddress at, std::span<std::byte> to) override {
    if (pread(fd_, to.data(), to.size(), static_cast<off_t>(at.value())) !=
        static_cast<ssize_t>(to.size()))
      return fail({.code = Errc::os, .operation = "FileSource::read", .os_errno = errno});
    return {};
  }

 private:
  int fd_;
};

// Bare loops.

int open_userfault() {
  const auto fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  uffdio_api api{};
  api.api = UFFD_API;
  if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0) {
    std::perror("userfaultfd");
    std::exit(1);
  }
  return fd;
}

std::byte* map_registered(int fd, std::uint64_t size) {
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  uffdio_register argument{};
  argument.range = {reinterpret_cast<std::uintptr_t>(memory), size};
  argument.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (memory == MAP_FAILED || ioctl(fd, UFFDIO_REGISTER, &argument) != 0) std::abort();
  return static_cast<std::byte*>(memory);
}

bool copy_pages(int fd, std::byte* to, const std::byte* from, std::uint64_t size) {
  uffdio_copy argument{};
  argument.dst = reinterpret_cast<std::uintptr_t>(to);
  argument.src = reinterpret_cast<std::uintptr_t>(from);
  argument.len = size;
  return ioctl(fd, UFFDIO_COPY, &argument) == 0;
}

void fault_raw(benchmark::State& state) {
  constexpr std::uint64_t size = 256_MiB;
  const int fd = open_userfault();
  std::byte* memory = map_registered(fd, size);
  std::atomic<bool> stops{false};
  const std::vector<std::byte> contents(page, std::byte{0x5a});
  std::thread handler([&] {
    while (!stops) {
      pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
      if (poll(&ready, 1, 100) <= 0) continue;
      uffd_msg message;
      if (read(fd, &message, sizeof message) != sizeof message) continue;
      auto* const at = reinterpret_cast<std::byte*>(message.arg.pagefault.address & ~(page - 1));
      if (!copy_pages(fd, at, contents.data(), page)) std::abort();
    }
  });
  std::uint64_t at = 0;
  for (auto _ : state) {
    if (at == size) {
      state.PauseTiming();
      madvise(memory, size, MADV_DONTNEED);
      at = 0;
      state.ResumeTiming();
    }
    benchmark::DoNotOptimize(*static_cast<volatile std::byte*>(memory + at));
    at += page;
  }
  stops = true;
  handler.join();
  munmap(memory, size);
  close(fd);
}

void fault_vmspace(benchmark::State& state) {
  constexpr std::uint64_t size = 256_MiB;
  const auto source = std::make_shared<MemorySourceOfOnePage>();
  const LazyRestoreOptions options{.threads = 1, .background = false};
  GuestMemory memory = anonymous(size);
  std::optional<LazyRestore> restore = expect(LazyRestore::start(memory, source, options));
  std::uint64_t at = 0;
  for (auto _ : state) {
    if (at == size) {
      state.PauseTiming();
      restore.reset();
      memory = anonymous(size);
      restore = expect(LazyRestore::start(memory, source, options));
      at = 0;
      state.ResumeTiming();
    }
    benchmark::DoNotOptimize(
        *static_cast<volatile std::byte*>(memory.regions()[0]->host_base() + at));
    at += page;
  }
}

void background_raw(benchmark::State& state) {
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1_GiB;
  FileSource source(size);
  std::vector<std::byte> buffer(piece);
  for (auto _ : state) {
    const auto begin = Clock::now();
    const int fd = open_userfault();
    std::byte* const memory = map_registered(fd, size);
    for (std::uint64_t at = 0; at < size; at += piece) {
      if (!source.read(GuestAddress(at), buffer) ||
          !copy_pages(fd, memory + at, buffer.data(), piece))
        std::abort();
    }
    close(fd);
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
    munmap(memory, size);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(size));
}

void background_vmspace(benchmark::State& state) {
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1_GiB;
  const auto source = std::make_shared<FileSource>(size);
  for (auto _ : state) {
    const GuestMemory memory = anonymous(size);
    const auto begin = Clock::now();
    const LazyRestore restore = expect(LazyRestore::start(memory, source));
    if (!restore.wait(std::chrono::minutes(1))) return state.SkipWithError("wait");
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(size));
}

void ready_lazy(benchmark::State& state) {
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1_GiB;
  const auto source = std::make_shared<EmptySource>();
  for (auto _ : state) {
    const GuestMemory memory = anonymous(size);
    const auto begin = Clock::now();
    const LazyRestore restore = expect(LazyRestore::start(memory, source));
    benchmark::DoNotOptimize(memory.read<std::uint64_t>(GuestAddress(0)));
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
}

void ready_copy(benchmark::State& state) {
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1_GiB;
  const TempFile file;
  {
    const GuestMemory full = anonymous(size);
    check(full.fill({GuestAddress(0), size}, std::byte{0x5a}));
    static_cast<void>(expect(save_snapshot(full, file.fd())));
  }
  for (auto _ : state) {
    const GuestMemory memory = anonymous(size);
    const auto begin = Clock::now();
    check(restore_snapshot(memory, file.fd()));
    benchmark::DoNotOptimize(memory.read<std::uint64_t>(GuestAddress(0)));
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
}

/// A run of a guest that touches 8192 pages of 1 GiB, here and there; gives how many faults that took.
std::uint64_t touch(const GuestMemory& memory, const LazyRestore& restore) {
  for (std::uint64_t i = 0; i < 8192; ++i) {
    const std::uint64_t at = i * 2'654'435'761 % (1_GiB / page) * page;
    benchmark::DoNotOptimize(memory.read<std::uint64_t>(GuestAddress(at)));
  }
  return restore.statistics().faults;
}

void replay(benchmark::State& state) {
  const auto source = std::make_shared<FileSource>(1_GiB);
  WorkingSet recorded;
  std::uint64_t without = 0;
  {
    const GuestMemory memory = anonymous(1_GiB);
    const LazyRestore restore = expect(LazyRestore::start(memory, source, {.background = false}));
    without = touch(memory, restore);
    recorded = expect(restore.working_set());
  }
  std::uint64_t with = 0;
  for (auto _ : state) {
    const GuestMemory memory = anonymous(1_GiB);
    const auto begin = Clock::now();
    const LazyRestore restore =
        expect(LazyRestore::start(memory, source, {.background = false, .working_set = recorded}));
    // The guest starts when its working set is there.
    while (restore.statistics().working_set < recorded.total_size())
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    with = touch(memory, restore);
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  state.counters["faults_without"] = static_cast<double>(without);
  state.counters["faults_with"] = static_cast<double>(with);
}

[[maybe_unused]] const bool registered = [] {
  using benchmark::RegisterBenchmark;
  const auto in_milliseconds = [](auto* made) {
    made->Unit(benchmark::kMillisecond)->UseManualTime();
  };
  for (const int size : {1, 16})
    in_milliseconds(RegisterBenchmark("ready/lazy", ready_lazy)->Arg(size));
  in_milliseconds(RegisterBenchmark("ready/copy", ready_copy)->Arg(1));
  RegisterBenchmark("fault/raw", fault_raw)->UseRealTime();
  RegisterBenchmark("fault/vmspace", fault_vmspace)->UseRealTime();
  in_milliseconds(RegisterBenchmark("background/raw", background_raw)->Arg(1));
  in_milliseconds(RegisterBenchmark("background/vmspace", background_vmspace)->Arg(1));
  in_milliseconds(RegisterBenchmark("replay/vmspace", replay));
  return true;
}();

}  // namespace
