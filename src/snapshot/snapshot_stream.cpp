// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_stream.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/endian.hpp"

#include "base/corrupt.hpp"
#include "memory/present_parts.hpp"
#include "snapshot/content_checksum.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"
#include "snapshot/snapshot_target.hpp"

namespace vmspace::detail {

namespace {

/// Restores from records as they come.
class StreamRestore {
 public:
  StreamRestore(const GuestMemory& memory, int fd, const SnapshotProgress& report)
      : memory_(memory), fd_(fd), progress_(report, whole_size(memory)) {}

  Result<void> run() {
    VMSPACE_TRY(read_head());
    for (;;) {
      const RecordHeader record = VMSPACE_TRY(read_object<RecordHeader>());
      const std::uint64_t sum = record_checksum(record, before_);
      if (record.checksum != sum)
        return corrupt(restoring, "the checksum of a record does not match",
                       Operand::number(records_));
      before_ = sum;
      if (record.reserved != 0) return corrupt(restoring, "reserved bytes must be 0");
      const auto kind = static_cast<RecordKind>(record.kind.value());
      if (kind == RecordKind::end) {
        VMSPACE_TRY(read_end(record));
        return clear_rest();
      }
      VMSPACE_TRY(read_record(kind, record.base, record.size));
    }
  }

 private:
  template <typename T>
  Result<T> read_object() {
    T object;
    VMSPACE_TRY(receive_all(restoring, fd_, std::as_writable_bytes(std::span(&object, 1))));
    position_ += sizeof object;
    return object;
  }
  Result<void> receive(std::span<std::byte> to) {
    VMSPACE_TRY(receive_all(restoring, fd_, to));
    position_ += to.size();
    return {};
  }

  Result<void> read_head() {
    std::vector<std::byte> bytes(sizeof(SnapshotPrefix));
    VMSPACE_TRY(receive(bytes));
    const std::size_t size = VMSPACE_TRY_IN(restoring, head_size(bytes));
    constexpr std::size_t known = sizeof(SnapshotPrefix);
    bytes.resize(size);
    VMSPACE_TRY(receive(std::span(bytes).subspan(known)));
    head_ = VMSPACE_TRY_IN(restoring, decode_head(bytes, std::nullopt));
    before_ = head_.checksum;
    if (head_.body != SnapshotBody::records) {
      return fail({.code = Errc::unsupported,
                   .operation = restoring,
                   .reason = "an image can't be read from a pipe or a socket: save to one, or "
                             "restore from the file"});
    }
    if (head_.parent) {
      return fail({.code = Errc::invalid_argument,
                   .operation = restoring,
                   .reason = "a differential snapshot must be in a file, to be opened with its "
                             "parents"});
    }
    return check_layout(memory_, head_.regions);
  }

  Result<void> read_record(RecordKind kind, std::uint64_t base, std::uint64_t size) {
    if (!is_record_of(head_.regions, kind, base, size))
      return corrupt(restoring, "a record must be whole pages of one region",
                     Operand::span(base, size));
    ++records_;
    // More than there is: some overlap, which is found at the end, if the sender lets it come to that.
    if (size > unnamed_)
      return corrupt(restoring, "the records have more pages than the memory",
                     Operand::number(records_));
    unnamed_ -= size;
    const SnapshotRegion* const saved = find_region(head_.regions, base, size);
    note(*saved, base, size, kind == RecordKind::data);
    if (kind == RecordKind::zeros) return {};
    sums_.resize(head_.has_checksums ? size / snapshot_page : 0);
    VMSPACE_TRY(receive(std::as_writable_bytes(std::span(sums_))));
    const MemoryRegion& region =
        *memory_.regions()[static_cast<std::size_t>(saved - head_.regions.data())];
    const RestoreTarget target(region);
    const std::uint64_t offset = base - saved->base.value();
    for (std::uint64_t done = 0; done < size;) {
      const std::uint64_t piece = std::min(restore_buffer, size - done);
      const std::uint64_t at = offset + done;
      if (target.is_direct() && present_after(region, at, piece) == piece) {
        const std::span pages(region.host_base() + at, piece);
        const auto received = receive(pages);
        region.dirty().mark(at, piece);  // also when part of it was read
        VMSPACE_TRY(received);
        VMSPACE_TRY(check_pages(pages, done / snapshot_page));
      } else {
        buffer_.resize(piece);
        VMSPACE_TRY(receive(buffer_));
        VMSPACE_TRY(check_pages(buffer_, done / snapshot_page));
        VMSPACE_TRY(target.put(at, buffer_));
      }
      done += piece;
    }
    progress_.done(size);
    return {};
  }

  /// Compares pages with the record's checksums, from number `first` on.
  [[nodiscard]] Result<void> check_pages(std::span<const std::byte> pages,
                                         std::size_t first) const {
    if (!head_.has_checksums) return {};
    for (std::size_t at = 0; at < pages.size(); at += snapshot_page) {
      if (sums_[first + at / snapshot_page] != page_checksum(pages.subspan(at, snapshot_page)))
        return corrupt(restoring, "the contents do not match their checksum",
                       Operand::number(records_));
    }
    return {};
  }

  /// Of a region what one record has, or several that follow each other.
  void note(const SnapshotRegion& region, std::uint64_t base, std::uint64_t size, bool is_data) {
    if (!noted_.empty() && base != region.base.value() && noted_.back().last + 1 == base &&
        noted_.back().is_data == is_data) {
      noted_.back().last += size;
    } else {
      noted_.push_back({base, base + (size - 1), is_data});
    }
  }

  /// The index says nothing new here: only that all of it has come.
  Result<void> read_end(const RecordHeader& end) {
    if (end.base != records_ || end.size != 0)
      return corrupt(restoring, "records are missing", Operand::number(end.base),
                     Operand::number(records_));
    const std::uint64_t index = position_;
    std::uint64_t sum = first_index_checksum(head_.id);
    std::array<IndexEntry, 512> chunk;
    for (std::uint64_t left = records_; left != 0;) {
      const auto entries = std::span(chunk).first(std::min<std::uint64_t>(left, chunk.size()));
      VMSPACE_TRY(receive(std::as_writable_bytes(entries)));
      for (const IndexEntry& entry : entries)
        sum = index_checksum(entry, sum);
      left -= entries.size();
    }
    const SnapshotTrailer trailer = VMSPACE_TRY(read_object<SnapshotTrailer>());
    if (trailer.magic != trailer_magic || trailer.checksum != trailer_checksum(trailer) ||
        trailer.index != index || trailer.records != records_ || trailer.index_checksum != sum ||
        trailer.id != head_.id || trailer.size != position_) {
      return corrupt(restoring, "the trailer does not match the records before it");
    }
    return {};
  }

  /// Clears what no record of data had.
  Result<void> clear_rest() {
    std::ranges::sort(noted_, {}, &Noted::base);
    for (std::size_t i = 1; i < noted_.size(); ++i) {
      if (noted_[i].base <= noted_[i - 1].last)
        return corrupt(restoring, "records must not overlap", Operand::address(noted_[i].base));
    }
    std::erase_if(noted_, [](const Noted& record) { return !record.is_data; });
    auto next = noted_.begin();
    for (const auto& region : memory_.regions()) {
      RestoreTarget target(*region);
      const std::uint64_t base = region->base().value();
      std::uint64_t at = 0;
      for (; next != noted_.end() && region->guest_range().contains(GuestAddress(next->base));
           ++next) {
        VMSPACE_TRY(clear(target, {at, next->base - base - at}));
        at = next->last - base + 1;
      }
      VMSPACE_TRY(clear(target, {at, region->size() - at}));
    }
    return {};
  }

  Result<void> clear(RestoreTarget& target, Extent part) {
    VMSPACE_TRY(target.clear(part));
    progress_.done(part.size);
    return {};
  }

  struct Noted {
    std::uint64_t base;
    std::uint64_t last;
    bool is_data;
  };

  const GuestMemory& memory_;
  int fd_;
  Progress progress_;
  SnapshotHead head_;
  std::uint64_t position_ = 0;  ///< bytes read
  std::uint64_t before_ = 0;    ///< the checksum of the last record's header
  std::uint64_t records_ = 0;
  std::uint64_t unnamed_ = whole_size(memory_);  ///< bytes that no record was for
  std::vector<Noted> noted_;
  std::vector<Le64> sums_;
  std::vector<std::byte> buffer_;
};

}  // namespace

Result<void> restore_stream(const GuestMemory& memory, int fd, const SnapshotProgress& report) {
  return StreamRestore(memory, fd, report).run();
}

}  // namespace vmspace::detail
