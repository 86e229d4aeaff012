// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/mapping.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "memory/host.hpp"
#include "memory/system_calls.hpp"

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

namespace vmspace {

using detail::base_page_size;
using detail::fail_os;
using detail::kernel;
using detail::prot_of;
using detail::retry;

namespace {

constexpr const char* map_operation = "MemoryMapping::map";

int flags_of(const Backing& backing) {
  int flags = backing.is_shared() ? MAP_SHARED : MAP_PRIVATE;
  if (backing.is_anonymous()) {
    flags |= MAP_ANONYMOUS;
    if (backing.is_hugetlb()) {
      flags |= MAP_HUGETLB | std::countr_zero(backing.page_size()) << MAP_HUGE_SHIFT;
    }
  }
  return flags;
}

Result<void> check_options(const Backing& backing, const MappingOptions& options) {
  if (options.size == 0) {
    return fail({.code = Errc::zero_size,
                 .operation = map_operation,
                 .second = Operand::address(options.offset)});
  }
  const std::uint64_t page = backing.page_size();
  for (const std::uint64_t value : {options.size, options.offset, options.congruent_to}) {
    if (value % page != 0) {
      return fail({.code = Errc::misaligned,
                   .operation = map_operation,
                   .first = Operand::size(value),
                   .second = Operand::size(page),
                   .reason = "size, offset and congruence are multiples of the page size"});
    }
  }
  if (options.align != 0 && !std::has_single_bit(options.align)) {
    return fail({.code = Errc::bad_alignment,
                 .operation = map_operation,
                 .first = Operand::size(options.align)});
  }
  if (options.offset > backing.size() || options.size > backing.size() - options.offset) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = map_operation,
                 .first = Operand::span(options.offset, options.size),
                 .second = Operand::size(backing.size())});
  }
  // Below it no sum of size, alignment and guard pages passes 64 bits. The kernel's limit is lower.
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  if (options.size > most || options.align > most) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = map_operation,
                 .first = Operand::size(std::max(options.size, options.align)),
                 .second = Operand::size(most)});
  }
  return {};
}

tl::unexpected<Error> fail_map(const Backing& backing, const MappingOptions& options) {
  const Operand size = Operand::size(options.size);
  if (errno == EACCES) {
    return fail({.code = Errc::access_denied,
                 .operation = map_operation,
                 .first = size,
                 .reason = "the descriptor is not open for what the mapping needs"});
  }
  if (backing.is_hugetlb() && errno == ENOMEM) {
    return fail_os(map_operation, size, "the hugetlb pool has too few free pages");
  }
  if (backing.is_hugetlb() && backing.is_anonymous() && errno == EINVAL) {
    return fail({.code = Errc::unsupported,
                 .operation = map_operation,
                 .first = Operand::size(backing.page_size()),
                 .reason = "this kernel has no hugetlb pool of this page size",
                 .os_errno = errno});
  }
  return fail_os(map_operation, size, "mmap");
}

}  // namespace

Result<MemoryMapping> MemoryMapping::map(const Backing& backing, const MappingOptions& options) {
  if (auto ok = check_options(backing, options); !ok) return fail(ok.error());
  MemoryMapping mapping(backing);
  const std::uint64_t file_offset = backing.offset() + options.offset;
  const auto map_at = [&](void* address, int flags) {
    return kernel().mmap(address, options.size, prot_of(options.protection),
                         flags_of(backing) | flags, backing.descriptor(),
                         static_cast<off_t>(file_offset));
  };

  const std::uint64_t guard = options.guard_pages ? base_page_size() : 0;
  const std::uint64_t align = std::max(options.align, backing.page_size());
  // The kernel aligns to the page size by itself, of hugetlb too.
  if (guard == 0 && align == backing.page_size()) {
    void* const address = map_at(nullptr, 0);
    if (address == MAP_FAILED) return fail_map(backing, options);
    mapping.data_ = mapping.reserved_ = static_cast<std::byte*>(address);
    mapping.reserved_size_ = options.size;
  } else {
    // Inaccessible addresses first, then the memory over them. What is left on both sides is kept:
    // it costs addresses only, and giving it back could fail.
    const std::uint64_t outer = options.size + 2 * guard + (align - base_page_size());
    void* const address = kernel().mmap(nullptr, outer, PROT_NONE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) {
      return fail_os(map_operation, Operand::size(outer), "reserving addresses");
    }
    mapping.reserved_ = static_cast<std::byte*>(address);
    mapping.reserved_size_ = outer;
    const std::uint64_t first = reinterpret_cast<std::uintptr_t>(address) + guard;
    const std::uint64_t skip = guard + ((options.congruent_to - first) & (align - 1));
    void* const place = mapping.reserved_ + skip;
    if (map_at(place, MAP_FIXED) == MAP_FAILED) return fail_map(backing, options);
    mapping.data_ = mapping.reserved_ + skip;
  }
  mapping.size_ = options.size;
  mapping.file_offset_ = file_offset;
  mapping.protection_ = options.protection;
  return mapping;
}

MemoryMapping::MemoryMapping(MemoryMapping&& other) noexcept
    : backing_(other.backing_),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      file_offset_(other.file_offset_),
      reserved_(std::exchange(other.reserved_, nullptr)),
      reserved_size_(std::exchange(other.reserved_size_, 0)),
      protection_(other.protection_),
      numa_policy_(std::move(other.numa_policy_)),
      advice_(std::move(other.advice_)) {}

MemoryMapping& MemoryMapping::operator=(MemoryMapping&& other) noexcept {
  if (this == &other) return *this;
  unmap();
  backing_ = other.backing_;
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  file_offset_ = other.file_offset_;
  reserved_ = std::exchange(other.reserved_, nullptr);
  reserved_size_ = std::exchange(other.reserved_size_, 0);
  protection_ = other.protection_;
  numa_policy_ = std::move(other.numa_policy_);
  advice_ = std::move(other.advice_);
  return *this;
}

MemoryMapping::~MemoryMapping() {
  unmap();
}

void MemoryMapping::unmap() noexcept {
  if (reserved_ != nullptr) kernel().munmap(reserved_, reserved_size_);
  data_ = reserved_ = nullptr;
  size_ = reserved_size_ = 0;
}

Result<void> MemoryMapping::close() {
  constexpr const char* operation = "MemoryMapping::close";
  if (!is_mapped()) return fail({.code = Errc::bad_state, .operation = operation});
  const Operand all = Operand::span(0, size_);
  Result<void> written;
  if (backing_.source() == MemorySource::file && backing_.is_shared() &&
      allows(protection_, Protection::write) &&
      retry([&] { return kernel().msync(data_, size_, MS_SYNC); }) != 0) {
    written = fail_os(operation, all, "msync");
  }
  if (kernel().munmap(reserved_, reserved_size_) != 0) {
    if (!written) return written;
    return fail_os(operation, all, "munmap");
  }
  reserved_ = nullptr;
  unmap();
  return written;
}

Result<void> MemoryMapping::check_part(const char* operation, std::uint64_t offset,
                                       std::uint64_t size) const {
  const Operand part = Operand::span(offset, size);
  if (!is_mapped()) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = part,
                 .reason = "the mapping is closed"});
  }
  if (size == 0) {
    return fail(
        {.code = Errc::zero_size, .operation = operation, .second = Operand::address(offset)});
  }
  if (offset > size_ || size > size_ - offset) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = part,
                 .second = Operand::size(size_)});
  }
  if (offset % page_size() != 0 || size % page_size() != 0) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = part,
                 .second = Operand::size(page_size()),
                 .reason = "offset, size and the page size"});
  }
  return {};
}

Result<void> MemoryMapping::msync() const {
  return msync(0, size_);
}

Result<void> MemoryMapping::msync(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::msync";
  if (auto ok = check_part(operation, offset, size); !ok) return ok;
  if (backing_.is_anonymous() || !backing_.is_shared()) return {};
  if (retry([&] { return kernel().msync(data_ + offset, size, MS_SYNC); }) != 0) {
    return fail_os(operation, Operand::span(offset, size), "msync");
  }
  return {};
}

Result<void> MemoryMapping::protect(Protection protection) {
  constexpr const char* operation = "MemoryMapping::protect";
  if (!is_mapped()) return fail({.code = Errc::bad_state, .operation = operation});
  if (kernel().mprotect(data_, size_, prot_of(protection)) != 0) {
    if (errno == EACCES) {
      return fail({.code = Errc::access_denied,
                   .operation = operation,
                   .first = Operand::span(0, size_),
                   .reason = "the descriptor is not open for writing"});
    }
    return fail_os(operation, Operand::span(0, size_), "mprotect");
  }
  protection_ = protection;
  return {};
}

Result<void> MemoryMapping::lock(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::lock";
  if (auto ok = check_part(operation, offset, size); !ok) return ok;
  if (retry([&] { return kernel().mlock(data_ + offset, size); }) == 0) return {};
  const int error = errno;
  // mlock marks the range before it brings the pages in, and leaves the mark when that fails.
  kernel().munlock(data_ + offset, size);
  const bool limit = error == ENOMEM || error == EPERM || error == EAGAIN;
  return fail_os(
      operation, Operand::span(offset, size),
      limit ? "more than RLIMIT_MEMLOCK or the free memory lets this process lock" : "mlock",
      error);
}

Result<void> MemoryMapping::unlock(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::unlock";
  if (auto ok = check_part(operation, offset, size); !ok) return ok;
  if (retry([&] { return kernel().munlock(data_ + offset, size); }) != 0) {
    return fail_os(operation, Operand::span(offset, size), "munlock");
  }
  return {};
}

}  // namespace vmspace
