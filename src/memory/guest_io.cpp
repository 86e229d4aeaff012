// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_io.hpp"

#include <algorithm>
#include <cerrno>

#include "vmspace/base/try.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/marked_read.hpp"
#include "memory/present_parts.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

namespace {

/// A part of a range that lies in one region, and is present.
struct RegionPart {
  MemoryRegionPtr region;
  std::uint64_t offset;
  std::uint64_t size;

  [[nodiscard]] std::byte* host() const noexcept { return region->host_base() + offset; }
};

/// The part that remains of a checked range after `done` bytes, up to the end of its region.
RegionPart rest_of(const GuestMemory& memory, GuestRange range, std::uint64_t done) {
  const GuestAddress at(range.base.value() + done);
  MemoryRegionPtr region = memory.find_region(at);
  const std::uint64_t offset = at.value() - region->base().value();
  const std::uint64_t left = std::min(range.size - done, region->size() - offset);
  const std::uint64_t size = detail::present_after(*region, offset, left);
  return {.region = std::move(region), .offset = offset, .size = size};
}

/// A system call of this name has failed that was given the part after `done` bytes of the range.
tl::unexpected<Error> fail_part(const char* operation, GuestRange range, std::uint64_t done,
                                const RegionPart& part, const char* call, int error) {
  if (detail::is_fault(*part.region, error)) {
    return fail(detail::fault_error(operation, range, GuestAddress(range.base.value() + done)));
  }
  return detail::fail_os(operation, detail::operand(range), call, error);
}

}  // namespace

Result<std::uint64_t> read_into_guest(int fd, const GuestMemory& memory, GuestRange range) {
  constexpr const char* operation = "read_into_guest";
  VMSPACE_TRY_IN(operation, memory.check(range, Access::write));
  std::uint64_t done = 0;
  while (done < range.size) {
    const RegionPart part = rest_of(memory, range, done);
    const auto read = detail::marked_read(fd, {.host = part.host(),
                                               .size = part.size,
                                               .dirty = part.region->dirty(),
                                               .offset = part.offset});
    done += read.bytes;
    if (read.error != 0 && done == 0) {
      return fail_part(operation, range, done, part, "read", read.error);
    }
    if (read.bytes != part.size) break;
  }
  return done;
}

Result<std::uint64_t> write_from_guest(int fd, const GuestMemory& memory, GuestRange range) {
  constexpr const char* operation = "write_from_guest";
  VMSPACE_TRY_IN(operation, memory.check(range, Access::read));
  std::uint64_t done = 0;
  while (done < range.size) {
    const RegionPart part = rest_of(memory, range, done);
    const auto count =
        detail::retry([&] { return detail::kernel().write(fd, part.host(), part.size); });
    if (count < 0) {
      if (done != 0) break;
      return fail_part(operation, range, done, part, "write", errno);
    }
    if (count == 0) break;
    done += static_cast<std::uint64_t>(count);
  }
  return done;
}

}  // namespace vmspace
