// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/page_scan.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/zero_test.hpp"

#include "host/guarded_access.hpp"
#include "host/present_pages.hpp"
#include "host/written_pages.hpp"
#include "os/kernel_values.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::base_page_size;
using detail::fail_os;
using detail::kernel;
using detail::PresentPages;
using detail::retry;

namespace {

constexpr const char* next_operation = "PageScan::next";

/// How much of a hugetlb page is read at a time to find out whether it is all zeros: of most pages
/// that are not, the first bytes tell.
constexpr std::uint64_t probe = std::uint64_t{64} << 10;

/// How much memory is looked at together for written pages.
constexpr std::uint64_t written_window = std::uint64_t{1} << 30;

}  // namespace

class PageScan::State {
 public:
  State(const MemoryMapping& mapping, PageQuery query);

  [[nodiscard]] Result<Extent> next(std::uint64_t from, std::uint64_t end);

 private:
  [[nodiscard]] Result<void> check(std::uint64_t from, std::uint64_t end) const;
  [[nodiscard]] Result<Extent> query_pages(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> next_data(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> next_in_hugetlbfs(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> populate(Extent part) const;
  [[nodiscard]] Result<Extent> next_present(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> next_zero(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> next_written(std::uint64_t from, std::uint64_t end);

  const MemoryMapping& mapping_;
  PageQuery query_;
  std::optional<PresentPages> tables_;
  std::optional<PresentPages> cache_;
  bool in_file_ = false;  ///< there is a file, whose data need not be mapped here
  std::vector<std::byte> buffer_;
  std::optional<detail::WrittenPages> written_;
  Extent window_;  ///< what `found_` is about
  std::vector<Extent> found_;
};

PageScan::PageScan(const MemoryMapping& mapping, PageQuery query)
    : state_(std::make_unique<State>(mapping, query)) {}
PageScan::PageScan(PageScan&& other) noexcept = default;
PageScan& PageScan::operator=(PageScan&& other) noexcept = default;
PageScan::~PageScan() = default;

Result<Extent> PageScan::next(std::uint64_t from, std::uint64_t end) {
  return state_->next(from, end);
}

PageScan::State::State(const MemoryMapping& mapping, PageQuery query)
    : mapping_(mapping), query_(query) {
  using Source = PresentPages::Source;
  const Backing& backing = mapping.backing();
  const bool shared = backing.is_shared();
  const std::byte* const data = mapping.data();
  if (query != PageQuery::data) {
    // As MemoryMapping::residency() counts: all anonymous memory is in page tables, which also tell the
    // page of zeros from others; of the rest, every page in the page cache counts.
    const bool in_tables = backing.page_kind() == PageKind::anonymous;
    tables_.emplace(data, in_tables ? Source::scan : Source::incore, false);
    return;
  }
  in_file_ = !backing.is_anonymous() && !backing.is_external();
  if (backing.is_external()) tables_.emplace(data, Source::nothing, false);
  if (!shared) tables_.emplace(data, Source::scan, !backing.is_hugetlb());
  if (backing.is_hugetlb()) {
    if (shared && !in_file_) tables_.emplace(data, Source::nothing, false);
  } else if (backing.page_kind() == PageKind::shmem && shared && !in_file_) {
    cache_.emplace(data, Source::incore, true);
  } else if (backing.page_kind() == PageKind::file) {
    // The cache is asked before the file: what is written back and dropped is no longer in the
    // one, and is data in the other by then.
    cache_.emplace(data, Source::incore, false);
  }
}

Result<void> PageScan::State::check(std::uint64_t from, std::uint64_t end) const {
  const auto refuse = [&](Errc code, const char* reason) {
    return fail({.code = code,
                 .operation = next_operation,
                 .first = Operand::address(from),
                 .second = Operand::address(end),
                 .reason = reason});
  };
  if (!mapping_.is_mapped()) return refuse(Errc::bad_state, "the mapping is closed");
  if (from > end || end > mapping_.size())
    return refuse(Errc::out_of_bounds, "the part must lie in the mapping");
  if (query_ == PageQuery::data) return {};
  if (mapping_.backing().is_external() || mapping_.backing().source() == MemorySource::device)
    return refuse(Errc::unsupported,
                  "the kernel does not tell about pages that it does not manage");
  if (query_ == PageQuery::zero && !allows(mapping_.protection(), Protection::read))
    return refuse(Errc::access_denied, "the memory must be readable");
  return {};
}

Result<Extent> PageScan::State::next(std::uint64_t from, std::uint64_t end) {
  VMSPACE_TRY(check(from, end));
  // The kernel is asked about whole pages.
  const std::uint64_t page = base_page_size();
  const std::uint64_t first = from / page * page;
  const std::uint64_t last = (end + page - 1) / page * page;
  const Extent found = VMSPACE_TRY(query_pages(first, last));
  const std::uint64_t begin = std::max(from, found.offset);
  const std::uint64_t stop = std::min(end, found.end());
  return begin < stop ? Extent{begin, stop - begin} : Extent{end, 0};
}

Result<Extent> PageScan::State::query_pages(std::uint64_t from, std::uint64_t end) {
  switch (query_) {
    case PageQuery::data: return next_data(from, end);
    case PageQuery::present: return next_present(from, end);
    case PageQuery::zero: return next_zero(from, end);
    case PageQuery::written: return next_written(from, end);
  }
  return fail({.code = Errc::invalid_argument,
               .operation = next_operation,
               .first = Operand::number(static_cast<std::uint64_t>(query_)),
               .reason = "unknown query"});
}

Result<Extent> PageScan::State::next_data(std::uint64_t from, std::uint64_t end) {
  Extent found{end, 0};
  // Each is asked about what lies before that which is known.
  const auto ask = [&](std::optional<PresentPages>& pages) {
    if (!pages) return;
    const Extent earlier = pages->next(from, found.offset);
    if (earlier.size != 0) found = earlier;
  };
  ask(tables_);
  const bool certain = !mapping_.backing().is_hugetlb() || !tables_ || tables_->is_certain();
  if (found.size != 0 && !certain) return populate(found);
  ask(cache_);
  if (!in_file_ || found.offset == from) return found;
  const std::uint64_t gap_end = found.offset;
  if (mapping_.backing().is_hugetlb()) {
    const auto present = next_in_hugetlbfs(from, gap_end);
    return !present || present->size != 0 ? present : found;
  }
  const std::uint64_t in_file = mapping_.file_offset();
  const Extent data = VMSPACE_TRY(detail::next_file_data(next_operation, Errc::out_of_bounds,
                                                         mapping_.backing().fd(), in_file + from,
                                                         in_file + gap_end));
  if (data.size == 0) return found;
  // Holes are made of the file system's blocks; pages are what is looked at here.
  const std::uint64_t page = base_page_size();
  const std::uint64_t begin = (data.offset - in_file) / page * page;
  const std::uint64_t stop = (data.end() - in_file + page - 1) / page * page;
  return Extent{begin, std::min(stop, gap_end) - begin};
}

/// The next page of a hugetlb file that is not all zeros, mapped here or not.
Result<Extent> PageScan::State::next_in_hugetlbfs(std::uint64_t from, std::uint64_t end) {
  buffer_.resize(probe);
  const std::uint64_t page = mapping_.page_size();
  while (from < end) {
    const std::uint64_t size = std::min(probe, end - from);
    const ssize_t got = retry([&] {
      return kernel().pread(mapping_.backing().fd(), buffer_.data(), size,
                            static_cast<off_t>(mapping_.file_offset() + from));
    });
    if (got < 0)
      return fail_os(next_operation, Operand::span(from, size), "pread of a hugetlb page");
    // Whole words; a call that gives fewer bytes has come to the end of the file.
    if (static_cast<std::uint64_t>(got) < size) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = next_operation,
                   .first = Operand::span(from, size),
                   .reason = "the file is shorter than the memory mapped from it"});
    }
    if (!is_zero(std::span(buffer_).first(size))) {
      return Extent{from, std::min(end, from / page * page + page) - from};
    }
    from += size;
  }
  return Extent{end, 0};
}

/// The first page of a part, which may be touched then.
Result<Extent> PageScan::State::populate(Extent part) const {
  const std::uint64_t page = mapping_.page_size();
  const std::uint64_t begin = part.offset / page * page;
  if (retry([&] { return kernel().madvise(mapping_.data() + begin, page, MADV_POPULATE_READ); }) !=
      0) {
    if (errno == EINVAL) {
      return fail({.code = Errc::unsupported,
                   .operation = next_operation,
                   .first = Operand::span(begin, page),
                   .reason = "this kernel can't read memory that may be absent without a signal "
                             "(Linux 5.14 and later can)",
                   .os_errno = errno});
    }
    return fail_os(next_operation, Operand::span(begin, page),
                   "reading memory that may be absent needs a free page of the hugetlb pool: "
                   "enlarge the pool or populate the memory first");
  }
  return Extent{part.offset, std::min(part.end(), begin + page) - part.offset};
}

Result<Extent> PageScan::State::next_present(std::uint64_t from, std::uint64_t end) {
  const Extent found = tables_->next(from, end);
  if (tables_->is_certain()) return found;
  return fail_os(next_operation, Operand::span(from, end - from), "mincore", tables_->error());
}

Result<Extent> PageScan::State::next_zero(std::uint64_t from, std::uint64_t end) {
  const std::uint64_t page = mapping_.page_size();
  while (from < end) {
    const Extent present = VMSPACE_TRY(next_present(from, end));
    std::uint64_t begin = present.offset;
    std::uint64_t stop = begin;
    const auto page_end = [&](std::uint64_t at) {
      return std::min(present.end(), at / page * page + page);
    };
    const auto is_zero_at = [&](std::uint64_t at) {
      return is_zero({mapping_.data() + at, page_end(at) - at});
    };
    const std::byte* const fault = detail::run_guarded(mapping_.data() + begin, present.size, [&] {
      while (begin < present.end() && !is_zero_at(begin))
        begin = page_end(begin);
      stop = begin;
      while (stop < present.end() && is_zero_at(stop))
        stop = page_end(stop);
    });
    if (fault != nullptr) {
      return fail({.code = Errc::fault,
                   .operation = next_operation,
                   .first = Operand::span(present.offset, present.size),
                   .second = Operand::size(static_cast<std::uint64_t>(fault - mapping_.data())),
                   .reason = "a page is gone: its file was truncated, or a hole punched"});
    }
    if (begin < stop) return Extent{begin, stop - begin};
    from = present.size == 0 ? end : present.end();
  }
  return Extent{end, 0};
}

Result<Extent> PageScan::State::next_written(std::uint64_t from, std::uint64_t end) {
  if (!written_) written_ = VMSPACE_TRY(detail::WrittenPages::open(next_operation, mapping_));
  while (from < end) {
    if (from < window_.offset || from >= window_.end()) {
      found_.clear();
      window_ = {};  // nothing is known if this fails
      const Extent window{from, std::min(written_window, mapping_.size() - from)};
      VMSPACE_TRY(written_->find(next_operation, window, detail::WrittenPages::Mode::look, found_));
      window_ = window;
    }
    const auto found = std::ranges::upper_bound(found_, from, {}, &Extent::end);
    if (found != found_.end()) {
      const std::uint64_t begin = std::max(from, found->offset);
      if (begin >= end) break;
      return Extent{begin, std::min(end, found->end()) - begin};
    }
    from = window_.end();
  }
  return Extent{end, 0};
}

}  // namespace vmspace
