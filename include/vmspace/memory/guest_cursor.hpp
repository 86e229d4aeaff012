// SPDX-License-Identifier: Apache-2.0
//
// Reading and writing scattered guest memory as if it were one piece: a request whose header, data and
// status lie wherever the guest has put them.
//
//   auto in = VMSPACE_TRY(GuestReader::make(memory, chain.readable()));
//   auto out = VMSPACE_TRY(GuestWriter::make(memory, chain.writable()));
//   const Header header = VMSPACE_TRY(in.read<Header>());
//   VMSPACE_TRY(out.write_exact_from(disk, out.remaining() - 1, header.sector * 512));
//   VMSPACE_TRY(out.write(Status::ok));
//
// Where a guest divides its buffers is not the device's business (virtio 1.2, section 2.7.4), so no
// call here says where a range ends. All ranges are checked and translated when the cursor is made;
// from then on an access adds to a pointer, and compares it with one end. Up to 16 pieces lie in the
// cursor, so that an ordinary request allocates nothing.
//
// What an ordinary request calls is in line by force: clang leaves it out of line otherwise, and such a
// request takes a third longer.
//
// A cursor borrows: the GuestMemory that it was made from has to outlive it. Holding it would cost two
// atomic operations a cursor, more than all else that is done to make one; who keeps a cursor beyond a
// call, for I/O that ends later, keeps a copy of the GuestMemory beside it.
//
// A call that fails has neither moved the cursor nor touched memory, unless it says otherwise. Reading
// and writing past the end is `out_of_bounds`. Where a page is gone of memory that may fault, every call
// that touches memory gives `fault`; what lies below that page was accessed, marked and passed then, as
// said at guest_memory.hpp, and iovecs() are not guarded. Bytes are copied once, as by GuestMemory::read.

#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/detail/min_max.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/detail/guest_access.hpp"
#include "vmspace/memory/detail/guest_pieces.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/guest_object.hpp"

namespace vmspace {

/// A place in a list of pieces: what readers and writers have in common. One that was moved from is at
/// its end.
///
/// Invariant: [at_, at_ + left_) is the rest of the piece before next_, or empty; after_ is the bytes
/// from next_ on. Pieces are not empty. The pieces below end_ may be entered: all of them, but of memory
/// that may fault none, so that left_ is 0 and every call takes the slow way, which opens the cursor and
/// closes it again (see Opened).
class VMSPACE_EXPORT GuestCursor {
 public:
  /// The bytes from here to the end. O(1).
  [[nodiscard]] std::uint64_t remaining() const noexcept { return left_ + after_; }
  /// The bytes from the beginning to here. O(1).
  [[nodiscard]] std::uint64_t position() const noexcept { return total_ - remaining(); }
  /// The rest as pieces for a system call; readv(2) takes IOV_MAX of them at a time. Valid until the
  /// cursor is used again. O(1).
  [[nodiscard]] std::span<const iovec> iovecs() noexcept {
    std::size_t first = next_;
    if (left_ != 0) iovecs_[--first] = {.iov_base = at_, .iov_len = left_};
    return std::span<const iovec>(iovecs_.values()).subspan(first);
  }

 protected:
  // Not defaulted: what is value-initialised would be filled with zeros.
  GuestCursor() noexcept {}  // NOLINT(modernize-use-equals-default)
  /// Begins with the first of iovecs_; total_ is their bytes.
  [[gnu::always_inline]] void begin() noexcept {
    after_ = total_;
    end_ = iovecs_.size();
    enter_next();
  }
  /// Begins, as a new cursor, at ranges of which each is one piece, as nearly all requests have them:
  /// it lies in one region that can't fault, and does not continue the one before. False when there
  /// are others; then the pieces of the ranges before the first of them are there, for begin_rest().
  template <Access access>
  [[nodiscard, gnu::always_inline]] bool begin_simple(const GuestMemory& memory,
                                                      std::span<const GuestRange> ranges,
                                                      detail::DirtyParts* written) noexcept {
    // By value, or it would be loaded anew for each range.
    const detail::Translator translator = memory.translator_;
    iovec* const pieces = iovecs_.inline_values();
    const std::size_t most = detail::min_of(ranges.size(), detail::inline_pieces);
    const std::byte* end = nullptr;
    std::uint64_t total = 0;  // does not wrap: no mapping has 2^60 bytes
    std::size_t count = 0;
    for (; count < most; ++count) {
      const GuestRange range = ranges[count];
      const auto* entry = GuestMemory::entry_of<access>(translator, range);
      if (entry == nullptr) [[unlikely]]
        break;
      const std::uint64_t offset = range.base.value() - entry->first;
      std::byte* const host = entry->host + offset;
      if (host == end) [[unlikely]]
        break;
      pieces[count] = {.iov_base = host, .iov_len = range.size};
      if constexpr (access == Access::write) {
        written->inline_values()[count] = {
            .bitmap = entry->dirty, .offset = offset, .size = range.size};
      }
      end = host + range.size;
      total += range.size;
    }
    iovecs_.set_inline_size(count);
    if constexpr (access == Access::write) written->set_inline_size(count);
    total_ = total;
    if (count != ranges.size()) [[unlikely]]
      return false;
    begin();
    return true;
  }
  /// Begins at all of the ranges after begin_simple() has given up. Errors: those of
  /// GuestReader::make.
  [[nodiscard]] Result<void> begin_rest(const char* operation, const GuestMemory& memory,
                                        std::span<const GuestRange> ranges, Access access,
                                        detail::DirtyParts* written);
  /// Makes a cursor for as long as this lives one whose pieces can be entered.
  class Opened;
  /// Calls `use(host, size, done)`, which touches so much memory, for the next bytes, which remain, and
  /// passes them, or those up to a page that is gone. Errors: `fault`, after such a part.
  template <typename Use>
  [[nodiscard]] Result<void> touch(const char* operation, std::uint64_t bytes, Use use);
  /// `fault`: of the next `bytes`, the one at `host` is gone.
  [[nodiscard, gnu::cold]] Error fault_error(const char* operation, std::uint64_t bytes,
                                             const std::byte* host) const;
  /// Takes over what `other` has left, which then has nothing left.
  GuestCursor(GuestCursor&& other) noexcept
      : iovecs_(std::move(other.iovecs_)),
        at_(other.at_),
        left_(std::exchange(other.left_, 0)),
        next_(std::exchange(other.next_, 0)),
        end_(std::exchange(other.end_, 0)),
        guarded_(std::exchange(other.guarded_, {})),
        after_(std::exchange(other.after_, 0)),
        total_(std::exchange(other.total_, 0)) {}
  /// As moving; what this cursor had left is dropped.
  GuestCursor& operator=(GuestCursor&& other) noexcept {
    if (this == &other) return *this;
    at_ = other.at_;
    left_ = std::exchange(other.left_, 0);
    iovecs_ = std::move(other.iovecs_);
    next_ = std::exchange(other.next_, 0);
    end_ = std::exchange(other.end_, 0);
    guarded_ = std::exchange(other.guarded_, {});
    after_ = std::exchange(other.after_, 0);
    total_ = std::exchange(other.total_, 0);
    return *this;
  }
  ~GuestCursor() = default;

  /// Whether `bytes`, not 0, are in one piece from here, after a step into the next one if that is
  /// where they begin.
  [[nodiscard, gnu::always_inline]] bool is_in_piece(std::size_t bytes) noexcept {
    if (left_ >= bytes) [[likely]]
      return true;
    if (left_ != 0) return false;
    enter_next();
    return left_ >= bytes;
  }
  /// Passes bytes of the current piece.
  [[gnu::always_inline]] void pass(std::size_t bytes) noexcept {
    at_ += bytes;
    left_ -= bytes;
  }
  /// As many of the next `bytes`, which remain, as lie in one piece.
  [[nodiscard]] std::size_t next_in_piece(std::uint64_t bytes) noexcept;
  /// Passes so many of the remaining bytes.
  void pass_pieces(std::uint64_t bytes) noexcept;
  /// Leaves so many of the remaining bytes.
  void keep(std::uint64_t bytes) noexcept;
  /// Makes here the beginning.
  void restart() noexcept { total_ = remaining(); }
  /// Begins where the other is; allocates above inline_pieces.
  void begin_at(GuestCursor& other);

  /// `out_of_bounds` when fewer bytes remain.
  [[nodiscard, gnu::always_inline]] Result<void> check(const char* operation,
                                                       std::uint64_t bytes) const {
    if (bytes > remaining()) [[unlikely]]
      return fail(end_error(operation, bytes));
    return {};
  }
  /// `out_of_bounds`: fewer than `bytes` remain.
  [[nodiscard, gnu::cold]] Error end_error(const char* operation, std::uint64_t bytes) const;

  /// What a system call was given, and what came of it.
  struct Transfer {
    std::uint64_t asked;  ///< how much of the next bytes the system call was given
    std::int64_t count;   ///< what it returned
    int error;            ///< its errno, when that is -1
  };
  /// One preadv2(2) or pwritev2(2) of up to `bytes`, not 0, of the rest; passes nothing. `offset` -1
  /// is the descriptor's own.
  [[nodiscard]] Transfer transfer(int fd, std::uint64_t bytes, std::int64_t offset, Access access);
  /// The error of one that has failed.
  [[nodiscard, gnu::cold]] Error transfer_error(const char* operation, const Transfer& failed,
                                                const char* call);
  detail::Iovecs iovecs_;    ///< what was translated, in order
  std::byte* at_ = nullptr;  ///< the next byte, in the current piece
  std::size_t left_ = 0;     ///< bytes left in the current piece

 private:
  [[gnu::always_inline]] void enter_next() noexcept {
    if (next_ == end_) return;
    const iovec& piece = iovecs_[next_++];
    at_ = static_cast<std::byte*>(piece.iov_base);
    left_ = piece.iov_len;
    after_ -= left_;
  }

  void close() noexcept;

  std::size_t next_ = 0;
  std::size_t end_ = 0;
  std::span<const MemoryRegionPtr> guarded_;  ///< if some memory may fault: the regions, for errors
  std::uint64_t after_ = 0;
  std::uint64_t total_ = 0;
};

/// Reads ranges of guest memory from the first byte to the last. Moves, never copies. Used by one
/// thread at a time.
class VMSPACE_EXPORT GuestReader : public GuestCursor {
 public:
  /// Of nothing: at its end.
  GuestReader() noexcept {}  // NOLINT(modernize-use-equals-default): see GuestCursor
  /// At the first byte of `ranges`, which are read in their order; empty ones are skipped. Errors:
  /// those of every access (see guest_memory.hpp), for any of the ranges; `overflow` when their sizes
  /// sum to 2^64 or more; `limit_exceeded` above 65536 pieces. O(ranges + regions crossed); allocates
  /// above 16 pieces.
  [[nodiscard, gnu::always_inline]] static Result<GuestReader> make(
      const GuestMemory& memory, std::span<const GuestRange> ranges) {
    // Made in the result, which all ways out return: moving a cursor costs more than translating a
    // range.
    Result<GuestReader> made;
    if (!made->begin_simple<Access::read>(memory, ranges, nullptr)) [[unlikely]]
      make_rest(made, memory, ranges);
    return made;
  }
  // It would point into what is gone at the end of the statement.
  static Result<GuestReader> make(const GuestMemory&& memory,
                                  std::span<const GuestRange> ranges) = delete;

  /// The next sizeof(T) bytes as an object; what is said of integers in it at GuestMemory::read holds
  /// here, within one piece. Errors: `out_of_bounds`. O(1) within a piece.
  template <GuestObject T>
  [[nodiscard]] Result<T> read() {
    if (is_in_piece(sizeof(T))) [[likely]] {
      T value;
      if constexpr (sizeof(T) <= detail::inline_copy_limit) {
        detail::load_once(value, at_);
      } else {
        detail::copy_from_shared(std::addressof(value), at_, sizeof value);
      }
      pass(sizeof(T));
      return value;
    }
    T value;
    const auto ok = read_pieces("GuestReader::read",
                                std::as_writable_bytes(std::span<T, 1>(std::addressof(value), 1)));
    if (!ok) return fail(ok.error());
    return value;
  }

  /// Fills all of `to`. Errors: `out_of_bounds`. O(bytes).
  [[nodiscard]] Result<void> read_exact(std::span<std::byte> to) {
    return read_pieces("GuestReader::read_exact", to);
  }

  /// Passes so many bytes. Errors: `out_of_bounds`. O(pieces).
  [[nodiscard]] Result<void> skip(std::uint64_t bytes);

  /// Ends this reader `bytes` from here; gives one for all that comes after. Errors:
  /// `out_of_bounds`. O(pieces); allocates above 16.
  [[nodiscard]] Result<GuestReader> split_at(std::uint64_t bytes);

  /// Writes up to `bytes` to a descriptor, at its own position or at `offset`, in one system call, as
  /// a packet needs; gives how many it took and passes those. Interrupted calls are repeated. Errors:
  /// `out_of_bounds` when fewer remain; `overflow` when offset + bytes reaches 2^63; `os`. O(bytes).
  [[nodiscard]] Result<std::uint64_t> read_to(int fd, std::uint64_t bytes);
  /// As above, at `offset` of the file instead of its own position.
  [[nodiscard]] Result<std::uint64_t> read_to(int fd, std::uint64_t bytes, std::uint64_t offset);

  /// Writes all of `bytes`, in as many system calls as it takes. Errors: those of read_to(); `os` with
  /// EIO when the descriptor takes no more. What was written before an error is passed.
  [[nodiscard]] Result<void> read_exact_to(int fd, std::uint64_t bytes);
  /// As above, at `offset` of the file instead of its own position.
  [[nodiscard]] Result<void> read_exact_to(int fd, std::uint64_t bytes, std::uint64_t offset);

 private:
  /// Finishes what begin_simple() has given up, or puts the error in its place.
  static void make_rest(Result<GuestReader>& made, const GuestMemory& memory,
                        std::span<const GuestRange> ranges);
  [[nodiscard]] Result<void> read_pieces(const char* operation, std::span<std::byte> to);
  [[nodiscard]] Result<std::uint64_t> send(const char* operation, int fd, std::uint64_t bytes,
                                           std::int64_t offset);
};

/// Writes ranges of guest memory from the first byte to the last, and marks as dirty what it has
/// written, no more. Moves, never copies. Used by one thread at a time.
class VMSPACE_EXPORT GuestWriter : public GuestCursor {
 public:
  /// Of nothing: at its end.
  GuestWriter() noexcept {}  // NOLINT(modernize-use-equals-default): see GuestCursor
  /// At the first byte of `ranges`. Errors and cost: as GuestReader::make, for writing.
  [[nodiscard, gnu::always_inline]] static Result<GuestWriter> make(
      const GuestMemory& memory, std::span<const GuestRange> ranges) {
    Result<GuestWriter> made;  // see GuestReader::make
    if (!made->begin_simple<Access::write>(memory, ranges, &made->parts_)) [[unlikely]]
      make_rest(made, memory, ranges);
    return made;
  }
  static Result<GuestWriter> make(const GuestMemory&& memory,
                                  std::span<const GuestRange> ranges) = delete;

  /// Writes the object; what is said of integers in it at GuestMemory::write holds here, within one
  /// piece. Errors: `out_of_bounds`. O(1) within a piece.
  template <WritableGuestObject T>
  [[nodiscard, gnu::always_inline]] Result<void> write(const T& value) {
    if (is_in_piece(sizeof(T)) && is_in_part(sizeof(T))) [[likely]] {
      if constexpr (sizeof(T) <= detail::inline_copy_limit) {
        detail::store_once(at_, value);
      } else {
        detail::copy_to_shared(at_, std::addressof(value), sizeof value);
      }
      pass(sizeof(T));
      mark_part(sizeof(T));
      return {};
    }
    return write_pieces("GuestWriter::write",
                        std::as_bytes(std::span<const T, 1>(std::addressof(value), 1)));
  }

  /// Writes all of `from`. Errors: `out_of_bounds`. O(bytes).
  [[nodiscard]] Result<void> write_exact(std::span<const std::byte> from) {
    return write_pieces("GuestWriter::write_exact", from);
  }

  /// Passes so many bytes, which stay as they are. Errors: `out_of_bounds`. O(pieces).
  [[nodiscard]] Result<void> skip(std::uint64_t bytes);

  /// Ends this writer `bytes` from here; gives one for all that comes after. Errors:
  /// `out_of_bounds`. O(pieces); allocates above 16.
  [[nodiscard]] Result<GuestWriter> split_at(std::uint64_t bytes);

  /// Reads up to `bytes` from a descriptor, at its own position or at `offset`, in one system call, as
  /// a packet needs; gives how many there were, 0 at the end of a file, and passes those. Interrupted
  /// calls are repeated. Errors: `out_of_bounds` when fewer remain; `overflow` when offset + bytes
  /// reaches 2^63; `os`. O(bytes).
  ///
  /// What the kernel may have written beyond, up to all that it was asked for, is undefined and marked
  /// dirty as well; see read_into_guest().
  [[nodiscard]] Result<std::uint64_t> write_from(int fd, std::uint64_t bytes);
  /// As above, at `offset` of the file instead of its own position.
  [[nodiscard]] Result<std::uint64_t> write_from(int fd, std::uint64_t bytes, std::uint64_t offset);

  /// Reads all of `bytes`, in as many system calls as it takes, of up to 1 MiB each. Errors: those of
  /// write_from(); `os` with EIO when the file ends before. What was read before an error is passed.
  [[nodiscard]] Result<void> write_exact_from(int fd, std::uint64_t bytes);
  /// As above, at `offset` of the file instead of its own position.
  [[nodiscard]] Result<void> write_exact_from(int fd, std::uint64_t bytes, std::uint64_t offset);

  /// Records the next `bytes` as written and passes them: after I/O into the iovecs(). Errors:
  /// `out_of_bounds`. O(pages) while tracking is on, else O(pieces).
  [[nodiscard, gnu::always_inline]] Result<void> commit(std::uint64_t bytes) {
    if (bytes != 0 && is_in_piece(bytes) && is_in_part(bytes)) [[likely]] {
      pass(bytes);
      mark_part(bytes);
      return {};
    }
    return commit_pieces(bytes);
  }

 private:
  static void make_rest(Result<GuestWriter>& made, const GuestMemory& memory,
                        std::span<const GuestRange> ranges);
  [[nodiscard]] Result<void> write_pieces(const char* operation, std::span<const std::byte> from);
  [[nodiscard]] Result<void> commit_pieces(std::uint64_t bytes);
  [[nodiscard]] Result<std::uint64_t> receive(const char* operation, int fd, std::uint64_t bytes,
                                              std::int64_t offset);

  /// Marks and passes bytes of the current part.
  [[gnu::always_inline]] void mark_part(std::uint64_t bytes) noexcept {
    const detail::DirtyPart& part = parts_[part_];
    part.bitmap->mark(part.offset + part_done_, bytes);
    part_done_ += bytes;
  }
  /// Marks the next `bytes`, which remain.
  void mark(std::uint64_t bytes) const noexcept;
  /// Passes the parts of so many bytes; their pieces are passed by pass_pieces().
  void pass_parts(std::uint64_t bytes) noexcept;
  /// As is_in_piece(): where two regions lie side by side on the host, a piece has two parts.
  [[nodiscard, gnu::always_inline]] bool is_in_part(std::size_t bytes) noexcept {
    const std::uint64_t left = parts_[part_].size - part_done_;
    if (left >= bytes) [[likely]]
      return true;
    if (left != 0) return false;
    ++part_;
    part_done_ = 0;
    return parts_[part_].size >= bytes;
  }

  detail::DirtyParts parts_;
  // The current part, by its index. Compilers would load a copy of it in wider words than it was stored
  // in, and the processor waits for stores that it can't forward: 3 ns a request.
  std::size_t part_ = 0;
  std::uint64_t part_done_ = 0;  ///< bytes of it that were passed
};

}  // namespace vmspace
