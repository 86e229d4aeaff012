// SPDX-License-Identifier: Apache-2.0

#include "snapshot/live_region.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/memory/detail/guest_access.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

/// Holes up to this size are protected with what is around them: a call costs as much as passing over
/// so many absent pages, or more.
constexpr std::uint64_t gap_not_worth_a_call = std::uint64_t{256} << 10;

/// EAGAIN: mappings of this process were changing just then.
int change_protection(const Userfault& faults, std::byte* begin, std::uint64_t size,
                      bool on) noexcept {
  for (;;) {
    const int error = faults.protect(begin, size, on);
    if (error != EAGAIN) return error;
    sched_yield();
  }
}

tl::unexpected<Error> fail_in(const MemoryRegion& region, Error error) {
  error.text = region.description().name();
  return fail(error);
}

}  // namespace

LiveRegion::LiveRegion(MemoryRegionPtr region, std::size_t index, DiscardListener& listener)
    : region_(std::move(region)),
      index_(index),
      listener_(listener),
      pages_(region_->host_base(), region_->size(), region_->mapping().page_size()),
      can_be_written_(allows(region_->mapping().protection(), Protection::write)),
      is_read_from_file_(region_->backing().is_hugetlb() && region_->backing().is_shared() &&
                         !region_->backing().is_anonymous()) {}

Result<void> LiveRegion::claim(const char* operation) {
  auto made = FaultClaim::make(operation, region_->mapping(), *this);
  if (!made) {
    Error error = made.error();
    error.first = operand(region_->guest_range());
    return fail(error);
  }
  claim_ = *std::move(made);
  return {};
}

Result<void> LiveRegion::add_to(const Userfault& faults, const char* operation) const {
  if (!can_be_written_) return {};
  const auto added =
      faults.add(operation, region_->host_base(), region_->size(), FaultModes::write_protect);
  return added ? added : fail_in(*region_, added.error());
}

Result<LiveRegion::Found> LiveRegion::find_present(const char* operation, RegionPages run) const {
  Found found;
  PageScan scan(region_->mapping());
  const auto add = [&](RegionPages present) {
    // Parts of one huge page may be reported one by one.
    if (!found.runs.empty() && found.runs.back().end() >= present.offset) {
      RegionPages& last = found.runs.back();
      found.bytes += present.end() - std::min(last.end(), present.end());
      last.size = std::max(last.end(), present.end()) - last.offset;
    } else {
      found.runs.push_back(present);
      found.bytes += present.size;
    }
  };
  for (std::uint64_t at = run.offset; at < run.end();) {
    const std::uint64_t begin = at + absent_after(*region_, at, run.end() - at);
    const std::uint64_t end = begin + present_after(*region_, begin, run.end() - begin);
    for (at = begin; at < end;) {
      if (is_read_from_file_) {
        add({at, end - at});
        at = end;
        continue;
      }
      const Extent present = VMSPACE_TRY_IN(operation, scan.next(at, end));
      if (present.size != 0) {
        const RegionPages whole = pages_.whole_pages(present.offset, present.end());
        add({whole.offset, std::min(whole.end(), run.end()) - whole.offset});
      }
      at = present.end();
    }
  }
  return found;
}

Result<void> LiveRegion::protect_run(const Userfault& faults, const char* operation,
                                     RegionPages run) const {
  const int error = change_protection(faults, region_->host_base() + run.offset, run.size, true);
  if (error == 0) return {};
  return fail_os(operation, Operand::span(run.offset, run.size), "ioctl(UFFDIO_WRITEPROTECT)",
                 error);
}

Result<std::uint64_t> LiveRegion::protect(const Userfault& faults, const char* operation,
                                          RegionPages run, bool populate,
                                          std::vector<GuestRange>* zeros) {
  const Found found = VMSPACE_TRY(find_present(operation, run));
  const bool may_be_absent =
      populate && !region_->backing().is_shared() && !region_->backing().is_hugetlb();
  RegionPages together;
  std::uint64_t at = run.offset;
  for (const RegionPages& present : found.runs) {
    if (zeros != nullptr && present.offset != at) {
      zeros->push_back({GuestAddress(region_->base().value() + at), present.offset - at});
    }
    at = present.end();
    pages_.add(present);
    if (!can_be_written_) continue;
    if (may_be_absent && retry([&] {
                           return kernel().madvise(region_->host_base() + present.offset,
                                                   present.size, MADV_POPULATE_READ);
                         }) != 0) {
      return fail_os(operation, Operand::span(present.offset, present.size),
                     "madvise(MADV_POPULATE_READ)");
    }
    if (together.size != 0 && present.offset - together.end() <= gap_not_worth_a_call) {
      together.size = present.end() - together.offset;
    } else {
      if (together.size != 0) VMSPACE_TRY(protect_run(faults, operation, together));
      together = present;
    }
  }
  if (together.size != 0) VMSPACE_TRY(protect_run(faults, operation, together));
  if (zeros != nullptr && at < run.end()) {
    zeros->push_back({GuestAddress(region_->base().value() + at), run.end() - at});
  }
  return found.bytes;
}

int LiveRegion::unprotect(const Userfault& faults, RegionPages run) const noexcept {
  if (!can_be_written_) return 0;
  std::byte* const begin = region_->host_base() + run.offset;
  const int error = change_protection(faults, begin, run.size, false);
  if (error != 0) faults.wake(begin, run.size);
  return error;
}

void LiveRegion::remove_from(const Userfault& faults) const noexcept {
  // Should it fail, closing the userfaultfd will do it.
  if (can_be_written_) {
    (void)faults.remove("LiveSnapshot", region_->host_base(), region_->size());
  }
}

Result<void> LiveRegion::copy(const char* operation, RegionPages run, std::byte* to) const {
  if (!is_read_from_file_) {
    const std::byte* const from = region_->host_base() + run.offset;
    return touch_region(operation, *region_, run.offset, run.size,
                        [&] { copy_from_shared(to, from, run.size); });
  }
  for (std::uint64_t done = 0; done < run.size;) {
    const ssize_t got = retry([&] {
      return kernel().pread(
          region_->backing().fd(), to + done, run.size - done,
          static_cast<off_t>(region_->mapping().file_offset() + run.offset + done));
    });
    if (got <= 0) {
      return fail_os(operation, Operand::span(run.offset + done, run.size - done),
                     "pread of a hugetlb page", got == 0 ? EIO : errno);
    }
    done += static_cast<std::uint64_t>(got);
  }
  return {};
}

Result<void> LiveRegion::begin_discard(std::uint64_t first, std::uint64_t end) {
  const std::uint64_t begin = region_->mapping().file_offset();
  listener_.save_before_discard(*this, first - begin, end - begin);
  return {};
}

}  // namespace vmspace::detail
