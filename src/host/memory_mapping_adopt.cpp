// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: memory that something else keeps mapped.

#include <sys/mman.h>

#include <limits>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_mapping.hpp"

#include "os/argument_checks.hpp"
#include "os/page_size.hpp"
#include "os/reserved_addresses.hpp"
#include "os/system_calls.hpp"
#include "spec/known_values.hpp"

namespace vmspace {

using detail::base_page_size;
using detail::require_multiple;

namespace {

constexpr const char* adopt_operation = "MemoryMapping::adopt";

Result<void> check(const ExternalMemory& memory) {
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data);
  const Operand address = Operand::address(base);
  if (memory.data == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = adopt_operation,
                 .reason = "the address must not be null"});
  }
  VMSPACE_TRY(detail::require_nonzero(adopt_operation, memory.size, address));
  VMSPACE_TRY(detail::check_reservation(adopt_operation, memory.size, 0));
  VMSPACE_TRY(require_multiple(adopt_operation, address, base_page_size(),
                               "the address must be a multiple of the page size"));
  VMSPACE_TRY(require_multiple(adopt_operation, Operand::size(memory.size), base_page_size(),
                               "the size must be a multiple of the page size"));
  if (memory.size - 1 > std::numeric_limits<std::uintptr_t>::max() - base) {
    return fail({.code = Errc::overflow,
                 .operation = adopt_operation,
                 .first = address,
                 .second = Operand::size(memory.size)});
  }
  VMSPACE_TRY(detail::require_known(adopt_operation, memory.protection, "unknown protection bits"));
  // Looks at the mappings and no more: on Linux MS_ASYNC starts nothing (msync(2), "NOTES").
  if (detail::retry([&] { return detail::kernel().msync(memory.data, memory.size, MS_ASYNC); }) !=
      0) {
    if (errno != ENOMEM) return detail::fail_os(adopt_operation, address, "msync(MS_ASYNC)");
    return fail({.code = Errc::not_found,
                 .operation = adopt_operation,
                 .first = address,
                 .second = Operand::size(memory.size),
                 .reason = "all of the memory must be mapped in this process",
                 .os_errno = ENOMEM});
  }
  return {};
}

}  // namespace

Result<MemoryMapping> MemoryMapping::adopt(const ExternalMemory& memory) {
  VMSPACE_TRY(check(memory));
  auto state = std::make_shared<Backing::State>();
  state->size = memory.size;
  state->page_size = base_page_size();
  state->source = MemorySource::external;
  state->kind = PageKind::external;
  state->shared = true;
  state->writable = allows(memory.protection, Protection::write);
  state->can_lose_pages = memory.can_lose_pages;
  MemoryMapping mapping((Backing(std::move(state))));
  mapping.data_ = memory.data;
  mapping.size_ = memory.size;
  mapping.protection_ = memory.protection;
  mapping.owner_ = memory.owner;
  return mapping;
}

Result<MemoryMapping> MemoryMapping::part(std::uint64_t offset, std::uint64_t size,
                                          std::shared_ptr<const void> owner) const {
  VMSPACE_TRY_IN("MemoryMapping::part", check_part(offset, size));
  MemoryMapping part(backing_);
  part.numa_policy_ = numa_policy_;
  part.advice_ = advice_;
  part.pins_ = pins_;
  part.data_ = data_ + offset;
  part.size_ = size;
  part.file_offset_ = file_offset_ + offset;
  part.arena_ = arena_;
  part.protection_ = protection_;
  part.reserve_ = reserve_;
  part.owner_ = std::move(owner);
  return part;
}

Result<void> MemoryMapping::require_own_pages(const char* call) const {
  if (!backing_.is_external()) return {};
  return fail({.code = Errc::unsupported,
               .operation = call,
               .first = Operand::span(0, size_),
               .reason = "the pages are a device's, or those of memory that something else has "
                         "mapped"});
}

}  // namespace vmspace
