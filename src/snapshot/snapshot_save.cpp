// SPDX-License-Identifier: Apache-2.0
//
// Guest memory to a file.

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"

#include "host/fault_owner.hpp"
#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace {

namespace {

using detail::Progress;
using detail::snapshot_page;

constexpr const char* save_operation = "save_snapshot";

/// How much is copied at once where a copy is needed.
constexpr std::uint64_t copy_size = std::uint64_t{1} << 20;

/// Saves parts of one region, in ascending order.
class RegionSaver {
 public:
  RegionSaver(const MemoryRegion& region, SnapshotWriter& writer, bool sparse, Progress& progress)
      : region_(region),
        writer_(writer),
        sparse_(sparse),
        progress_(progress),
        scan_(region.mapping()) {}

  Result<void> save(Extent part) {
    const bool is_there = part.size != region_.size() && is_resident(part);
    for (std::uint64_t at = part.offset; at < part.end();) {
      Extent used{at, part.end() - at};
      if (!is_there) used = VMSPACE_TRY(next_used(at, part.end()));
      VMSPACE_TRY(save_zeros({at, used.offset - at}));
      progress_.done(used.offset - at);
      for (at = used.offset; at < used.end();) {
        const Extent chunk{at, std::min(detail::snapshot_chunk, used.end() - at)};
        VMSPACE_TRY(save_used(chunk));
        progress_.done(chunk.size);
        at += chunk.size;
      }
    }
    return {};
  }

 private:
  /// Whether all of a small part can be touched without allocating a page. So it is with nearly all
  /// pages that were written of late, and the page tables say so at less cost than a file says where
  /// its data end.
  [[nodiscard]] bool is_resident(Extent part) const {
    std::array<unsigned char, 64> pages;
    if (part.size > pages.size() * snapshot_page ||
        detail::present_after(region_, part.offset, part.size) != part.size) {
      return false;
    }
    auto* const first = region_.host_base() + part.offset;
    if (detail::kernel().mincore(first, part.size, pages.data()) != 0) return false;
    const std::uint64_t page = detail::base_page_size();
    // The other bits are undefined (mincore(2)).
    return std::ranges::all_of(std::span(pages).first((part.size + page - 1) / page),
                               [](unsigned char flags) { return (flags & 1) != 0; });
  }

  /// The first part of [at, end) that may hold anything but zeros; empty at `end`.
  Result<Extent> next_used(std::uint64_t at, std::uint64_t end) {
    while (at < end) {
      // What is not present is not looked at: it may not even be accessible.
      at += detail::absent_after(region_, at, end - at);
      const std::uint64_t stop = at + detail::present_after(region_, at, end - at);
      if (at < stop && used_.end() <= at) {
        // As far as the kernel sees at once, since one look serves many small parts. Pages of a
        // hugetlb file are read to find out.
        const bool is_costly = region_.backing().is_hugetlb();
        const std::uint64_t ahead = (is_costly ? end : region_.size()) - at;
        used_ = VMSPACE_TRY_IN(save_operation,
                               scan_.next(at, at + detail::present_after(region_, at, ahead)));
      }
      const std::uint64_t begin = std::max(at, used_.offset);
      const std::uint64_t last = std::min(stop, used_.end());
      if (begin < last) return Extent{begin, last - begin};
      at = stop;
    }
    return Extent{end, 0};
  }

  [[nodiscard]] GuestAddress address(std::uint64_t offset) const {
    return GuestAddress(region_.base().value() + offset);
  }

  Result<void> save_zeros(Extent part) {
    if (sparse_) return writer_.write_zeros({address(part.offset), part.size});
    if (zeros_.empty()) zeros_.resize(copy_size);
    for (std::uint64_t at = part.offset; at < part.end();) {
      const std::uint64_t size = std::min(copy_size, part.end() - at);
      VMSPACE_TRY(writer_.write(address(at), std::span(zeros_).first(size)));
      at += size;
    }
    return {};
  }

  /// Runs of pages that are zeros and of those that aren't.
  Result<void> save_used(Extent part) {
    const std::byte* const memory = region_.host_base();
    for (std::uint64_t at = part.offset; at < part.end();) {
      std::uint64_t data = at;
      std::uint64_t stop = part.end();
      if (sparse_) {
        VMSPACE_TRY(detail::touch_region(save_operation, region_, at, part.end() - at, [&] {
          while (data < part.end() && is_zero({memory + data, snapshot_page}))
            data += snapshot_page;
          stop = data;
          while (stop < part.end() && !is_zero({memory + stop, snapshot_page}))
            stop += snapshot_page;
        }));
      }
      if (data != at) VMSPACE_TRY(save_zeros({at, data - at}));
      VMSPACE_TRY(save_data({data, stop - data}));
      at = stop;
    }
    return {};
  }

  Result<void> save_data(Extent part) {
    if (!region_.may_fault()) {
      return writer_.write(address(part.offset), {region_.host_base() + part.offset, part.size});
    }
    // What may vanish while it is written is copied first, where a page that is gone is an error.
    copy_.resize(copy_size);
    for (std::uint64_t at = part.offset; at < part.end();) {
      const std::uint64_t size = std::min(copy_size, part.end() - at);
      VMSPACE_TRY(detail::touch_region(save_operation, region_, at, size, [&] {
        std::memcpy(copy_.data(), region_.host_base() + at, size);
      }));
      VMSPACE_TRY(writer_.write(address(at), std::span(copy_).first(size)));
      at += size;
    }
    return {};
  }

  const MemoryRegion& region_;
  SnapshotWriter& writer_;
  bool sparse_;
  Progress& progress_;
  PageScan scan_;
  Extent used_;  ///< what was found last: nothing between where it was looked for and this
  std::vector<std::byte> copy_;
  std::vector<std::byte> zeros_;
};

/// The number of the region that holds an address; that of all regions when there is none.
std::size_t region_at(const GuestMemory& memory, GuestAddress at) {
  const auto regions = memory.regions();
  const auto base = [](const MemoryRegionPtr& region) { return region->base(); };
  const auto after = std::ranges::upper_bound(regions, at, {}, base);
  if (after == regions.begin() || !(*(after - 1))->guest_range().contains(at))
    return regions.size();
  return static_cast<std::size_t>(after - 1 - regions.begin());
}

/// What is to be saved of each region, sorted and coalesced: pages of 4096 bytes. Of changes, without
/// what is absent.
using Parts = std::vector<std::vector<Extent>>;

Result<Parts> parts_of(const GuestMemory& memory, const std::optional<SnapshotChanges>& changes) {
  Parts parts(memory.regions().size());
  if (!changes) {
    for (std::size_t i = 0; i < parts.size(); ++i)
      parts[i].push_back({0, memory.regions()[i]->size()});
    return parts;
  }
  std::vector<GuestRange> ranges(changes->ranges.begin(), changes->ranges.end());
  std::ranges::sort(ranges, {}, &GuestRange::base);
  for (const GuestRange& range : ranges) {
    // It may go on in the regions that follow without a gap.
    std::uint64_t at = range.base.value();
    for (std::uint64_t left = range.size; left != 0;) {
      const std::size_t found = region_at(memory, GuestAddress(at));
      if (found == parts.size() || !range.last()) {
        return fail({.code = Errc::out_of_bounds,
                     .operation = save_operation,
                     .first = detail::operand(range),
                     .reason = "what has changed must be memory of a region"});
      }
      const MemoryRegion& region = *memory.regions()[found];
      const std::uint64_t offset = at - region.base().value();
      const std::uint64_t size = std::min(left, region.size() - offset);
      const std::uint64_t begin = offset / snapshot_page * snapshot_page;
      const std::uint64_t end = (offset + size + snapshot_page - 1) / snapshot_page * snapshot_page;
      std::vector<Extent>& own = parts[found];
      detail::for_each_present_part(
          region, begin, end - begin, [&](std::uint64_t first, std::uint64_t bytes) {
            if (!own.empty() && first <= own.back().end()) {
              own.back().size = std::max(own.back().end(), first + bytes) - own.back().offset;
            } else {
              own.push_back({first, bytes});
            }
          });
      at += size;
      left -= size;
    }
  }
  return parts;
}

/// What is absent is zeros, also where the parent has something else.
Result<void> save_absent(const MemoryRegion& region, SnapshotWriter& writer) {
  Result<void> done;
  detail::for_each_absent_part(region, [&](std::uint64_t offset, std::uint64_t size) {
    if (done) done = writer.write_zeros({GuestAddress(region.base().value() + offset), size});
  });
  return done;
}

}  // namespace

Result<SavedSnapshot> save_snapshot(const GuestMemory& memory, int fd, const SaveOptions& options) {
  for (const auto& region : memory.regions()) {
    VMSPACE_TRY(detail::require_unclaimed(save_operation, region->mapping(),
                                          detail::operand(region->guest_range()),
                                          "the memory has not come yet, or is being saved"));
  }
  const Parts parts = VMSPACE_TRY(parts_of(memory, options.changes));
  SnapshotWriterOptions how{.parent = {}, .checksums = options.checksums};
  if (options.changes) how.parent = options.changes->parent;
  SnapshotWriter writer = VMSPACE_TRY_IN(save_operation, SnapshotWriter::create(fd, memory, how));
  std::uint64_t total = 0;
  for (const std::vector<Extent>& own : parts) {
    for (const Extent& part : own)
      total += part.size;
  }
  Progress progress(options.progress, total);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (options.changes) VMSPACE_TRY_IN(save_operation, save_absent(*memory.regions()[i], writer));
    if (parts[i].empty()) continue;
    RegionSaver saver(*memory.regions()[i], writer, options.sparse, progress);
    for (const Extent& part : parts[i])
      VMSPACE_TRY_IN(save_operation, saver.save(part));
  }
  const SnapshotId id = VMSPACE_TRY_IN(save_operation, writer.finish());
  return SavedSnapshot{.id = id, .stored = writer.stored()};
}

}  // namespace vmspace
