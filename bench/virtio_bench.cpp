// SPDX-License-Identifier: Apache-2.0
//
// What a request of a block device costs without its I/O: a header of 16 bytes to read, 4 KiB to write,
// whose address is all that is asked for, and a status of one byte to write.
//
// `raw` is what a VMM writes without cursors: three descriptors read by GuestMemory, each buffer's
// host address by GuestMemory::host_address, the header copied out of the guest, the status stored and
// marked. `cursor` is the same descriptors, then a GuestReader and a GuestWriter; it also takes requests
// that are divided otherwise. `queue` is a whole turn: pop, cursors, push_used, needs_notification;
// `packed` that of a packed queue.
// `allocs` counts operator new during all iterations.

#include <array>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <new>

#include <benchmark/benchmark.h>

#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/memory/guest_ptr.hpp"
#include "vmspace/virtio/packed_queue.hpp"
#include "vmspace/virtio/split_queue.hpp"

namespace {

std::uint64_t allocations = 0;

}  // namespace

// Out of line, or g++ takes the pair of operator new and free() for a mistake.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace {

using namespace vmspace;

struct Header {
  Le32 type;
  Le32 reserved;
  Le64 sector;
};

constexpr std::uint64_t table = 0x1000;
constexpr std::uint64_t available = 0x2000;
constexpr std::uint64_t used = 0x3000;
constexpr std::uint64_t requests = 0x10'0000;
constexpr std::uint16_t queue_size = 256;
constexpr std::uint16_t next_flag = SplitDescriptor::has_next;
constexpr std::uint16_t write_flag = SplitDescriptor::writable;

template <typename T>
T expect(Result<T> result) {
  if (!result) {
    std::cerr << result.error().message() << '\n';
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

/// 85 requests of three descriptors each, their parts a page apart.
GuestMemory make_guest() {
  const std::array ram = {GuestRange{GuestAddress(0), 0x80'0000}};
  const GuestMemory memory = expect(GuestMemory::create(ram));
  for (std::uint16_t i = 0; i + 3 <= queue_size; i = static_cast<std::uint16_t>(i + 3)) {
    const std::uint64_t at = requests + std::uint64_t{i} * 0x1000;
    const std::array chain = {
        SplitDescriptor{.address = at,
                        .length = 16,
                        .flags = next_flag,
                        .next = static_cast<std::uint16_t>(i + 1)},
        SplitDescriptor{.address = at + 0x1000,
                        .length = 4096,
                        .flags = static_cast<std::uint16_t>(next_flag | write_flag),
                        .next = static_cast<std::uint16_t>(i + 2)},
        SplitDescriptor{.address = at + 0x2008, .length = 1, .flags = write_flag, .next = 0}};
    expect(memory.write_slice(GuestAddress(table + std::uint64_t{i} * 16),
                              std::as_bytes(std::span(chain))));
    expect(memory.write(GuestAddress(at), Header{.type = 0, .reserved = 0, .sector = i}));
  }
  return memory;
}

/// What a device would hand to the kernel.
struct Request {
  std::uint64_t sector;
  std::byte* data;
  std::uint64_t size;
};

Result<Request> raw_request(const GuestMemory& memory, std::uint16_t head) {
  const GuestPtr<SplitDescriptor> descriptors(memory, GuestAddress(table));
  const auto first_at = VMSPACE_TRY(descriptors.at(head, queue_size));
  const SplitDescriptor first = VMSPACE_TRY(first_at.read());
  const auto second_at = VMSPACE_TRY(descriptors.at(first.next, queue_size));
  const SplitDescriptor second = VMSPACE_TRY(second_at.read());
  const auto third_at = VMSPACE_TRY(descriptors.at(second.next, queue_size));
  const SplitDescriptor third = VMSPACE_TRY(third_at.read());
  const auto bad = [](const char* reason) {
    return fail({.code = Errc::corrupt, .operation = "raw_request", .reason = reason});
  };
  if ((first.flags & (next_flag | write_flag)) != next_flag || first.length != sizeof(Header)) {
    return bad("header");
  }
  if ((second.flags & (next_flag | write_flag)) != (next_flag | write_flag)) return bad("data");
  if ((third.flags & (next_flag | write_flag)) != write_flag || third.length != 1) {
    return bad("status");
  }
  const GuestRange header_range{GuestAddress(first.address), first.length};
  const GuestRange data_range{GuestAddress(second.address), second.length};
  const GuestRange status_range{GuestAddress(third.address), third.length};
  const std::byte* const header_at = VMSPACE_TRY(memory.const_host_address(header_range));
  std::byte* const data = VMSPACE_TRY(memory.host_address(data_range));
  std::byte* const status = VMSPACE_TRY(memory.host_address(status_range));
  Header header;
  detail::load_once(header, header_at);
  VMSPACE_TRY(memory.mark_dirty(data_range));
  detail::store_once(status, std::uint8_t{0});
  VMSPACE_TRY(memory.mark_dirty(status_range));
  return Request{.sector = header.sector, .data = data, .size = second.length};
}

/// What is done with the buffers, however they were found.
Result<Request> by_cursors(const GuestMemory& memory, std::span<const GuestRange> readable,
                           std::span<const GuestRange> writable) {
  auto in = GuestReader::make(memory, readable);
  if (!in) return fail(in.error());
  auto out = GuestWriter::make(memory, writable);
  if (!out) return fail(out.error());
  const Header header = VMSPACE_TRY(in->read<Header>());
  const iovec data = out->iovecs()[0];
  VMSPACE_TRY(out->commit(out->remaining() - 1));
  VMSPACE_TRY(out->write(std::uint8_t{0}));
  return Request{.sector = header.sector,
                 .data = static_cast<std::byte*>(data.iov_base),
                 .size = data.iov_len};
}

Result<Request> cursor_request(const GuestMemory& memory, std::uint16_t head) {
  const GuestPtr<SplitDescriptor> descriptors(memory, GuestAddress(table));
  std::array<GuestRange, 3> ranges;
  std::array<std::size_t, 2> count{};  // to read, and to write
  std::uint16_t index = head;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const auto at = VMSPACE_TRY(descriptors.at(index, queue_size));
    const SplitDescriptor descriptor = VMSPACE_TRY(at.read());
    ranges[i] = {GuestAddress(descriptor.address), descriptor.length};
    ++count[(descriptor.flags & write_flag) != 0 ? 1 : 0];
    if ((descriptor.flags & next_flag) == 0) break;
    index = descriptor.next;
  }
  const std::span<const GuestRange> all(ranges);
  return by_cursors(memory, all.first(count[0]), all.subspan(count[0], count[1]));
}

template <auto Serve>
void serve(benchmark::State& state) {
  const GuestMemory memory = make_guest();
  std::uint16_t head = 0;
  const std::uint64_t before = allocations;
  for (auto _ : state) {
    const auto request = Serve(memory, head);
    if (!request) return state.SkipWithError(request.error().reason);
    benchmark::DoNotOptimize(request->data);
    benchmark::DoNotOptimize(request->sector);
    head = head + 6 <= queue_size ? static_cast<std::uint16_t>(head + 3) : std::uint16_t{0};
  }
  state.counters["allocs"] = static_cast<double>(allocations - before);
}

/// The driver of a split queue: its descriptors are there already.
class SplitDriver {
 public:
  SplitQueue make_queue() const {
    return expect(SplitQueue::make({.size = queue_size,
                                    .descriptors = GuestAddress(table),
                                    .available = GuestAddress(available),
                                    .used = GuestAddress(used)}));
  }
  void offer(const GuestMemory& memory) {
    expect(memory.write(GuestAddress(available + 4 + std::uint64_t{2} * (index_ % queue_size)),
                        Le16(head_)));
    expect(memory.store(GuestAddress(available + 2), Le16(++index_), std::memory_order_release));
    head_ = head_ + 6 <= queue_size ? static_cast<std::uint16_t>(head_ + 3) : std::uint16_t{0};
  }

 private:
  std::uint16_t head_ = 0;
  std::uint16_t index_ = 0;
};

/// The driver of a packed queue, which writes its descriptors for each request, as it must. 85 requests
/// fill a lap.
class PackedDriver {
 public:
  PackedQueue make_queue() const {
    return expect(PackedQueue::make({.size = size,
                                     .descriptors = GuestAddress(table),
                                     .driver_event = GuestAddress(available),
                                     .device_event = GuestAddress(used)}));
  }
  void offer(const GuestMemory& memory) {
    const std::uint64_t at = requests + std::uint64_t{entry_} * 0x1000;
    const std::uint16_t lap = wrap_ ? PackedDescriptor::available : PackedDescriptor::used;
    put(memory, 1, at + 0x1000, 4096, static_cast<std::uint16_t>(lap | next_flag | write_flag));
    put(memory, 2, at + 0x2008, 1, static_cast<std::uint16_t>(lap | write_flag));
    put(memory, 0, at, 16, static_cast<std::uint16_t>(lap | next_flag));
    entry_ = static_cast<std::uint16_t>(entry_ + 3);
    if (entry_ == size) {
      entry_ = 0;
      wrap_ = !wrap_;
    }
  }

 private:
  static constexpr std::uint16_t size = 255;

  void put(const GuestMemory& memory, unsigned index, std::uint64_t address, std::uint32_t length,
           std::uint16_t flags) const {
    const std::uint64_t at = table + std::uint64_t{16} * (entry_ + index);
    expect(memory.write(GuestAddress(at), Le64(address)));
    const std::uint64_t half = length | std::uint64_t{flags} << 48;
    expect(memory.store(GuestAddress(at + 8), Le64(half), std::memory_order_release));
  }

  std::uint16_t entry_ = 0;
  bool wrap_ = true;
};

template <typename Driver>
void serve_queue(benchmark::State& state) {
  const GuestMemory memory = make_guest();
  Driver driver;
  auto queue = driver.make_queue();
  DescriptorChain chain;
  const std::uint64_t before = allocations;
  for (auto _ : state) {
    driver.offer(memory);
    if (!expect(queue.pop(memory, chain))) return state.SkipWithError("no request");
    const auto request = by_cursors(memory, chain.readable(), chain.writable());
    if (!request) return state.SkipWithError(request.error().reason);
    benchmark::DoNotOptimize(request->data);
    expect(queue.push_used(memory, chain.id(), 4097));
    benchmark::DoNotOptimize(expect(queue.needs_notification(memory)));
  }
  state.counters["allocs"] = static_cast<double>(allocations - before);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RegisterBenchmark("virtio_blk/raw", serve<raw_request>);
  benchmark::RegisterBenchmark("virtio_blk/cursor", serve<cursor_request>);
  benchmark::RegisterBenchmark("virtio_blk/queue", serve_queue<SplitDriver>);
  benchmark::RegisterBenchmark("virtio_blk/packed", serve_queue<PackedDriver>);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
