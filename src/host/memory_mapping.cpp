// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/memory_mapping.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "vmspace/base/try.hpp"

#include "host/pinned_ranges.hpp"
#include "os/argument_checks.hpp"
#include "os/kernel_name.hpp"
#include "os/kernel_values.hpp"
#include "os/page_size.hpp"
#include "os/reserved_addresses.hpp"
#include "os/system_calls.hpp"
#include "spec/known_values.hpp"

namespace vmspace {

using detail::base_page_size;
using detail::fail_os;
using detail::kernel;
using detail::require_known;
using detail::require_multiple;
using detail::require_nonzero;
using detail::require_within;
using detail::retry;

namespace {

int prot_of(Protection protection) {
  int prot = PROT_NONE;
  if (allows(protection, Protection::read)) prot |= PROT_READ;
  if (allows(protection, Protection::write)) prot |= PROT_WRITE;
  if (allows(protection, Protection::execute)) prot |= PROT_EXEC;
  return prot;
}

constexpr const char* map_backing_operation = "MemoryMapping::map";

int flags_of(const Backing& backing, bool reserve) {
  int flags = backing.is_shared() ? MAP_SHARED : MAP_PRIVATE;
  // Nothing would then be reserved in the pool of hugetlb pages: an empty one would be SIGBUS
  // later.
  if (!reserve && !backing.is_hugetlb()) flags |= MAP_NORESERVE;
  if (backing.is_anonymous()) {
    flags |= MAP_ANONYMOUS;
    if (backing.is_hugetlb()) {
      flags |= MAP_HUGETLB | std::countr_zero(backing.page_size()) << MAP_HUGE_SHIFT;
    }
  }
  return flags;
}

Result<void> check_options(const Backing& backing, const MappingOptions& options) {
  constexpr const char* operation = map_backing_operation;
  const std::uint64_t page = backing.page_size();
  if (backing.source() == MemorySource::external) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .reason = "external memory is mapped already: MemoryMapping::adopt takes it"});
  }
  VMSPACE_TRY(require_nonzero(operation, options.size, Operand::address(options.offset)));
  VMSPACE_TRY(require_multiple(operation, Operand::size(options.size), page,
                               "the size must be a multiple of the backing's page size"));
  VMSPACE_TRY(require_multiple(operation, Operand::size(options.offset), page,
                               "the offset must be a multiple of the backing's page size"));
  VMSPACE_TRY(require_multiple(operation, Operand::address(options.congruent_to), page,
                               "congruent_to must be a multiple of the backing's page size"));
  if (options.align != 0) VMSPACE_TRY(detail::require_power_of_two(operation, options.align));
  VMSPACE_TRY(require_within(operation, options.offset, options.size, backing.size(),
                             "offset + size must lie within the backing"));
  VMSPACE_TRY(require_known(operation, options.protection, "unknown protection bits"));
  if (!options.arena && options.arena_offset != 0)
    return detail::invalid(operation, "arena_offset is only for a mapping in an arena");
  if (allows(options.protection, Protection::write) && !backing.is_writable()) {
    return fail({.code = Errc::access_denied,
                 .operation = operation,
                 .first = Operand::span(options.offset, options.size),
                 .reason = "the shared file is open for reading only, or sealed against writing"});
  }
  return detail::check_reservation(operation, options.size, options.align);
}

tl::unexpected<Error> fail_closed(const char* operation) {
  return fail({.code = Errc::bad_state, .operation = operation, .reason = "the mapping is closed"});
}

tl::unexpected<Error> fail_map(const Backing& backing, const MappingOptions& options) {
  const Operand size = Operand::size(options.size);
  if (errno == EACCES) {
    return fail({.code = Errc::access_denied,
                 .operation = map_backing_operation,
                 .first = size,
                 .reason = "the fd must be open for everything that the protection allows"});
  }
  if (backing.is_external() && (errno == EINVAL || errno == ENODEV)) {
    return fail({.code = Errc::unsupported,
                 .operation = map_backing_operation,
                 .first = Operand::span(backing.offset() + options.offset, options.size),
                 .reason = "the device does not map this part of its fd",
                 .os_errno = errno});
  }
  if (backing.is_hugetlb() && errno == ENOMEM) {
    return fail_os(map_backing_operation, size, "the hugetlb pool has too few free pages");
  }
  if (backing.is_hugetlb() && backing.is_anonymous() && errno == EINVAL) {
    return fail({.code = Errc::unsupported,
                 .operation = map_backing_operation,
                 .first = Operand::size(backing.page_size()),
                 .reason = "this kernel has no hugetlb pool of this page size",
                 .os_errno = errno});
  }
  return fail_os(map_backing_operation, size, "mmap");
}

void* map_at(const Backing& backing, const MappingOptions& options, void* address, int flags) {
  return kernel().mmap(address, options.size, prot_of(options.protection),
                       flags_of(backing, options.reserve) | flags, backing.fd(),
                       static_cast<off_t>(backing.offset() + options.offset));
}

/// Names anonymous memory in /proc/self/maps. That is for people: a kernel built without it
/// (CONFIG_ANON_VMA_NAME), or older than Linux 5.17, shows no name.
void show_name(void* data, const MappingOptions& options) {
  if (options.name.empty()) return;
  constexpr std::size_t limit = 79;  // ANON_VMA_NAME_MAX_LEN, less the null
  const detail::KernelName<limit> name(options.name);
  kernel().prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, reinterpret_cast<std::uintptr_t>(data),
                 options.size, reinterpret_cast<std::uintptr_t>(name.c_str()));
}

}  // namespace

MemoryMapping::MemoryMapping(const Backing& backing)
    : backing_(backing),
      pins_(backing.state_->pins ? backing.state_->pins
                                 : std::make_shared<detail::PinnedRanges>()) {}

Result<MemoryMapping> MemoryMapping::map(const Backing& backing, const MappingOptions& options) {
  VMSPACE_TRY(check_options(backing, options));
  MemoryMapping mapping(backing);
  const std::uint64_t align = std::max(options.align, backing.page_size());
  const auto is_in_place = [&](const void* address) {
    return ((reinterpret_cast<std::uintptr_t>(address) - options.congruent_to) & (align - 1)) == 0;
  };
  // The kernel aligns to the page size by itself, of hugetlb too. And it places one mapping right below
  // another, so that what follows a mapping of this alignment and size has them too.
  if (!options.arena && !options.guard_pages && options.size % align == 0) {
    void* const address = map_at(backing, options, nullptr, 0);
    if (address == MAP_FAILED) return fail_map(backing, options);
    if (is_in_place(address)) {
      mapping.reserved_ = static_cast<std::byte*>(address);
      mapping.reserved_size_ = options.size;
      mapping.data_ = mapping.reserved_;
    } else if (kernel().munmap(address, options.size) != 0) {
      return fail_os(map_backing_operation, Operand::size(options.size), "munmap");
    }
  }
  if (mapping.data_ == nullptr) {
    std::byte* const place = VMSPACE_TRY(mapping.reserve(options, align));
    VMSPACE_TRY(mapping.map_over(place, options));
    mapping.data_ = place;
  }
  mapping.size_ = options.size;
  mapping.file_offset_ = backing.offset() + options.offset;
  mapping.protection_ = options.protection;
  mapping.reserve_ = options.reserve;
  if (backing.is_anonymous()) show_name(mapping.data_, options);
  return mapping;
}

/// Takes the addresses of the mapping and of what surrounds it; gives where the mapping begins.
Result<std::byte*> MemoryMapping::reserve(const MappingOptions& options, std::uint64_t align) {
  const std::uint64_t guard = options.guard_pages ? base_page_size() : 0;
  if (options.arena) {
    // As a number: an offset outside the arena would make an invalid pointer.
    const std::uint64_t address =
        reinterpret_cast<std::uintptr_t>(options.arena->data()) + options.arena_offset;
    if (((address - options.congruent_to) & (align - 1)) != 0) {
      return fail({.code = Errc::misaligned,
                   .operation = map_backing_operation,
                   .first = Operand::address(options.arena_offset),
                   .second = Operand::size(align),
                   .reason = "the place in the arena must satisfy the alignment asked for"});
    }
    const std::uint64_t first = options.arena_offset - guard;  // wraps to one that no arena has
    const std::uint64_t outer = options.size + 2 * guard;
    VMSPACE_TRY(require_within(map_backing_operation, first, outer, options.arena->size(),
                               "the mapping, guard pages included, must lie within the arena"));
    const std::string_view name = options.name.empty() ? name_of(backing_.source()) : options.name;
    auto part =
        options.arena->parts().acquire_at(*Range::from_base_size(first, outer), std::string(name));
    if (!part) {
      return fail({.code = Errc::overlap,
                   .operation = map_backing_operation,
                   .first = part.error().first,
                   .second = part.error().second,
                   .reason = "another mapping is there",
                   .text = {{}, part.error().text.detail()}});
    }
    part_ = std::move(*part);
    arena_ = options.arena;
    reserved_ = arena_->data() + first;
    reserved_size_ = outer;
    return reserved_ + guard;
  }
  const std::uint64_t outer = options.size + 2 * guard + (align - base_page_size());
  void* const address = detail::reserve_addresses(nullptr, outer, 0);
  if (address == MAP_FAILED) {
    return fail_os(map_backing_operation, Operand::size(outer), "mmap of the reserved addresses");
  }
  reserved_ = static_cast<std::byte*>(address);
  reserved_size_ = outer;
  const std::uint64_t first = reinterpret_cast<std::uintptr_t>(address) + guard;
  // What the alignment leaves over is kept above, and given back below, where the next mapping then
  // is in place at once. Where that fails it only costs addresses.
  const std::uint64_t below = (options.congruent_to - first) & (align - 1);
  if (below != 0 && kernel().munmap(reserved_, below) == 0) {
    reserved_ += below;
    reserved_size_ -= below;
    return reserved_ + guard;
  }
  return reserved_ + guard + below;
}

/// Maps over reserved addresses, which stay reserved when that fails.
Result<void> MemoryMapping::map_over(std::byte* place, const MappingOptions& options) {
  // Kernels differ in whether a failing MAP_FIXED has removed what was there, and where it has,
  // another thread's memory may land in the hole. The failure to expect, a hugetlb pool with too
  // few pages, is therefore provoked elsewhere first.
  if (backing_.is_hugetlb()) {
    void* const trial = map_at(backing_, options, nullptr, 0);
    if (trial == MAP_FAILED) return fail_map(backing_, options);
    if (kernel().munmap(trial, options.size) != 0) {
      return fail_os(map_backing_operation, Operand::size(options.size), "munmap");
    }
  }
  if (map_at(backing_, options, place, MAP_FIXED) != MAP_FAILED) return {};
  const auto failure = fail_map(backing_, options);
  // Closes the hole, if there is one; where there is none this fails with EEXIST.
  detail::reserve_addresses(place, options.size, MAP_FIXED_NOREPLACE);
  return failure;
}

MemoryMapping::MemoryMapping(MemoryMapping&& other) noexcept
    : backing_(other.backing_),
      pins_(std::move(other.pins_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      file_offset_(other.file_offset_),
      reserved_(std::exchange(other.reserved_, nullptr)),
      reserved_size_(std::exchange(other.reserved_size_, 0)),
      owner_(std::move(other.owner_)),
      arena_(std::exchange(other.arena_, std::nullopt)),
      part_(std::exchange(other.part_, std::nullopt)),
      protection_(other.protection_),
      reserve_(other.reserve_),
      numa_policy_(std::move(other.numa_policy_)),
      dontfork_process_(std::exchange(other.dontfork_process_, 0)),
      advice_(std::move(other.advice_)) {}

MemoryMapping& MemoryMapping::operator=(MemoryMapping&& other) noexcept {
  if (this == &other) return *this;
  unmap_or_abandon();
  backing_ = other.backing_;
  pins_ = std::move(other.pins_);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  file_offset_ = other.file_offset_;
  reserved_ = std::exchange(other.reserved_, nullptr);
  reserved_size_ = std::exchange(other.reserved_size_, 0);
  owner_ = std::move(other.owner_);
  arena_ = std::exchange(other.arena_, std::nullopt);
  part_ = std::exchange(other.part_, std::nullopt);
  protection_ = other.protection_;
  reserve_ = other.reserve_;
  numa_policy_ = std::move(other.numa_policy_);
  dontfork_process_ = std::exchange(other.dontfork_process_, 0);
  advice_ = std::move(other.advice_);
  return *this;
}

MemoryMapping::~MemoryMapping() {
  unmap_or_abandon();
}

void MemoryMapping::unmap_or_abandon() noexcept {
  if (!unmap() && part_) part_->abandon();
}

bool MemoryMapping::is_kept_from_this_process() const noexcept {
  return dontfork_process_ != 0 && dontfork_process_ != ::getpid();
}

/// False, with errno, when the kernel refuses; all is as it was then.
bool MemoryMapping::unmap() noexcept {
  if (is_kept_from_this_process()) {
    if (part_) part_->abandon();
    if (arena_) arena_->leave_addresses();
    reserved_ = nullptr;
  }
  if (reserved_ == nullptr) {  // something else unmaps it, or has
    data_ = nullptr;
    size_ = reserved_size_ = 0;
    part_.reset();
    arena_.reset();
    owner_.reset();
    return true;
  }
  if (arena_) {
    // In an arena the addresses stay reserved; in one step, so that nobody gets between.
    if (detail::reserve_addresses(reserved_, reserved_size_, MAP_FIXED) == MAP_FAILED) return false;
    part_.reset();
    arena_.reset();
  } else if (kernel().munmap(reserved_, reserved_size_) != 0) {
    return false;
  }
  data_ = reserved_ = nullptr;
  size_ = reserved_size_ = 0;
  return true;
}

Result<void> MemoryMapping::close() {
  constexpr const char* operation = "MemoryMapping::close";
  if (!is_mapped()) return fail_closed(operation);
  const Operand all = Operand::span(0, size_);
  Result<void> written;
  if (backing_.source() == MemorySource::file && backing_.is_shared() &&
      retry([&] { return kernel().msync(data_, size_, MS_SYNC); }) != 0) {
    written = fail_os(operation, all, "msync");
  }
  if (!unmap() && written) return fail_os(operation, all, "munmap");
  return written;
}

Result<void> MemoryMapping::check_part(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::check_part";
  if (!is_mapped()) return fail_closed(operation);
  VMSPACE_TRY(require_nonzero(operation, size, Operand::address(offset)));
  VMSPACE_TRY(
      require_within(operation, offset, size, size_, "offset + size must lie within the mapping"));
  VMSPACE_TRY(require_multiple(operation, Operand::address(offset), page_size(),
                               "the offset must be a multiple of the page size"));
  return require_multiple(operation, Operand::size(size), page_size(),
                          "the size must be a multiple of the page size");
}

Result<void> MemoryMapping::msync() const {
  return msync(0, size_);
}

Result<void> MemoryMapping::msync(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::msync";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  if (backing_.is_anonymous() || backing_.is_external() || !backing_.is_shared()) return {};
  if (retry([&] { return kernel().msync(data_ + offset, size, MS_SYNC); }) != 0) {
    return fail_os(operation, Operand::span(offset, size), "msync");
  }
  return {};
}

Result<void> MemoryMapping::protect(Protection protection) {
  constexpr const char* operation = "MemoryMapping::protect";
  if (!is_mapped()) return fail_closed(operation);
  VMSPACE_TRY(require_known(operation, protection, "unknown protection bits"));
  if (kernel().mprotect(data_, size_, prot_of(protection)) != 0) {
    if (errno == EACCES) {
      return fail({.code = Errc::access_denied,
                   .operation = operation,
                   .first = Operand::span(0, size_),
                   .reason = "the shared file must be open for writing"});
    }
    return fail_os(operation, Operand::span(0, size_), "mprotect");
  }
  protection_ = protection;
  return {};
}

Result<void> MemoryMapping::set_accessible(std::uint64_t offset, std::uint64_t size,
                                           bool accessible) const {
  constexpr const char* operation = "MemoryMapping::set_accessible";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  const int protection = accessible ? prot_of(protection_) : PROT_NONE;
  if (kernel().mprotect(data_ + offset, size, protection) == 0) return {};
  return fail_os(operation, Operand::span(offset, size), "mprotect");
}

Result<void> MemoryMapping::lock(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::lock";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  VMSPACE_TRY(require_own_pages(operation));
  if (retry([&] { return kernel().mlock(data_ + offset, size); }) == 0) return {};
  const int error = errno;
  // mlock marks the range before it faults the pages in, and leaves the mark when that fails.
  kernel().munlock(data_ + offset, size);
  const bool limit = error == ENOMEM || error == EPERM || error == EAGAIN;
  return fail_os(
      operation, Operand::span(offset, size),
      limit ? "RLIMIT_MEMLOCK or the free memory does not allow locking this much" : "mlock",
      error);
}

Result<void> MemoryMapping::unlock(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::unlock";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  if (retry([&] { return kernel().munlock(data_ + offset, size); }) != 0) {
    return fail_os(operation, Operand::span(offset, size), "munlock");
  }
  return {};
}

}  // namespace vmspace
