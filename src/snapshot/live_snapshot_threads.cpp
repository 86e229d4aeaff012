// SPDX-License-Identifier: Apache-2.0
//
// The two threads of a live snapshot.

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <new>
#include <span>

#include "vmspace/base/try.hpp"
#include "vmspace/host/zero_test.hpp"

#include "os/system_calls.hpp"
#include "os/thread.hpp"
#include "snapshot/live_snapshot_state.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace {

namespace {

using detail::fail_os;
using detail::kernel;
using detail::retry;
using detail::snapshot_page;

}  // namespace

void LiveSnapshot::State::finish(const Userfault& userfault, LiveRegion& region,
                                 RegionPages run) noexcept {
  region.pages().finish(run);
  if (const int failed = region.unprotect(userfault, run); failed != 0) {
    give_up(fail_os(wait_operation, Operand::span(run.offset, run.size),
                    "ioctl(UFFDIO_WRITEPROTECT)", failed)
                .value());
  }
  drop(run.size);
}

bool LiveSnapshot::State::save_to_buffer(const Userfault& userfault, LiveRegion& region,
                                         RegionPages run) noexcept {
  auto* const slot = buffer.reserve(region.index(), run.offset, run.size);
  if (slot == nullptr) return false;
  if (const auto copied = region.copy(wait_operation, run, slot->bytes); !copied) {
    give_up(copied.error());
    return false;
  }
  buffer.fill(*slot);
  finish(userfault, region, run);
  return true;
}

/// Lets the writer of a page go on; false when the snapshot has failed.
bool LiveSnapshot::State::resolve(const Userfault& userfault, std::uint64_t address) noexcept {
  LiveRegion* const region = find_region(address);
  if (region == nullptr) return true;
  const std::uint64_t page = region->pages().page();
  const RegionPages run{region->offset_of(address) / page * page, page};
  switch (region->pages().take(run.offset)) {
    case detail::LivePages::Turn::mine:
      if (!save_to_buffer(userfault, *region, run)) return false;
      counters.by_fault += run.size;
      return true;
    case detail::LivePages::Turn::others: return true;
    case detail::LivePages::Turn::done:
      // Or it was never waiting, in a hole that was protected with what is around it.
      (void)region->unprotect(userfault, run);
      return true;
  }
  return true;
}

/// Resolves all faults that have been reported; false when the snapshot has failed.
bool LiveSnapshot::State::read_faults(const Userfault& userfault) noexcept {
  std::array<std::uint64_t, 64> addresses;
  for (;;) {
    std::size_t count = 0;
    while (count < addresses.size()) {
      uffd_msg message{};
      const auto got = userfault.next(wait_operation, message);
      if (!got) {
        give_up(got.error());
        return false;
      }
      if (!*got) break;
      if (message.event == UFFD_EVENT_PAGEFAULT) {
        addresses[count++] = message.arg.pagefault.address;
      }
    }
    if (count == 0) return true;
    const auto read = Clock::now();
    counters.faults += count;
    for (const std::uint64_t address : std::span(addresses).first(count)) {
      if (!resolve(userfault, address)) return false;
    }
    const std::int64_t waited =
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - read).count();
    if (waited > counters.longest_wait) counters.longest_wait = waited;
  }
}

void LiveSnapshot::State::handle_faults() noexcept {
  detail::name_this_thread("vmspace-faults");
  const auto userfault = current_faults();
  if (userfault == nullptr) return;
  std::array<pollfd, 2> ready{
      {{.fd = userfault->fd(), .events = POLLIN, .revents = 0}, wake.polled()}};
  while (current_faults() != nullptr) {
    if (retry([&] { return kernel().poll(ready.data(), ready.size(), wake.longest_poll); }) < 0) {
      give_up(fail_os(wait_operation, {}, "poll").value());
      return;
    }
    if (!read_faults(*userfault)) return;
  }
}

/// Writes pages without those that are zeros, which take no space.
Result<void> LiveSnapshot::State::write_run(const LiveRegion& region, RegionPages run,
                                            const std::byte* bytes) {
  const std::uint64_t base = region.region().base().value() + run.offset;
  for (std::uint64_t at = 0; at < run.size;) {
    const bool zero = is_zero({bytes + at, snapshot_page});
    std::uint64_t end = at + snapshot_page;
    while (end < run.size && is_zero({bytes + end, snapshot_page}) == zero)
      end += snapshot_page;
    if (zero) {
      VMSPACE_TRY_IN(wait_operation, writer.write_zeros({GuestAddress(base + at), end - at}));
    } else {
      VMSPACE_TRY_IN(wait_operation,
                     writer.write(GuestAddress(base + at), std::span(bytes + at, end - at)));
    }
    at = end;
  }
  return {};
}

Result<void> LiveSnapshot::State::write_in_background(LiveRegion& region, RegionPages run) {
  const auto userfault = current_faults();
  if (userfault == nullptr) return {};
  VMSPACE_TRY(region.copy(wait_operation, run, chunk.data()));
  finish(*userfault, region, run);
  counters.in_background += run.size;
  return write_run(region, run, chunk.data());
}

Result<void> LiveSnapshot::State::write_all_pages() {
  auto region = regions.begin();
  std::uint64_t at = 0;
  for (;;) {
    const auto* slot = buffer.front();
    if (slot == nullptr && region != regions.end()) {
      const RegionPages run = region->pages().take_next(at, region->region().size());
      at = run.end();
      if (run.size != 0) {
        VMSPACE_TRY(write_in_background(*region, run));
      } else {
        ++region;
        at = 0;
      }
      continue;
    }
    if (slot == nullptr) slot = buffer.wait_front();
    if (slot == nullptr) break;
    VMSPACE_TRY(write_run(regions[slot->region], {slot->offset, slot->size}, slot->bytes));
    buffer.pop();
  }
  return write_zeros();
}

/// Each page once: what is absent may lie in a range that has changed.
Result<void> LiveSnapshot::State::write_zeros() {
  std::ranges::sort(zeros, {}, &GuestRange::base);
  for (std::size_t next = 0; next < zeros.size();) {
    GuestRange range = zeros[next++];
    for (; next < zeros.size() && range.overlaps(zeros[next]); ++next) {
      const std::uint64_t distance = zeros[next].base.value() - range.base.value();
      range.size = std::max(range.size, distance + zeros[next].size);
    }
    VMSPACE_TRY_IN(wait_operation, writer.write_zeros(range));
  }
  return {};
}

bool LiveSnapshot::State::begin_completing() {
  const std::lock_guard lock(mutex);
  if (phase != Phase::taken) return false;
  phase = Phase::saved;
  return true;
}

void LiveSnapshot::State::write_pages() noexcept {
  detail::name_this_thread("vmspace-save");
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return phase != Phase::ready; });
    if (phase != Phase::taken) return;
  }
  const auto written = [&]() -> Result<SnapshotId> {
    try {
      VMSPACE_TRY(write_all_pages());
      if (!begin_completing()) return SnapshotId{};
      return VMSPACE_TRY_IN(wait_operation, writer.finish());
    } catch (const std::bad_alloc&) {
      return fail_os(wait_operation, {}, "allocating memory for the snapshot's tables", ENOMEM);
    }
  }();
  {
    const std::lock_guard lock(mutex);
    if (phase != Phase::taken && phase != Phase::saved) return;  // it was given up
    if (written) {
      id = *written;
    } else {
      error = written.error();
    }
    phase = Phase::written;
  }
  if (!written) stop_saving();
  changed.notify_all();
}

}  // namespace vmspace
