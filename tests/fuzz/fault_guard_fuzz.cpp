// SPDX-License-Identifier: Apache-2.0
//
// The input is a list of calls of six bytes each: the owner of a file truncates or extends it, and
// accesses to it as guest memory are compared with a model, which is the bytes that are left.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "vmspace/host/fault_guard.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/memory/region_descriptor.hpp"

namespace {

using namespace vmspace;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t base = 0x10000;
constexpr std::uint64_t half = 2 * page;
constexpr std::uint64_t size = 2 * half;

void require(bool holds) {
  if (!holds) std::abort();
}

/// Whether a call on [from, from + count) ended as it must where the first `kept` bytes are there.
template <typename R>
void require_end(const R& result, std::uint64_t from, std::uint64_t count, std::uint64_t kept) {
  require(result.has_value() == (count == 0 || from + count <= kept));
  if (result) return;
  require(result.error().code == Errc::fault);
  require(result.error().second == Operand::address(base + std::max(from, kept)));
}

class Guest {
 public:
  Guest() : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    require(ftruncate(fd_, size) == 0);
    const std::vector<RegionDescriptor> halves{
        {.range = {GuestAddress(base), half}, .fd = fd_},
        {.range = {GuestAddress(base + half), half}, .fd = fd_, .offset = half}};
    auto mapped = map_regions(halves);
    require(mapped.has_value());
    memory_ = *mapped;
  }
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;
  ~Guest() { close(fd_); }

  void apply(const std::uint8_t* call) {
    const std::uint64_t from = static_cast<std::uint64_t>(call[1] | call[2] << 8) % size;
    const std::uint64_t count = std::min<std::uint64_t>(
        static_cast<std::uint64_t>(call[3] | call[4] << 8) % 9000, size - from);
    const auto value = static_cast<std::byte>(call[5]);
    const GuestAddress address(base + from);
    const std::vector<std::byte> data(count, value);
    switch (call[0] % 7) {
      case 0: return resize(call[5] % 5 * page);
      case 1: {
        std::vector<std::byte> to(count);
        require_end(memory_.read_slice(address, to), from, count, kept_);
        return compare(to, from);
      }
      case 2: {
        require_end(memory_.write_slice(address, data), from, count, kept_);
        return write(from, data);
      }
      case 3: {
        require_end(memory_.fill({address, count}, value), from, count, kept_);
        return write(from, data);
      }
      case 4: {
        const auto read = memory_.read<std::uint8_t>(address);
        require_end(read, from, 1, kept_);
        if (read) require(static_cast<std::byte>(*read) == bytes_[from]);
        return;
      }
      case 5: {
        const auto done = memory_.write_some(address, data);
        const std::uint64_t there = from < kept_ ? std::min(count, kept_ - from) : 0;
        if (there == 0 && count != 0) {
          require_end(done, from, count, kept_);
        } else {
          require(done.has_value() && *done == there);
        }
        return write(from, data);
      }
      default: {
        const GuestRange ranges[] = {{address, count}};
        auto writer = GuestWriter::make(memory_, ranges);
        require(writer.has_value());
        require_end(writer->write_exact(data), from, count, kept_);
        require(writer->position() == (from < kept_ ? std::min(count, kept_ - from) : 0));
        return write(from, data);
      }
    }
  }

 private:
  void resize(std::uint64_t kept) {
    require(ftruncate(fd_, static_cast<off_t>(kept)) == 0);
    kept_ = kept;
    std::fill(bytes_.begin() + static_cast<std::ptrdiff_t>(kept), bytes_.end(), std::byte{0});
  }
  void write(std::uint64_t from, const std::vector<std::byte>& data) {
    for (std::uint64_t i = 0; i < data.size() && from + i < kept_; ++i)
      bytes_[from + i] = data[i];
  }
  void compare(const std::vector<std::byte>& read, std::uint64_t from) const {
    for (std::uint64_t i = 0; i < read.size() && from + i < kept_; ++i)
      require(read[i] == bytes_[from + i]);
  }

  int fd_;
  GuestMemory memory_;
  std::uint64_t kept_ = size;
  std::vector<std::byte> bytes_ = std::vector<std::byte>(size);
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t length) {
  static const auto guard = FaultGuard::install();
  require(guard.has_value());
  Guest guest;
  for (std::size_t i = 0; i + 6 <= length; i += 6)
    guest.apply(data + i);
  return 0;
}
