// SPDX-License-Identifier: Apache-2.0

#include "snapshot/restored_region.hpp"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/page_scan.hpp"

#include "memory/region_error.hpp"
#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"
#include "snapshot/inherited_faults.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace::detail {

namespace {

/// How often in a row a call is made again for which the kernel has had no time (EAGAIN).
constexpr unsigned most_attempts = 100'000;
/// How often in a row the marks of write-protected pages that are absent are removed: what is in the
/// way of more is a page.
constexpr unsigned most_marks = 16;

Error about(const MemoryRegion& region, const Error& error) {
  return name_region(error, region.description().name(), operand(region.guest_range()), {});
}

/// The errno of a call, or 0.
template <typename Call>
int errno_of(Call call) {
  return retry(call) == 0 ? 0 : errno;
}

}  // namespace

RestoredRegion::RestoredRegion(MemoryRegionPtr region, std::uint64_t first_page,
                               std::shared_ptr<const Userfault> faults, PageLedger& ledger,
                               const Events& events)
    : region_(std::move(region)),
      faults_(std::move(faults)),
      ledger_(ledger),
      events_(events),
      pages_{first_page, first_page + region_->size() / snapshot_page},
      unit_(region_->mapping().page_size()) {}

Result<std::uint64_t> RestoredRegion::features(const char* operation, const MemoryRegion& region) {
  const Backing& backing = region.backing();
  const auto refuse = [&](const char* reason) {
    return fail(
        about(region, {.code = Errc::unsupported, .operation = operation, .reason = reason}));
  };
  switch (backing.page_kind()) {
    case PageKind::anonymous: return 0;
    case PageKind::shmem:
      if (!backing.is_shared()) return refuse("private mappings of files can't be restored lazily");
      return userfault_feature::missing_shmem | userfault_feature::minor_shmem;
    case PageKind::hugetlb:
      if (backing.is_shared())
        return userfault_feature::missing_hugetlb | userfault_feature::minor_hugetlb;
      if (!backing.is_anonymous())
        return refuse("private mappings of files can't be restored lazily");
      return userfault_feature::missing_hugetlb;
    case PageKind::file: return refuse("memory in regular files can't be restored lazily");
    case PageKind::external: break;
  }
  return refuse("memory of devices, and memory that the library did not map, can't be restored");
}

Result<void> RestoredRegion::begin(const char* operation, Abilities can) {
  const MemoryMapping& mapping = region_->mapping();
  const auto name_error = [&](const Error& error) { return fail(about(*region_, error)); };
  can_ = can;
  auto claim = FaultClaim::make(operation, mapping, *this);
  if (!claim) return name_error(claim.error());
  claim_ = *std::move(claim);
  if (const auto untouched = require_untouched(operation); !untouched)
    return name_error(untouched.error());
  if (!FaultClaim::is_kept_from_children(mapping)) {
    if (errno_of([&] { return kernel().madvise(data(), mapping.size(), MADV_DONTFORK); }) != 0)
      return name_error(fail_os(operation, {}, "madvise(MADV_DONTFORK)").value());
    keeps_from_children_ = true;
  }
  if (region_->backing().is_shared()) {
    if (const auto mapped = map_alias(operation); !mapped) return name_error(mapped.error());
    modes_ = modes_ | FaultModes::minor;
  }
  if (const auto added = faults_->add(operation, data(), mapping.size(), modes_); !added)
    return name_error(added.error());
  is_registered_ = true;
  return {};
}

Result<std::shared_ptr<const Userfault>> RestoredRegion::admit(const char* operation,
                                                               const MemoryMapping& mapping) {
  // Others map the same file elsewhere, and would not see what is written here.
  if (!can_.watching || !is_registered_ || mapping.data() != data()) return nullptr;
  VMSPACE_TRY(faults_->add(operation, data(), region_->size(), modes_ | FaultModes::write_protect));
  is_watched_ = true;
  return faults_;
}

void RestoredRegion::end_claim(bool is_inherited) noexcept {
  const std::uint64_t size = region_->size();
  if (is_inherited) {
    wake(0, size);  // who waits asks the one who inherits it
  } else if (is_registered_) {
    // Should it fail, closing the userfaultfd will do it.
    static_cast<void>(faults_->remove("LazyRestore", data(), size));
  }
  is_registered_ = false;
  if (keeps_from_children_) retry([&] { return kernel().madvise(data(), size, MADV_DOFORK); });
  keeps_from_children_ = false;
  if (alias_ != nullptr) kernel().munmap(alias_, size);
  alias_ = nullptr;
}

Result<void> RestoredRegion::require_untouched(const char* operation) const {
  const MemoryMapping& mapping = region_->mapping();
  // A hugetlbfs file tells nothing of its holes, but whether it has any page at all.
  if (region_->backing().is_hugetlb() && !region_->backing().is_anonymous()) {
    struct stat file {};
    if (retry([&] { return kernel().fstat(region_->backing().fd(), &file); }) != 0)
      return fail_os(operation, {}, "fstat");
    if (file.st_blocks == 0) return {};
  }
  const Extent used = VMSPACE_TRY_IN(operation, PageScan(mapping).next(0, mapping.size()));
  if (used.size == 0) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .first = Operand::span(region_->base().value() + used.offset, used.size),
               .reason =
                   "memory that is restored lazily must be untouched: map it anew, or discard "
                   "what it holds"});
}

Result<void> RestoredRegion::map_alias(const char* operation) {
  if (!kernel_knows_advice(MADV_POPULATE_WRITE)) {
    return fail(
        {.code = Errc::unsupported,
         .operation = operation,
         .reason = "this kernel can't fill shared memory page by page (Linux 5.14 and later can)"});
  }
  const Backing& backing = region_->backing();
  const std::uint64_t size = region_->size();
  // Shared anonymous memory has no descriptor; an old size of 0 maps its pages a second time.
  const int flags = MAP_SHARED | (backing.is_hugetlb() ? 0 : MAP_NORESERVE);
  void* const mapped =
      backing.is_anonymous()
          ? kernel().mremap(data(), 0, size, MREMAP_MAYMOVE, nullptr)
          : kernel().mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, backing.fd(),
                          static_cast<off_t>(region_->mapping().file_offset()));
  if (mapped == MAP_FAILED) return fail_os(operation, Operand::size(size), "mmap");
  alias_ = static_cast<std::byte*>(mapped);
  if (errno_of([&] { return kernel().madvise(alias_, size, MADV_DONTFORK); }) != 0)
    return fail_os(operation, {}, "madvise(MADV_DONTFORK)");
  return {};
}

PageRun RestoredRegion::whole_units(PageRun run) const noexcept {
  const std::uint64_t unit = unit_pages();
  const std::uint64_t first = (run.first - pages_.first) / unit * unit;
  const std::uint64_t end = (run.end - pages_.first + unit - 1) / unit * unit;
  return {pages_.first + first, std::min(pages_.end, pages_.first + end)};
}

GuestRange RestoredRegion::guest_range(PageRun run) const noexcept {
  return {GuestAddress(region_->base().value() + offset_of(run.first)), run.size() * snapshot_page};
}

/// Makes `call(done)`, which goes on from there, until all is done or it fails for good.
template <typename Call>
RestoredRegion::Filled RestoredRegion::repeat(std::uint64_t offset, std::uint64_t size,
                                              Call call) const noexcept {
  unsigned attempts = 0;
  for (std::uint64_t done = 0; done < size;) {
    const Userfault::Done step = call(done);
    done += step.bytes;
    if (step.bytes != 0) attempts = 0;
    if (step.error == 0 && step.bytes != 0) continue;
    switch (step.error) {
      case EEXIST:
        // Who has brought it has woken all who waited, or will.
        wake(offset + done, unit_);
        done += unit_;
        break;
      case EAGAIN:
        if (step.bytes != 0) break;
        if (++attempts == most_attempts) return {done, EAGAIN};
        std::this_thread::yield();
        break;
      default: return {done, step.error == 0 ? EIO : step.error};
    }
  }
  return {size, 0};
}

RestoredRegion::Filled RestoredRegion::map_filled(std::uint64_t offset,
                                                  std::uint64_t size) const noexcept {
  return repeat(offset, size, [&](std::uint64_t done) {
    return faults_->map_minor(data() + offset + done, size - done, true, is_watched_);
  });
}

RestoredRegion::Filled RestoredRegion::fill(std::uint64_t offset, const std::byte* from,
                                            std::uint64_t size) const noexcept {
  if (alias_ == nullptr) {
    return repeat(offset, size, [&](std::uint64_t done) {
      return faults_->copy(data() + offset + done, from + done, size - done, true, is_watched_);
    });
  }
  // Allocates the pages, with an error and no signal where there are none.
  std::byte* const to = alias_ + offset;
  const int error = errno_of([&] { return kernel().madvise(to, size, MADV_POPULATE_WRITE); });
  if (error != 0) return {0, error};
  std::memcpy(to, from, size);
  return map_filled(offset, size);
}

RestoredRegion::Filled RestoredRegion::fill_zeros(std::uint64_t offset,
                                                  std::byte* scratch) const noexcept {
  if (alias_ != nullptr) {
    const int error =
        errno_of([&] { return kernel().madvise(alias_ + offset, unit_, MADV_POPULATE_WRITE); });
    return error != 0 ? Filled{0, error} : map_filled(offset, unit_);
  }
  if (region_->backing().is_hugetlb()) {
    std::memset(scratch, 0, unit_);
    return fill(offset, scratch, unit_);
  }
  return repeat(offset, unit_, [&](std::uint64_t done) {
    return faults_->zero(data() + offset + done, unit_ - done);
  });
}

void RestoredRegion::resolve(std::uint64_t offset, std::byte* scratch) const noexcept {
  if (region_->backing().is_hugetlb()) std::memset(scratch, 0, unit_);
  resolve_settled(*faults_, region_->mapping(), offset, scratch, is_watched_);
}

void RestoredRegion::poison(std::uint64_t offset, std::uint64_t size) const noexcept {
  if (can_.poison) {
    unsigned attempts = 0;
    const Filled poisoned = repeat(offset, size, [&](std::uint64_t done) {
      std::byte* const at = data() + offset + done;
      const Userfault::Done step = faults_->poison(at, size - done);
      if (step.bytes != 0) attempts = 0;
      if (step.error == EEXIST && can_.watching && attempts++ < most_marks) {
        // The marks of a DirtyScan, which may come back with a harvest in between.
        static_cast<void>(faults_->protect(at, size - done, false));
        return Userfault::Done{0, EAGAIN};
      }
      attempts = 0;  // of the next page
      return step;
    });
    if (poisoned.error == 0) return;
    offset += poisoned.bytes;
    size -= poisoned.bytes;
  }
  // Wrong contents would be worse than too little memory: where the kernel has no more mappings, all
  // of the region goes.
  if (!region_->mapping().set_accessible(offset, size, false))
    static_cast<void>(region_->mapping().set_accessible(0, region_->size(), false));
  wake(offset, size);
}

void RestoredRegion::wake(std::uint64_t offset, std::uint64_t size) const noexcept {
  faults_->wake(data() + offset, size);
}

PageRun RestoredRegion::run_at(std::uint64_t first, std::uint64_t end) const noexcept {
  const std::uint64_t begin = region_->mapping().file_offset();
  return {pages_.first + (first - begin) / snapshot_page,
          pages_.first + (end - begin) / snapshot_page};
}

Result<void> RestoredRegion::begin_discard(std::uint64_t first, std::uint64_t end) {
  ledger_.begin_discard(run_at(first, end));
  return {};
}

void RestoredRegion::end_discard(std::uint64_t first, std::uint64_t end, bool discarded) noexcept {
  const PageRun run = run_at(first, end);
  // Poison is in this process's page tables, where a hole in the file leaves it. Without the call a
  // lost page stays lost.
  if (discarded && region_->backing().is_shared()) {
    retry([&] {
      return kernel().madvise(data() + offset_of(run.first), run.size() * snapshot_page,
                              MADV_DONTNEED);
    });
  }
  const bool is_complete = ledger_.end_discard(run, discarded);
  wake(offset_of(run.first), run.size() * snapshot_page);
  if (is_complete) events_.on_complete();
  if (!is_complete) events_.on_returned();
}

}  // namespace vmspace::detail
