// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: giving pages back, and keeping them.

#include <sys/mman.h>

#include <functional>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_mapping.hpp"

#include "host/pinned_ranges.hpp"
#include "os/argument_checks.hpp"
#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;
using detail::retry;

namespace {

constexpr const char* discard_operation = "MemoryMapping::discard";

tl::unexpected<Error> fail_discard(Operand part, const char* call) {
  if (errno == EOPNOTSUPP || errno == EINVAL) {
    return fail({.code = Errc::unsupported,
                 .operation = discard_operation,
                 .first = part,
                 .reason = "this kernel or file system can't discard pages of this kind",
                 .os_errno = errno});
  }
  return fail_os(discard_operation, part, call);
}

}  // namespace

Result<void> MemoryMapping::discard(std::uint64_t offset, std::uint64_t size) const {
  VMSPACE_TRY_IN(discard_operation, check_part(offset, size));
  VMSPACE_TRY(require_own_pages(discard_operation));
  const Operand part = Operand::span(offset, size);
  const auto refuse = [&](Errc code, const char* reason) {
    return fail({.code = code, .operation = discard_operation, .first = part, .reason = reason});
  };
  if (!allows(protection_, Protection::write)) {
    return refuse(Errc::access_denied, "discarding requires a writable mapping");
  }
  const bool is_file = backing_.source() == MemorySource::file;
  if (is_file && backing_.is_shared() && !backing_.is_discardable()) {
    return refuse(Errc::bad_state,
                  "the file's contents would be lost: set BackingSpec::discardable to allow it");
  }
  // Held until the pages have gone: nobody pins them while they go.
  const auto unchanged = pins_->unchanged();
  const std::uint64_t first_pin = file_offset_ + offset;
  if (const std::string* holder = pins_->find(unchanged, first_pin, first_pin + size)) {
    return fail({.code = Errc::bad_state,
                 .operation = discard_operation,
                 .first = part,
                 .reason = "the memory is mapped for DMA, and devices would keep the old pages: "
                           "unmap it for them first",
                 .text = *holder});
  }
  const auto discard_them = [&] { return discard_pages(offset, size); };
  // By reference, which a std::function holds without allocating.
  return pins_->discard_claimed(unchanged, first_pin, first_pin + size, std::cref(discard_them));
}

Result<void> MemoryMapping::discard_pages(std::uint64_t offset, std::uint64_t size) const {
  const Operand part = Operand::span(offset, size);
  std::byte* const first = data_ + offset;
  // Finds locked pages without touching any: for MS_INVALIDATE msync(2) gives EBUSY on them, and
  // does nothing else.
  const bool locked = retry([&] { return kernel().msync(first, size, MS_INVALIDATE); }) != 0;
  if (locked && errno != EBUSY) return fail_os(discard_operation, part, "msync(MS_INVALIDATE)");
  const bool is_private_file = backing_.source() == MemorySource::file && !backing_.is_shared();
  if (locked && (is_private_file || (backing_.is_anonymous() && backing_.is_shared()))) {
    return fail({.code = Errc::bad_state,
                 .operation = discard_operation,
                 .first = part,
                 .reason = "the kernel can't discard locked pages of private files and of shared "
                           "anonymous memory: unlock them first"});
  }
  // Asked before any page is gone.
  if (locked && !backing_.is_shared() && !detail::kernel_knows_advice(MADV_DONTNEED_LOCKED)) {
    return fail({.code = Errc::unsupported,
                 .operation = discard_operation,
                 .first = part,
                 .reason = "this kernel can't discard locked pages (Linux 5.18 and later can): "
                           "unlock them first",
                 .os_errno = errno});
  }
  const int drop = locked ? MADV_DONTNEED_LOCKED : MADV_DONTNEED;

  if (is_private_file) return replace_by_zeros(offset, size);
  if (backing_.is_anonymous()) {
    const int advice = backing_.is_shared() ? MADV_REMOVE : drop;
    if (retry([&] { return kernel().madvise(first, size, advice); }) != 0) {
      return fail_discard(
          part, advice == MADV_REMOVE ? "madvise(MADV_REMOVE)" : "madvise(MADV_DONTNEED)");
    }
    return {};
  }
  // Pages of a file go whether or not they are locked.
  if (retry([&] {
        return kernel().fallocate(backing_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  static_cast<off_t>(file_offset_ + offset),
                                  static_cast<off_t>(size));
      }) != 0) {
    return fail_discard(part, "fallocate(FALLOC_FL_PUNCH_HOLE)");
  }
  // Last, because it can hardly fail once the range is known to be mapped, and locked or not.
  if (!backing_.is_shared() && retry([&] { return kernel().madvise(first, size, drop); }) != 0) {
    return fail_discard(part, "madvise(MADV_DONTNEED)");
  }
  return {};
}

Result<MemoryPin> MemoryMapping::pin(std::uint64_t offset, std::uint64_t size,
                                     std::string_view holder) const {
  constexpr const char* pin_operation = "MemoryMapping::pin";
  if (!is_mapped()) {
    return fail(
        {.code = Errc::bad_state, .operation = pin_operation, .reason = "the mapping is closed"});
  }
  VMSPACE_TRY(detail::require_nonzero(pin_operation, size, Operand::address(offset)));
  VMSPACE_TRY(detail::require_within(pin_operation, offset, size, size_,
                                     "offset + size must lie within the mapping"));
  const std::uint64_t first = file_offset_ + offset;
  if (const char* owner = pins_->pin(first, first + size, holder)) {
    return fail({.code = Errc::bad_state,
                 .operation = pin_operation,
                 .first = Operand::span(offset, size),
                 .reason = "devices may not access the memory by DMA while its writes are followed",
                 .text = owner});
  }
  return MemoryPin(pins_, first, first + size);
}

// The new memory is prepared elsewhere and then moved over the old in one step: no other thread
// sees an unmapped, unbound or unadvised page, and a failure leaves the old memory in place.
Result<void> MemoryMapping::replace_by_zeros(std::uint64_t offset, std::uint64_t size) const {
  const Backing source =
      VMSPACE_TRY_IN(discard_operation, Backing::open({.source = MemorySource::anon}, size));
  MemoryMapping fresh =
      VMSPACE_TRY_IN(discard_operation,
                     map(source, {.size = size, .protection = protection_, .reserve = reserve_}));
  if (numa_policy_.mode != NumaMode::by_default) {
    VMSPACE_TRY_IN(discard_operation, fresh.bind_to_nodes(numa_policy_));
  }
  for (const int advice : advice_)
    VMSPACE_TRY(fresh.give_advice(discard_operation, advice));
  if (kernel().mremap(fresh.data_, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, data_ + offset) ==
      MAP_FAILED) {
    return fail_os(discard_operation, Operand::span(offset, size), "mremap");
  }
  fresh.reserved_ = nullptr;
  return {};
}

}  // namespace vmspace
