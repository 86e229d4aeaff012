// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/snapshot_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"

#include "host/live_files.hpp"
#include "os/argument_checks.hpp"
#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "snapshot/content_checksum.hpp"
#include "snapshot/lazy_table.hpp"
#include "snapshot/snapshot_file.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace {

namespace {

using detail::fail_os;
using detail::IndexEntry;
using detail::invalid;
using detail::kernel;
using detail::RecordHeader;
using detail::RecordKind;
using detail::retry;
using detail::snapshot_page;
using detail::SnapshotBody;
using detail::stored_bytes;

constexpr const char* creating = "SnapshotWriter::create";
constexpr const char* writing = "SnapshotWriter::write";
constexpr const char* clearing = "SnapshotWriter::write_zeros";
constexpr const char* finishing = "SnapshotWriter::finish";
constexpr const char* written_twice = "each page may be written once";

/// What a file has to be to be written over, and what it is.
Result<struct stat> check_target(int fd) {
  struct stat file {};
  if (kernel().fstat(fd, &file) != 0) return fail_os(creating, {}, "fstat");
  if (detail::is_stream(file)) return file;
  if (!S_ISREG(file.st_mode))
    return invalid(creating, "the fd must refer to a regular file, a pipe or a stream socket");
  const bool is_memory = VMSPACE_TRY(detail::is_live_file(creating, file));
  if (is_memory)
    return invalid(creating, "the file backs memory of this process and must not be overwritten");
  const int flags = retry([&] { return kernel().fcntl(fd, F_GETFL, 0); });
  if (flags < 0) return fail_os(creating, {}, "fcntl(F_GETFL)");
  // pwrite(2), "BUGS": Linux then appends, whatever the offset.
  if ((flags & O_APPEND) != 0) return invalid(creating, "the fd must not be open with O_APPEND");
  return file;
}

/// Whether a file that will be written over holds the snapshot that the new one is based on.
Result<bool> holds(int fd, const SnapshotId& id) {
  const auto file = detail::SnapshotFile::open(creating, fd);
  if (file) return file->head().id == id;
  // What is there may be anything, and the descriptor may be for writing only.
  const int error = file.error().os_errno;
  const bool is_failure = error != 0 && error != EBADF;
  if (is_failure) return fail(file.error());
  return false;
}

/// The regions of memory that can be saved.
Result<std::vector<SnapshotRegion>> describe(const GuestMemory& memory) {
  std::vector<SnapshotRegion> regions;
  regions.reserve(memory.regions().size());
  for (const auto& region : memory.regions()) {
    if (!allows(region->protection(), Protection::read)) {
      return fail({.code = Errc::access_denied,
                   .operation = creating,
                   .first = detail::operand(region->guest_range()),
                   .reason = "the region must be readable"});
    }
    if (region->backing().source() == MemorySource::device) {
      return fail({.code = Errc::unsupported,
                   .operation = creating,
                   .first = detail::operand(region->guest_range()),
                   .reason = "memory of a device is for the device to save: save a GuestMemory "
                             "without this region",
                   .text = region->description().name()});
    }
    regions.push_back({.base = region->base(),
                       .size = region->size(),
                       .offset = 0,
                       .protection = region->protection()});
  }
  return regions;
}

}  // namespace

/// Invariant: from the first write on, the file is empty or begins with zeros until finish() writes the
/// head. A stream has its head from there on. Before, it is as it was: who was given the writer may refuse.
struct SnapshotWriter::State {
  enum class Phase : std::uint8_t { open, finished, failed };

  detail::Descriptor fd;
  bool is_stream = false;
  bool is_socket = false;
  Phase phase = Phase::open;
  bool has_begun = false;
  detail::SnapshotHead head;
  std::uint64_t stored = 0;

  // Of an image.
  std::vector<std::uint64_t> first_pages;
  detail::LazyTable written;  ///< a bit a page

  // Of records.
  std::vector<std::byte> gathered;  ///< to be written at `position`; never allocates again
  std::uint64_t position = 0;       ///< in the file, of what is written next
  std::uint64_t before = 0;         ///< the checksum of the last record's header
  std::vector<IndexEntry> index;

  [[nodiscard]] Result<void> check_open(const char* operation) const {
    if (phase == Phase::open) return {};
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .reason = phase == Phase::finished
                               ? "the snapshot is finished"
                               : "writing failed before: the file is not a snapshot"});
  }
  /// Notes that the file can't become a snapshot any more.
  template <typename T>
  Result<T> noting_failure(Result<T> done) {
    if (!done) phase = Phase::failed;
    return done;
  }

  [[nodiscard]] Result<void> begin(const char* operation);
  [[nodiscard]] std::uint64_t number_of(const SnapshotRegion& region,
                                        GuestAddress page) const noexcept;
  [[nodiscard]] Result<void> check_new(const char* operation, const SnapshotRegion& region,
                                       GuestRange range);
  [[nodiscard]] Result<void> take_pages(const SnapshotRegion& region, GuestRange range);
  [[nodiscard]] Result<void> write_image(const SnapshotRegion& region, GuestAddress at,
                                         std::span<const std::byte> pages) const;
  [[nodiscard]] Result<void> write_records(GuestAddress at, std::span<const std::byte> pages);
  [[nodiscard]] Result<void> write_record(RecordKind kind, std::uint64_t base, std::uint64_t size,
                                          std::span<const std::byte> pages);
  [[nodiscard]] Result<void> put(const char* operation, std::span<const std::byte> bytes);
  [[nodiscard]] Result<void> flush(const char* operation);
  [[nodiscard]] Result<void> output(const char* operation, std::span<const std::byte> bytes);
  [[nodiscard]] Result<void> write_end();
  [[nodiscard]] Result<void> write_head();
};

namespace {

/// What is gathered before it is written, and above which size it isn't.
constexpr std::size_t gather_limit = std::size_t{1} << 20;
constexpr std::size_t gather_below = std::size_t{64} << 10;

}  // namespace

/// Before the first write.
Result<void> SnapshotWriter::State::begin(const char* operation) {
  if (has_begun) return {};
  const std::vector<std::byte> bytes = detail::encode_head(head);
  has_begun = true;
  before = head.checksum;
  if (is_stream) return output(operation, bytes);
  // Truncated and extended again, the file is one hole, without its old contents.
  for (const std::uint64_t size : {std::uint64_t{0}, head.file_size}) {
    if (retry([&] { return kernel().ftruncate(fd.value(), static_cast<off_t>(size)); }) != 0)
      return fail_os(operation, Operand::size(size), "ftruncate");
  }
  if (head.body == SnapshotBody::records) position = detail::head_bytes(head.regions.size());
  return {};
}

Result<void> SnapshotWriter::State::output(const char* operation,
                                           std::span<const std::byte> bytes) {
  if (is_stream) {
    VMSPACE_TRY(detail::send_all(operation, fd.value(), is_socket, bytes));
  } else {
    VMSPACE_TRY(detail::write_all(operation, fd.value(), bytes, position));
  }
  position += bytes.size();
  return {};
}

Result<void> SnapshotWriter::State::flush(const char* operation) {
  VMSPACE_TRY(output(operation, gathered));
  gathered.clear();
  return {};
}

Result<void> SnapshotWriter::State::put(const char* operation, std::span<const std::byte> bytes) {
  if (bytes.size() >= gather_below || gathered.size() + bytes.size() > gather_limit)
    VMSPACE_TRY(flush(operation));
  if (bytes.size() >= gather_below) return output(operation, bytes);
  gathered.insert(gathered.end(), bytes.begin(), bytes.end());
  return {};
}

std::uint64_t SnapshotWriter::State::number_of(const SnapshotRegion& region,
                                               GuestAddress page) const noexcept {
  return first_pages[static_cast<std::size_t>(&region - head.regions.data())] +
         (page.value() - region.base.value()) / snapshot_page;
}

/// `overlap` where one of the pages was written before.
Result<void> SnapshotWriter::State::check_new(const char* operation, const SnapshotRegion& region,
                                              GuestRange range) {
  const auto* const words = written.as<std::uint64_t>();
  const std::uint64_t first = number_of(region, range.base);
  bool is_new = true;
  detail::for_each_bit_word(first, first + range.size / snapshot_page,
                            [&](std::uint64_t word, std::uint64_t bits) {
                              is_new = is_new && (words[word] & bits) == 0;
                            });
  if (is_new) return {};
  return fail({.code = Errc::overlap,
               .operation = operation,
               .first = detail::operand(range),
               .reason = written_twice});
}

/// Notes that pages are written, unless one was before.
Result<void> SnapshotWriter::State::take_pages(const SnapshotRegion& region, GuestRange range) {
  VMSPACE_TRY(check_new(writing, region, range));
  auto* const words = written.as<std::uint64_t>();
  const std::uint64_t first = number_of(region, range.base);
  const std::uint64_t end = first + range.size / snapshot_page;
  detail::for_each_bit_word(first, end,
                            [&](std::uint64_t word, std::uint64_t bits) { words[word] |= bits; });
  return {};
}

Result<void> SnapshotWriter::State::write_image(const SnapshotRegion& region, GuestAddress at,
                                                std::span<const std::byte> pages) const {
  const std::uint64_t offset = at.value() - region.base.value();
  VMSPACE_TRY(detail::write_all(writing, fd.value(), pages, region.offset + offset));
  if (!head.has_checksums) return {};
  std::uint64_t to = head.checksums + number_of(region, at) * sizeof(Le64);
  std::array<Le64, 512> sums;
  while (!pages.empty()) {
    const std::size_t count = std::min<std::size_t>(sums.size(), pages.size() / snapshot_page);
    for (std::size_t i = 0; i < count; ++i)
      sums[i] = detail::page_checksum(pages.subspan(i * snapshot_page, snapshot_page));
    const auto bytes = std::as_bytes(std::span(sums).first(count));
    VMSPACE_TRY(detail::write_all(writing, fd.value(), bytes, to));
    to += bytes.size();
    pages = pages.subspan(count * snapshot_page);
  }
  return {};
}

Result<void> SnapshotWriter::State::write_record(RecordKind kind, std::uint64_t base,
                                                 std::uint64_t size,
                                                 std::span<const std::byte> pages) {
  const char* const operation = kind == RecordKind::zeros ? clearing : writing;
  RecordHeader record{.kind = static_cast<std::uint32_t>(kind),
                      .reserved = 0,
                      .base = base,
                      .size = size,
                      .checksum = 0};
  // First, since it allocates.
  index.push_back(
      {.base = base,
       .size = size,
       .offset = kind == RecordKind::data ? position + gathered.size() + sizeof record : 0,
       .kind = static_cast<std::uint32_t>(kind),
       .reserved = 0});
  before = detail::record_checksum(record, before);
  record.checksum = before;
  VMSPACE_TRY(put(operation, stored_bytes(record)));
  if (head.has_checksums) {
    for (std::size_t at = 0; at < pages.size(); at += snapshot_page) {
      const Le64 sum = detail::page_checksum(pages.subspan(at, snapshot_page));
      VMSPACE_TRY(put(operation, stored_bytes(sum)));
    }
  }
  return put(operation, pages);
}

Result<void> SnapshotWriter::State::write_records(GuestAddress at,
                                                  std::span<const std::byte> pages) {
  // First, since it allocates: not after some of the records.
  const std::size_t records = (pages.size() + detail::largest_record - 1) / detail::largest_record;
  if (index.capacity() - index.size() < records)
    index.reserve(std::max(index.size() + records, index.capacity() * 2));
  std::uint64_t base = at.value();
  while (!pages.empty()) {
    const std::size_t size = std::min<std::size_t>(pages.size(), detail::largest_record);
    VMSPACE_TRY(write_record(RecordKind::data, base, size, pages.first(size)));
    pages = pages.subspan(size);
    base += size;
  }
  return {};
}

/// The end of the records, their index and the trailer.
Result<void> SnapshotWriter::State::write_end() {
  RecordHeader end{.kind = static_cast<std::uint32_t>(RecordKind::end),
                   .reserved = 0,
                   .base = index.size(),
                   .size = 0,
                   .checksum = 0};
  end.checksum = detail::record_checksum(end, before);
  VMSPACE_TRY(put(finishing, stored_bytes(end)));
  detail::SnapshotTrailer trailer{.magic = detail::trailer_magic,
                                  .index = position + gathered.size(),
                                  .records = index.size(),
                                  .index_checksum = 0,
                                  .id = head.id,
                                  .size = 0,
                                  .checksum = 0};
  std::uint64_t sum = detail::first_index_checksum(head.id);
  for (const IndexEntry& entry : index) {
    sum = detail::index_checksum(entry, sum);
    VMSPACE_TRY(put(finishing, stored_bytes(entry)));
  }
  trailer.index_checksum = sum;
  trailer.size = position + gathered.size() + sizeof trailer;
  trailer.checksum = detail::trailer_checksum(trailer);
  VMSPACE_TRY(put(finishing, stored_bytes(trailer)));
  return flush(finishing);
}

Result<void> SnapshotWriter::State::write_head() {
  const std::vector<std::byte> bytes = detail::encode_head(head);
  return detail::write_all(finishing, fd.value(), bytes, 0);
}

SnapshotWriter::SnapshotWriter(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
SnapshotWriter::SnapshotWriter(SnapshotWriter&&) noexcept = default;
SnapshotWriter& SnapshotWriter::operator=(SnapshotWriter&&) noexcept = default;
SnapshotWriter::~SnapshotWriter() = default;

Result<SnapshotWriter> SnapshotWriter::create(int fd, std::span<const SnapshotRegion> regions,
                                              const SnapshotWriterOptions& options) {
  const struct stat file = VMSPACE_TRY(check_target(fd));
  if (options.parent && !*options.parent)
    return invalid(creating, "a snapshot without an id (version 1) can't be a parent");
  if (options.parent && !detail::is_stream(file)) {
    const bool is_parent = VMSPACE_TRY(holds(fd, *options.parent));
    if (is_parent)
      return invalid(creating, "the file holds the parent itself and must not be overwritten");
  }
  auto state = std::make_unique<State>();
  state->is_stream = detail::is_stream(file);
  state->is_socket = S_ISSOCK(file.st_mode);
  detail::SnapshotHead& head = state->head;
  head.regions.assign(regions.begin(), regions.end());
  for (SnapshotRegion& region : head.regions)
    region.offset = 0;
  VMSPACE_TRY(detail::check_regions(creating, head.regions));
  head.has_checksums = options.checksums;
  head.parent = options.parent.value_or(SnapshotId{});
  head.body = state->is_stream || head.parent ? SnapshotBody::records : SnapshotBody::image;
  if (head.body == SnapshotBody::image) {
    VMSPACE_TRY(detail::lay_out_image(creating, head));
    state->first_pages = detail::first_pages(head.regions);
    std::uint64_t pages = 0;
    for (const SnapshotRegion& region : head.regions)
      pages += region.size / snapshot_page;
    VMSPACE_TRY(state->written.map(creating, (pages / 64 + 1) * sizeof(std::uint64_t)));
  } else {
    state->gathered.reserve(gather_limit);
  }
  if (kernel().getentropy(head.id.bytes.data(), head.id.bytes.size()) != 0)
    return fail_os(creating, {}, "getentropy");
  state->fd = detail::Descriptor(retry([&] { return kernel().fcntl(fd, F_DUPFD_CLOEXEC, 0); }));
  if (state->fd.value() < 0) return fail_os(creating, {}, "fcntl(F_DUPFD_CLOEXEC)");
  return SnapshotWriter(std::move(state));
}

Result<SnapshotWriter> SnapshotWriter::create(int fd, const GuestMemory& memory,
                                              const SnapshotWriterOptions& options) {
  const std::vector<SnapshotRegion> regions = VMSPACE_TRY(describe(memory));
  return create(fd, regions, options);
}

Result<void> SnapshotWriter::write(GuestAddress at, std::span<const std::byte> pages) {
  VMSPACE_TRY(state_->check_open(writing));
  const SnapshotRegion* const region = VMSPACE_TRY(
      detail::region_of_pages(writing, state_->head.regions, {.base = at, .size = pages.size()}));
  const bool is_image = state_->head.body == SnapshotBody::image;
  VMSPACE_TRY(state_->noting_failure(state_->begin(writing)));
  if (is_image) VMSPACE_TRY(state_->take_pages(*region, {.base = at, .size = pages.size()}));
  VMSPACE_TRY(state_->noting_failure(is_image ? state_->write_image(*region, at, pages)
                                              : state_->write_records(at, pages)));
  state_->stored += pages.size();
  return {};
}

Result<void> SnapshotWriter::write_zeros(GuestRange range) {
  VMSPACE_TRY(state_->check_open(clearing));
  const SnapshotRegion* const region =
      VMSPACE_TRY(detail::region_of_pages(clearing, state_->head.regions, range));
  if (range.empty()) return {};
  if (state_->head.body == SnapshotBody::image) return state_->check_new(clearing, *region, range);
  if (!state_->head.parent) return {};
  VMSPACE_TRY(state_->noting_failure(state_->begin(clearing)));
  return state_->noting_failure(
      state_->write_record(RecordKind::zeros, range.base.value(), range.size, {}));
}

Result<SnapshotId> SnapshotWriter::finish() {
  VMSPACE_TRY(state_->check_open(finishing));
  State& state = *state_;
  VMSPACE_TRY(state.noting_failure(state.begin(finishing)));
  if (state.head.body == SnapshotBody::records) {
    const auto base = [](const IndexEntry& entry) { return entry.base.value(); };
    std::ranges::sort(state.index, {}, base);
    for (std::size_t i = 1; i < state.index.size(); ++i) {
      const IndexEntry& former = state.index[i - 1];
      const IndexEntry& latter = state.index[i];
      if (latter.base - former.base >= former.size) continue;
      state.phase = State::Phase::failed;
      return fail({.code = Errc::overlap,
                   .operation = finishing,
                   .first = Operand::span(former.base, former.size),
                   .second = Operand::span(latter.base, latter.size),
                   .reason = written_twice});
    }
    VMSPACE_TRY(state.noting_failure(state.write_end()));
  }
  if (!state.is_stream) VMSPACE_TRY(state.noting_failure(state.write_head()));
  state.phase = State::Phase::finished;
  return state.head.id;
}

bool SnapshotWriter::has_parent() const noexcept {
  return static_cast<bool>(state_->head.parent);
}

std::uint64_t SnapshotWriter::stored() const noexcept {
  return state_->stored;
}

}  // namespace vmspace
