// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_io.hpp"

#include <algorithm>
#include <cerrno>
#include <limits>

#include "vmspace/base/try.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/marked_read.hpp"
#include "memory/present_parts.hpp"
#include "os/argument_checks.hpp"
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

/// What became of a part.
struct Step {
  std::uint64_t bytes;
  int error;
  bool ended = false;  ///< there is no more, although no call failed
};

/// Calls `step(part, offset)` for the parts of a range until one is not transferred whole; `offset` is
/// the part's in the file, or -1.
template <typename Once>
Result<std::uint64_t> transfer(const char* operation, const GuestMemory& memory, GuestRange range,
                               Access access, const GuestIoOptions& options, const char* call,
                               Once step) {
  VMSPACE_TRY_IN(operation, memory.check(range, access));
  constexpr std::uint64_t file_limit = std::numeric_limits<std::int64_t>::max();
  if (options.offset &&
      (*options.offset > file_limit || range.size > file_limit - *options.offset)) {
    return fail({.code = Errc::overflow,
                 .operation = operation,
                 .first = Operand::size(*options.offset),
                 .second = Operand::size(range.size),
                 .reason = "the offset in the file must stay below 2^63"});
  }
  std::uint64_t done = 0;
  int error = 0;
  while (done < range.size) {
    const RegionPart part = rest_of(memory, range, done);
    const std::int64_t offset =
        options.offset ? static_cast<std::int64_t>(*options.offset + done) : std::int64_t{-1};
    const Step taken = step(part, offset);
    done += taken.bytes;
    error = taken.error;
    if (error != 0 || taken.ended) break;
  }
  const bool is_short = done < range.size;
  if (!is_short || (!options.exact && (error == 0 || done != 0))) return done;
  const GuestAddress at(range.base.value() + done);
  if (detail::is_fault(*memory.region_at(at), error))
    return fail(detail::fault_error(operation, range, at));
  auto failed = detail::fail_os(operation, detail::operand(range), call, error != 0 ? error : EIO);
  if (options.exact) failed.value().second = Operand::size(done);
  return failed;
}

/// What a callback was given, marked when it has returned, or thrown.
struct MarkAtEnd {
  explicit MarkAtEnd(const RegionPart& marked) : part(marked) {}
  MarkAtEnd(const MarkAtEnd&) = delete;
  MarkAtEnd& operator=(const MarkAtEnd&) = delete;
  ~MarkAtEnd() { part.region->dirty().mark(part.offset, part.size); }

  const RegionPart& part;
};

/// Calls `once(part)` for the parts of a range until it gives 0.
template <typename Once>
Result<std::uint64_t> call_back(const char* operation, const GuestMemory& memory, GuestRange range,
                                Access access, Once once) {
  VMSPACE_TRY_IN(operation, memory.check(range, access));
  std::uint64_t done = 0;
  while (done < range.size) {
    const RegionPart part = rest_of(memory, range, done);
    const Result<std::size_t> count = once(part);
    if (!count) return fail(count.error());
    if (*count > part.size) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = Operand::size(*count),
                   .second = Operand::size(part.size),
                   .reason = "the callback must not claim more bytes than it was given"});
    }
    if (*count == 0) break;
    done += *count;
  }
  return done;
}

}  // namespace

Result<std::uint64_t> read_into_guest(int fd, const GuestMemory& memory, GuestRange range,
                                      const GuestIoOptions& options) {
  return transfer("read_into_guest", memory, range, Access::write, options,
                  options.offset ? "preadv2" : "read",
                  [&](const RegionPart& part, std::int64_t offset) -> Step {
                    const auto read =
                        detail::marked_read(fd,
                                            {.host = part.host(),
                                             .size = part.size,
                                             .dirty = part.region->dirty(),
                                             .offset = part.offset},
                                            {.offset = offset, .cancellable = options.cancellable});
                    // Fewer without an error: the file has ended, and must not be asked again, since a
                    // terminal, or a file that grows, may have more by then.
                    return {read.bytes, read.error, read.bytes < part.size};
                  });
}

Result<std::uint64_t> write_from_guest(int fd, const GuestMemory& memory, GuestRange range,
                                       const GuestIoOptions& options) {
  return transfer("write_from_guest", memory, range, Access::read, options,
                  options.offset ? "pwritev2" : "write",
                  [&](const RegionPart& part, std::int64_t offset) -> Step {
                    const auto count = detail::retry_unless(options.cancellable, [&]() -> ssize_t {
                      if (offset < 0) return detail::kernel().write(fd, part.host(), part.size);
                      const iovec buffer{.iov_base = part.host(), .iov_len = part.size};
                      return detail::kernel().pwritev2(fd, &buffer, 1, offset, 0);
                    });
                    if (count < 0) return {0, errno};
                    return {static_cast<std::uint64_t>(count), 0, count == 0};
                  });
}

Result<std::uint64_t> read_into_guest(const GuestSource& source, const GuestMemory& memory,
                                      GuestRange range) {
  if (!source) return detail::invalid("read_into_guest", "the source must not be empty");
  return call_back("read_into_guest", memory, range, Access::write, [&](const RegionPart& part) {
    const MarkAtEnd mark(part);
    return source({part.host(), part.size});
  });
}

Result<std::uint64_t> write_from_guest(const GuestSink& sink, const GuestMemory& memory,
                                       GuestRange range) {
  if (!sink) return detail::invalid("write_from_guest", "the sink must not be empty");
  return call_back("write_from_guest", memory, range, Access::read, [&](const RegionPart& part) {
    return sink({part.host(), part.size});
  });
}

}  // namespace vmspace
