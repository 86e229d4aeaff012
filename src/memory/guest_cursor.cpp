// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_cursor.hpp"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <limits>

#include <limits.h>  // IOV_MAX

#include "vmspace/base/try.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/marked_read.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

namespace {

constexpr std::int64_t own_position = -1;

/// Linux counts the bytes of a file in 63 bits.
Result<std::int64_t> file_offset(const char* operation, std::uint64_t offset, std::uint64_t bytes) {
  constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
  if (offset > limit || bytes > limit - offset) {
    return fail({.code = Errc::overflow,
                 .operation = operation,
                 .first = Operand::size(offset),
                 .second = Operand::size(bytes),
                 .reason = "the offset in the file must stay below 2^63"});
  }
  return static_cast<std::int64_t>(offset);
}

/// Repeats `once(bytes, offset)`, which gives how many bytes it transferred, until there are none.
template <typename Once>
Result<void> repeat(const char* operation, std::uint64_t bytes, std::int64_t offset,
                    const char* call, Once once) {
  while (bytes != 0) {
    const std::uint64_t count = VMSPACE_TRY(once(bytes, offset));
    if (count == 0) return detail::fail_os(operation, Operand::size(bytes), call, EIO);
    bytes -= count;
    if (offset != own_position) offset += static_cast<std::int64_t>(count);
  }
  return {};
}

}  // namespace

class VMSPACE_HIDDEN GuestCursor::Opened {
 public:
  explicit Opened(GuestCursor& cursor) noexcept : cursor_(cursor) {
    cursor_.end_ = cursor_.iovecs_.size();
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() {
    if (!cursor_.guarded_.empty()) cursor_.close();
  }

 private:
  GuestCursor& cursor_;
};

void GuestCursor::close() noexcept {
  if (left_ != 0) {
    iovecs_[--next_] = {.iov_base = at_, .iov_len = left_};
    after_ += left_;
    left_ = 0;
  }
  end_ = next_;
}

Result<void> GuestCursor::begin_rest(const char* operation, const GuestMemory& memory,
                                     std::span<const GuestRange> ranges, Access access,
                                     detail::DirtyParts* written) {
  bool may_fault = false;
  total_ =
      VMSPACE_TRY(detail::GuestPieces::append(operation, memory, ranges.subspan(iovecs_.size()),
                                              access, iovecs_, written, &may_fault, total_));
  begin();
  if (may_fault) {
    guarded_ = memory.regions();
    close();
  }
  return {};
}

template <typename Use>
Result<void> GuestCursor::touch(const char* operation, std::uint64_t bytes, Use use) {
  const Opened opened(*this);
  for (std::uint64_t done = 0; done < bytes;) {
    const std::size_t size = next_in_piece(bytes - done);
    std::byte* const host = at_;
    if (guarded_.empty()) [[likely]] {
      use(host, size, done);
      pass(size);
      done += size;
      continue;
    }
    const std::uint64_t touched =
        detail::touch_guarded(host, size, [&](std::uint64_t offset, std::uint64_t part) {
          use(host + offset, static_cast<std::size_t>(part), done + offset);
        });
    pass(static_cast<std::size_t>(touched));
    if (touched != size) return fail(fault_error(operation, bytes, host + touched));
    done += size;
  }
  return {};
}

Error GuestCursor::fault_error(const char* operation, std::uint64_t bytes,
                               const std::byte* host) const {
  Error error = detail::fault_error(operation, {}, GuestAddress(0));
  error.first = Operand::size(bytes);
  error.second = {};
  for (const MemoryRegionPtr& region : guarded_) {
    const std::uint64_t offset = reinterpret_cast<std::uintptr_t>(host) -
                                 reinterpret_cast<std::uintptr_t>(region->host_base());
    if (offset < region->size()) error.second = Operand::address(region->base().value() + offset);
  }
  return error;
}

std::size_t GuestCursor::next_in_piece(std::uint64_t bytes) noexcept {
  if (left_ == 0) enter_next();
  return static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes));
}

void GuestCursor::pass_pieces(std::uint64_t bytes) noexcept {
  assert(bytes <= remaining());
  while (bytes > left_) {
    bytes -= left_;
    left_ = 0;
    enter_next();
  }
  pass(static_cast<std::size_t>(bytes));
}

void GuestCursor::keep(std::uint64_t bytes) noexcept {
  assert(bytes <= remaining());
  total_ = position() + bytes;
  if (bytes <= left_) {
    left_ = static_cast<std::size_t>(bytes);
    after_ = 0;
    iovecs_.truncate(next_);
    end_ = next_;
    return;
  }
  after_ = bytes - left_;
  std::uint64_t left = after_;
  for (std::size_t i = next_;; ++i) {
    iovec& piece = iovecs_[i];
    if (left > piece.iov_len) {
      left -= piece.iov_len;
      continue;
    }
    piece.iov_len = static_cast<std::size_t>(left);
    iovecs_.truncate(i + 1);
    end_ = i + 1;
    return;
  }
}

void GuestCursor::begin_at(GuestCursor& other) {
  for (const iovec& piece : other.iovecs())
    iovecs_.push_back(piece);
  total_ = other.remaining();
  begin();
  guarded_ = other.guarded_;
}

Error GuestCursor::end_error(const char* operation, std::uint64_t bytes) const {
  return {.code = Errc::out_of_bounds,
          .operation = operation,
          .first = Operand::size(bytes),
          .second = Operand::size(remaining()),
          .reason = "fewer bytes remain"};
}

GuestCursor::Transfer GuestCursor::transfer(int fd, std::uint64_t bytes, std::int64_t offset,
                                            Access access) {
  const std::span<const iovec> pieces = iovecs();
  const std::size_t first = iovecs_.size() - pieces.size();
  std::size_t count = 0;
  std::uint64_t asked = 0;
  for (; count < pieces.size() && count < IOV_MAX && asked < bytes; ++count)
    asked += pieces[count].iov_len;
  // The last piece may hold more than was asked for: it is shorter during the call.
  const std::uint64_t beyond = asked > bytes ? asked - bytes : 0;
  iovec& last = iovecs_[first + count - 1];
  last.iov_len -= static_cast<std::size_t>(beyond);
  const auto& calls = detail::kernel();
  const auto call = access == Access::read ? calls.pwritev2 : calls.preadv2;
  const ssize_t done =
      detail::retry([&] { return call(fd, pieces.data(), static_cast<int>(count), offset, 0); });
  const int error = done < 0 ? errno : 0;
  last.iov_len += static_cast<std::size_t>(beyond);
  return {.asked = asked - beyond, .count = done, .error = error};
}

Error GuestCursor::transfer_error(const char* operation, const Transfer& failed, const char* call) {
  if (failed.error == EFAULT && !guarded_.empty()) {
    const void* const begin = iovecs().front().iov_base;
    return fault_error(operation, failed.asked, static_cast<const std::byte*>(begin));
  }
  return detail::fail_os(operation, Operand::size(failed.asked), call, failed.error).value();
}

void GuestReader::make_rest(Result<GuestReader>& made, const GuestMemory& memory,
                            std::span<const GuestRange> ranges) {
  const auto ok = made->begin_rest("GuestReader::make", memory, ranges, Access::read, nullptr);
  if (!ok) made = fail(ok.error());
}

Result<void> GuestReader::read_pieces(const char* operation, std::span<std::byte> to) {
  VMSPACE_TRY(check(operation, to.size()));
  // Objects up to this size are promised whole integers.
  const auto copy =
      to.size() <= detail::inline_copy_limit ? detail::load_words : detail::copy_from_shared;
  return touch(operation, to.size(),
               [&](const std::byte* host, std::size_t size, std::uint64_t done) {
                 copy(to.data() + done, host, size);
               });
}

Result<void> GuestReader::skip(std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestReader::skip", bytes));
  const Opened opened(*this);
  pass_pieces(bytes);
  return {};
}

Result<GuestReader> GuestReader::split_at(std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestReader::split_at", bytes));
  const Opened first(*this);
  GuestReader second;
  second.begin_at(*this);
  {
    const Opened opened(second);
    second.pass_pieces(bytes);
  }
  second.restart();
  keep(bytes);
  return second;
}

Result<std::uint64_t> GuestReader::send(const char* operation, int fd, std::uint64_t bytes,
                                        std::int64_t offset) {
  if (bytes == 0) return 0;
  const Transfer done = transfer(fd, bytes, offset, Access::read);
  if (done.count < 0) return fail(transfer_error(operation, done, "pwritev2"));
  const Opened opened(*this);
  pass_pieces(static_cast<std::uint64_t>(done.count));
  return static_cast<std::uint64_t>(done.count);
}

Result<std::uint64_t> GuestReader::read_to(int fd, std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestReader::read_to", bytes));
  return send("GuestReader::read_to", fd, bytes, own_position);
}

Result<std::uint64_t> GuestReader::read_to(int fd, std::uint64_t bytes, std::uint64_t offset) {
  VMSPACE_TRY(check("GuestReader::read_to", bytes));
  const std::int64_t at = VMSPACE_TRY(file_offset("GuestReader::read_to", offset, bytes));
  return send("GuestReader::read_to", fd, bytes, at);
}

Result<void> GuestReader::read_exact_to(int fd, std::uint64_t bytes) {
  constexpr const char* operation = "GuestReader::read_exact_to";
  VMSPACE_TRY(check(operation, bytes));
  return repeat(operation, bytes, own_position, "pwritev2",
                [&](std::uint64_t left, std::int64_t at) { return send(operation, fd, left, at); });
}

Result<void> GuestReader::read_exact_to(int fd, std::uint64_t bytes, std::uint64_t offset) {
  constexpr const char* operation = "GuestReader::read_exact_to";
  VMSPACE_TRY(check(operation, bytes));
  const std::int64_t begin = VMSPACE_TRY(file_offset(operation, offset, bytes));
  return repeat(operation, bytes, begin, "pwritev2",
                [&](std::uint64_t left, std::int64_t at) { return send(operation, fd, left, at); });
}

void GuestWriter::make_rest(Result<GuestWriter>& made, const GuestMemory& memory,
                            std::span<const GuestRange> ranges) {
  const auto ok =
      made->begin_rest("GuestWriter::make", memory, ranges, Access::write, &made->parts_);
  if (!ok) made = fail(ok.error());
}

void GuestWriter::mark(std::uint64_t bytes) const noexcept {
  std::uint64_t done = part_done_;
  for (std::size_t i = part_; bytes != 0; ++i) {
    const detail::DirtyPart& part = parts_[i];
    const std::uint64_t size = std::min(bytes, part.size - done);
    if (size != 0) part.bitmap->mark(part.offset + done, size);
    bytes -= size;
    done = 0;
  }
}

void GuestWriter::pass_parts(std::uint64_t bytes) noexcept {
  while (bytes != 0) {
    const std::uint64_t left = parts_[part_].size - part_done_;
    if (bytes <= left) {
      part_done_ += bytes;
      return;
    }
    bytes -= left;
    ++part_;
    part_done_ = 0;
  }
}

Result<void> GuestWriter::write_pieces(const char* operation, std::span<const std::byte> from) {
  VMSPACE_TRY(check(operation, from.size()));
  const auto copy =
      from.size() <= detail::inline_copy_limit ? detail::store_words : detail::copy_to_shared;
  const std::uint64_t before = position();
  const auto touched =
      touch(operation, from.size(), [&](std::byte* host, std::size_t size, std::uint64_t done) {
        copy(host, from.data() + done, size);
      });
  const std::uint64_t written = position() - before;
  mark(written);
  pass_parts(written);
  return touched;
}

Result<void> GuestWriter::skip(std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestWriter::skip", bytes));
  const Opened opened(*this);
  pass_pieces(bytes);
  pass_parts(bytes);
  return {};
}

Result<void> GuestWriter::commit_pieces(std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestWriter::commit", bytes));
  const Opened opened(*this);
  mark(bytes);
  pass_pieces(bytes);
  pass_parts(bytes);
  return {};
}

Result<GuestWriter> GuestWriter::split_at(std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestWriter::split_at", bytes));
  const Opened first(*this);
  GuestWriter second;
  for (std::size_t i = part_; i < parts_.size(); ++i)
    second.parts_.push_back(parts_[i]);
  second.part_done_ = part_done_;
  second.begin_at(*this);
  {
    const Opened opened(second);
    second.pass_pieces(bytes);
  }
  second.pass_parts(bytes);
  second.restart();
  keep(bytes);  // the parts beyond are never reached
  return second;
}

Result<std::uint64_t> GuestWriter::receive(const char* operation, int fd, std::uint64_t bytes,
                                           std::int64_t offset) {
  if (bytes == 0) return 0;
  const Transfer done = transfer(fd, bytes, offset, Access::write);
  // See marked_read.hpp: what was asked for may have been written, unless there was no data.
  if (done.count > 0 || (done.count < 0 && !detail::is_before_data(done.error))) mark(done.asked);
  if (done.count < 0) return fail(transfer_error(operation, done, "preadv2"));
  const Opened opened(*this);
  const auto count = static_cast<std::uint64_t>(done.count);
  pass_pieces(count);
  pass_parts(count);
  return count;
}

Result<std::uint64_t> GuestWriter::write_from(int fd, std::uint64_t bytes) {
  VMSPACE_TRY(check("GuestWriter::write_from", bytes));
  return receive("GuestWriter::write_from", fd, bytes, own_position);
}

Result<std::uint64_t> GuestWriter::write_from(int fd, std::uint64_t bytes, std::uint64_t offset) {
  VMSPACE_TRY(check("GuestWriter::write_from", bytes));
  const std::int64_t at = VMSPACE_TRY(file_offset("GuestWriter::write_from", offset, bytes));
  return receive("GuestWriter::write_from", fd, bytes, at);
}

Result<void> GuestWriter::write_exact_from(int fd, std::uint64_t bytes) {
  constexpr const char* operation = "GuestWriter::write_exact_from";
  VMSPACE_TRY(check(operation, bytes));
  return repeat(operation, bytes, own_position, "preadv2",
                [&](std::uint64_t left, std::int64_t at) {
                  return receive(operation, fd, std::min(left, detail::read_chunk), at);
                });
}

Result<void> GuestWriter::write_exact_from(int fd, std::uint64_t bytes, std::uint64_t offset) {
  constexpr const char* operation = "GuestWriter::write_exact_from";
  VMSPACE_TRY(check(operation, bytes));
  const std::int64_t begin = VMSPACE_TRY(file_offset(operation, offset, bytes));
  return repeat(operation, bytes, begin, "preadv2", [&](std::uint64_t left, std::int64_t at) {
    return receive(operation, fd, std::min(left, detail::read_chunk), at);
  });
}

}  // namespace vmspace
