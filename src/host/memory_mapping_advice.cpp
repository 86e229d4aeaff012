// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: whatever madvise(2) changes without changing contents.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_mapping.hpp"

#include "host/known_values.hpp"
#include "os/argument_checks.hpp"
#include "os/kernel_values.hpp"
#include "os/page_size.hpp"
#include "os/proc_file.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;
using detail::retry;

namespace {

/// Whether this setting of transparent huge pages ends in `never` or `deny`. The kernel marks the
/// value in force: `always [madvise] never`. Of the two settings, the one for the page size
/// decides, unless it says `inherit` or the kernel does not have it (before Linux 6.8).
bool huge_pages_forbidden(const char* setting) {
  const std::string root = "/sys/kernel/mm/transparent_hugepage/";
  const std::string kib = std::to_string(detail::huge_page_size() / 1024);
  std::array<char, 128> buffer;
  std::string_view text = detail::read_start((root + "hugepages-" + kib + "kB/" + setting).c_str(),
                                             buffer.data(), buffer.size());
  if (text.empty() || text.find("[inherit]") != text.npos) {
    text = detail::read_start((root + setting).c_str(), buffer.data(), buffer.size());
  }
  // Where /sys is not mounted there is no file to forbid it, and the kernel is asked.
  return text.find("[never]") != text.npos || text.find("[deny]") != text.npos;
}

/// Whether a whole huge page lies inside.
bool has_huge_page(const std::byte* data, std::uint64_t size) {
  const std::uint64_t huge = detail::huge_page_size();
  const std::uint64_t skipped = (0 - reinterpret_cast<std::uintptr_t>(data)) & (huge - 1);
  return size >= huge && size - huge >= skipped;
}

/// EINVAL for a whole mapping: a kernel that was built without what the advice is about.
Result<Applied> applied_unless_unknown(const Result<void>& advised) {
  if (advised) return Applied::applied;
  if (advised.error().os_errno == EINVAL) return Applied::not_applicable;
  return fail(advised.error());
}

int madvise_value(Advice advice) {
  switch (advice) {
    case Advice::normal: return MADV_NORMAL;
    case Advice::random: return MADV_RANDOM;
    case Advice::sequential: return MADV_SEQUENTIAL;
    case Advice::cold: return MADV_COLD;
    case Advice::page_out: return MADV_PAGEOUT;
    case Advice::no_huge_pages: return MADV_NOHUGEPAGE;
  }
  return MADV_NORMAL;
}

}  // namespace

Result<void> MemoryMapping::give_advice(const char* operation, int advice) {
  VMSPACE_TRY_IN(operation, check_part(0, size_));
  advice_.reserve(advice_.size() + 1);
  if (retry([&] { return kernel().madvise(data_, size_, advice); }) != 0) {
    return fail_os(operation, Operand::span(0, size_), "madvise");
  }
  if (std::find(advice_.begin(), advice_.end(), advice) == advice_.end()) {
    advice_.push_back(advice);
  }
  return {};
}

Result<Applied> MemoryMapping::use_hugepages() {
  constexpr const char* operation = "MemoryMapping::use_hugepages";
  VMSPACE_TRY_IN(operation, check_part(0, size_));
  const PageKind kind = backing_.page_kind();
  // The file system decides what a page cache is made of.
  if (kind == PageKind::hugetlb || kind == PageKind::file || kind == PageKind::external) {
    return Applied::not_applicable;
  }
  if (!has_huge_page(data_, size_)) return Applied::not_applicable;
  if (huge_pages_forbidden(kind == PageKind::shmem ? "shmem_enabled" : "enabled")) {
    return Applied::not_applicable;
  }
  return applied_unless_unknown(give_advice(operation, MADV_HUGEPAGE));
}

Result<Applied> MemoryMapping::collapse(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::collapse";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  if (backing_.is_hugetlb() || backing_.is_external()) return Applied::not_applicable;
  if (!has_huge_page(data_ + offset, size)) return Applied::not_applicable;
  // A huge page of a file is mapped as one only where file and address agree modulo its size.
  const std::uint64_t apart = reinterpret_cast<std::uintptr_t>(data_) - file_offset_;
  if (!backing_.is_anonymous() && apart % detail::huge_page_size() != 0) {
    return Applied::not_applicable;
  }
  if (retry([&] { return kernel().madvise(data_ + offset, size, MADV_COLLAPSE); }) == 0) {
    return Applied::applied;
  }
  const Operand part = Operand::span(offset, size);
  switch (errno) {
    case EINVAL:
      return fail({.code = Errc::unsupported,
                   .operation = operation,
                   .first = part,
                   .reason =
                       "this kernel (before Linux 6.1), or this kind of memory, can't collapse "
                       "pages into huge ones",
                   .os_errno = EINVAL});
    case ENOMEM:
      return fail_os(operation, part,
                     "no huge page is free, or the memory cgroup is full: free or compact memory, "
                     "then try again");
    case EBUSY:
    case EAGAIN:
      return fail_os(operation, part,
                     "some pages are in use, such as pinned for DMA or under I/O: try again later");
    default: return fail_os(operation, part, "madvise(MADV_COLLAPSE)");
  }
}

Result<void> MemoryMapping::use_dontfork() {
  VMSPACE_TRY(give_advice("MemoryMapping::use_dontfork", MADV_DONTFORK));
  dontfork_process_ = ::getpid();
  return {};
}

Result<void> MemoryMapping::use_dontdump() {
  return give_advice("MemoryMapping::use_dontdump", MADV_DONTDUMP);
}

Result<Applied> MemoryMapping::use_mergeable() {
  constexpr const char* operation = "MemoryMapping::use_mergeable";
  VMSPACE_TRY_IN(operation, check_part(0, size_));
  // KSM merges anonymous pages and those that a private mapping has written, never shared ones.
  if (backing_.is_shared() || backing_.is_hugetlb()) return Applied::not_applicable;
  return applied_unless_unknown(give_advice(operation, MADV_MERGEABLE));
}

Result<void> MemoryMapping::advise(std::uint64_t offset, std::uint64_t size, Advice advice) const {
  constexpr const char* operation = "MemoryMapping::advise";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  VMSPACE_TRY(detail::require_known(operation, advice, "not a value of Advice"));
  if (retry([&] { return kernel().madvise(data_ + offset, size, madvise_value(advice)); }) == 0) {
    return {};
  }
  if (errno == EINVAL) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = Operand::span(offset, size),
                 .reason = "this kernel does not accept this advice for this memory",
                 .os_errno = EINVAL});
  }
  return fail_os(operation, Operand::span(offset, size), "madvise");
}

Result<void> MemoryMapping::prefetch(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "MemoryMapping::prefetch";
  VMSPACE_TRY_IN(operation, check_part(offset, size));
  if (retry([&] { return kernel().madvise(data_ + offset, size, MADV_WILLNEED); }) != 0) {
    return fail_os(operation, Operand::span(offset, size), "madvise(MADV_WILLNEED)");
  }
  return {};
}

}  // namespace vmspace
