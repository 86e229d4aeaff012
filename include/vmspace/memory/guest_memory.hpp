// SPDX-License-Identifier: Apache-2.0
//
// The guest's memory, to read and write by guest physical address.
//
// Everything here is called with numbers that a guest chose. Three rules hold for all of them:
//
// - A range is checked whole, without arithmetic that can wrap, before any of it is touched. It may
//   cross from a region into the next one if that begins where the first ends; a gap inside is an
//   error, and so is a range that would pass 2^64. A range may end with the last byte, 2^64-1. An
//   empty range touches nothing and is accepted anywhere, except where a pointer is asked for.
// - What is read is copied once into memory that the guest can't reach, and never read again behind
//   the caller's back (see detail/guest_access.hpp).
// - A call that fails has changed nothing, unless it says otherwise.
//
// Errors of every access: `not_found` for a first byte that no region holds; `out_of_bounds` for a
// range that runs into a gap; `overflow` for one that would pass 2^64; `access_denied` where the
// region may not be read, or written; `fault` where a page is gone of memory that may fault (see
// fault_guard.hpp; no other memory has this error). Only that is found in the middle: all below that
// page was accessed then. What was written so far is marked, a read has filled its target so far, and
// the error's second operand is the first address without a page (of a system call, where it began).
// Pointers, views and iovecs are not guarded.
//
// Longer than 450 lines: one class, and its accesses have to be inline, each with what it promises.

#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/detail/guest_access.hpp"
#include "vmspace/memory/detail/translation_table.hpp"
#include "vmspace/memory/guest_object.hpp"
#include "vmspace/memory/guest_view.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace vmspace {

namespace detail {
struct Touched;
}

/// What the host is about to do to guest memory.
enum class Access : std::uint8_t { read, write };

/// An immutable, sorted set of mapped regions that do not overlap, with quick translation.
///
/// A handle of four words: copies share one set, and keep it alive. A change makes a new
/// GuestMemory that shares the regions that stay. Every call is const and may be made from any
/// thread at any time; accesses are not ordered among threads, except load(), store(),
/// compare_exchange() and fetch_or() as their memory order says. There is no move: moving copies,
/// and leaves both usable.
///
/// Of a region that is present in parts (MemoryRegion::blocks) only these are memory: to every access
/// the others are gaps. Such accesses take the slow way, which looks at a bit for each block, until all
/// of the region is present; those to memory that may fault (MemoryRegion::may_fault) always do.
///
/// Invariant: regions are sorted by address and overlap neither in guest addresses nor in memory, and
/// every readable one that is whole and can't fault is found by its first and its last byte.
class VMSPACE_EXPORT GuestMemory {
 public:
  /// The most regions that one map can hold.
  static constexpr std::size_t max_regions = 512;

  /// No memory: every address is not_found.
  GuestMemory() noexcept : translator_(detail::TranslationTable::empty()) {}
  GuestMemory(const GuestMemory&) = default;
  GuestMemory& operator=(const GuestMemory&) = default;
  ~GuestMemory() = default;

  /// Makes a map of these regions, given in any order. If one of them tracks dirty pages, all do
  /// afterwards. Errors: `overlap`, of addresses, or of memory (a region and one that at() or part() made
  /// of it); `limit_exceeded` above max_regions; `invalid_argument` for a null pointer; those of
  /// DirtyBitmap::enable. O(n log n).
  [[nodiscard]] static Result<GuestMemory> from_regions(std::vector<MemoryRegionPtr> regions);

  /// Maps every region of the address space that has a backing, then populates those that ask for
  /// it, all at once. For a guest that is about to start, since each call makes new memory: once it
  /// runs, remap() keeps what the regions hold.
  ///
  /// `options` apply to each region, except that `backing` is divided among them. In address order,
  /// each takes the next part of it, from `backing_offset` on and without gaps, so that a region
  /// plugged later goes behind the last. Regions that name a file (firmware, DAX) keep theirs and
  /// take no part. The kernel makes huge pages of a memfd only where offset and guest address agree
  /// modulo their size, which holds as long as the sizes of all regions are multiples of it.
  ///
  /// Errors: `out_of_bounds` for a backing that is too short for all of them; those of
  /// MemoryRegion::map, populate() and from_regions; nothing stays mapped then. A few system calls
  /// a region.
  [[nodiscard]] static Result<GuestMemory> map(const AddressSpaceBase& space,
                                               const MapOptions& options = {});

  /// This memory after the address space has changed. Regions that are described as they were stay,
  /// with what they hold. One that differs in its base only has moved, and keeps its memory
  /// (MemoryRegion::at): to replace a region by an identical one elsewhere, remap twice. Those that
  /// are new are mapped, as by map(); the others are let go, as by without_region(). A region whose
  /// description changed in place is an error, because what it holds would be lost: remove it in a
  /// separate step first.
  ///
  /// `options.backing` is divided among the new regions only: where regions that stay have parts of
  /// it, `backing_offset` must lie behind those.
  ///
  /// Errors: `bad_state` for a region whose description changed in place, and when several regions
  /// that differ only in their base come or go; `overlap` for a part of the backing that another
  /// region has; those of MemoryRegion::at, which `options.move` may allow; those of map(). This
  /// memory stays as it is then. O(n^2) in regions that come and go, and map() for the new ones.
  [[nodiscard]] Result<GuestMemory> remap(const AddressSpaceBase& after,
                                          const MapOptions& options = {}) const;

  /// Maps plain RAM without an address space: a shared memfd for each range. Errors: those of
  /// from_regions, AddressSpaceRegion::make and MemoryRegion::map. A few system calls a range.
  [[nodiscard]] static Result<GuestMemory> create(std::span<const GuestRange> ram);

  /// These regions and one more. Errors: those of from_regions. O(n).
  [[nodiscard]] Result<GuestMemory> with_region(MemoryRegionPtr region) const;
  /// These regions without the one that begins at `base`. Errors: `not_found` when none begins
  /// there; those of from_regions. O(n). The region is unmapped when the last map, view or other
  /// holder lets go of it.
  [[nodiscard]] Result<GuestMemory> without_region(GuestAddress base) const;

  /// These regions without those `removed`, which this map has, and with those `added`: all of it, or
  /// an error. Errors: `not_found` for a region to be removed that is not in the map; those of
  /// from_regions. O((n + m) log m) for m changes.
  [[nodiscard]] Result<GuestMemory> with_changes(std::span<const MemoryRegionPtr> removed,
                                                 std::vector<MemoryRegionPtr> added) const;

  /// The regions, sorted by address; valid while this map or a copy of it lives. O(1).
  [[nodiscard]] std::span<const MemoryRegionPtr> regions() const noexcept;
  /// The region that holds `address`, also in a block of it that is absent; null when none does. A
  /// reference is taken, which costs several times the look-up; see region_at(). O(1) as accesses
  /// are, O(log n) for a region that can't be read or lacks blocks.
  [[nodiscard]] MemoryRegionPtr find_region(GuestAddress address) const;
  /// As find_region(), without a reference: valid while this map or a copy of it lives.
  [[nodiscard]] const MemoryRegion* region_at(GuestAddress address) const noexcept;
  /// The regions that have a byte of the range, in address order, also where that may not be accessed
  /// or its block is absent; valid while this map or a copy of it lives. GuestRange::intersection tells
  /// how much of each. An empty range has no byte, and one that passes 2^64 ends there. O(log n), and
  /// O(regions found).
  [[nodiscard]] std::span<const MemoryRegionPtr> overlapping(GuestRange range) const noexcept;
  /// Whether every byte of the range can be accessed; an empty range always. O(regions crossed).
  [[nodiscard]] bool contains(GuestRange range, Access access = Access::read) const noexcept;
  /// Checks that every byte of the range can be accessed. Errors: those of every access. O(regions
  /// crossed).
  [[nodiscard]] Result<void> check(GuestRange range, Access access) const;
  /// The bytes of all regions together, without absent blocks. O(n).
  [[nodiscard]] std::uint64_t total_size() const noexcept;
  /// The highest address of any region, inclusive; nothing when there are no regions. O(1).
  [[nodiscard]] std::optional<GuestAddress> last_addr() const noexcept;

  /// Where the range lies in this process, contiguous and writable. After a write through the
  /// pointer call mark_dirty(), and keep this map for as long as the pointer is used. Errors: those
  /// of every access; `zero_size`; `out_of_bounds` also for a range that crosses regions, unless they
  /// lie side by side in one arena. O(regions crossed).
  [[nodiscard]] Result<std::byte*> host_address(GuestRange range) const {
    const auto* entry = entry_of<Access::write>(translator_, range);
    if (entry == nullptr) [[unlikely]]
      return host_address_across(range);
    return entry->host + (range.base.value() - entry->first);
  }
  /// Where the range lies in this process, contiguous, for reading only: also in read-only regions.
  /// Errors: those of host_address(), for reading. O(regions crossed).
  [[nodiscard]] Result<const std::byte*> const_host_address(GuestRange range) const {
    const auto* entry = entry_of<Access::read>(translator_, range);
    if (entry == nullptr) [[unlikely]]
      return const_host_address_across(range);
    return entry->host + (range.base.value() - entry->first);
  }
  /// Records a write that was made through a pointer of host_address(), after the write; see
  /// dirty_tracking.hpp. Errors: those of every access. O(pages) while tracking is on, else
  /// O(regions crossed).
  [[nodiscard]] Result<void> mark_dirty(GuestRange range) const;
  /// The guest address of a byte of this process; nothing when it lies in no region. O(log n).
  [[nodiscard]] std::optional<GuestAddress> guest_address(const void* host) const noexcept;

  // Objects, at any alignment.

  /// A copy of the object at `address`, read once. In an object of up to 64 bytes, integers of 2, 4
  /// or 8 bytes that lie at a multiple of their size in the guest are never torn, wherever the object
  /// begins; of larger objects nothing is promised. Two or three nanoseconds for an integer. Bytes
  /// are not converted: see LittleEndian.
  template <GuestObject T>
  [[nodiscard]] Result<T> read(GuestAddress address) const {
    T value;
    if constexpr (sizeof(T) > detail::inline_copy_limit) {
      if (!read_long(address, std::as_writable_bytes(std::span(std::addressof(value), 1))))
          [[unlikely]] {
        const auto ok = read_across("GuestMemory::read", address, &value, sizeof value);
        if (!ok) return fail(ok.error());
      }
    } else {
      const auto* entry = translator_.find(address.value(), sizeof(T));
      if (entry != nullptr) [[likely]] {
        detail::load_once(value, entry->host + (address.value() - entry->first));
      } else {
        // A variable of its own, so that `value` has no address and stays in a register.
        T crossing;
        const auto ok =
            read_across("GuestMemory::read", address, std::addressof(crossing), sizeof crossing);
        if (!ok) return fail(ok.error());
        value = crossing;
      }
    }
    return value;
  }

  /// Writes the object, each byte once, and integers in it as read() reads them; then marks its
  /// pages.
  template <WritableGuestObject T>
  [[nodiscard]] Result<void> write(GuestAddress address, const T& value) const {
    if constexpr (sizeof(T) > detail::inline_copy_limit) {
      if (write_long(address, std::as_bytes(std::span(std::addressof(value), 1)))) [[likely]]
        return {};
      return write_across("GuestMemory::write", address, &value, sizeof value);
    } else {
      const auto* entry = translator_.find(address.value(), sizeof(T));
      // Loaded before the store: for all the compiler knows, the store may change the entry.
      DirtyBitmap* const dirty = entry != nullptr ? entry->dirty : nullptr;
      if (dirty == nullptr) [[unlikely]] {
        const T crossing = value;
        return write_across("GuestMemory::write", address, std::addressof(crossing),
                            sizeof crossing);
      }
      const std::uint64_t offset = address.value() - entry->first;
      detail::store_once(entry->host + offset, value);
      dirty->mark(offset, sizeof(T));
      return {};
    }
  }

  // Integers that are never torn, and ordered among threads and with the guest. `misaligned` unless
  // the address is a multiple of the size. A memory order that the operation does not support is
  // taken as seq_cst, the strongest.

  /// Reads the integer in one access. Errors: `misaligned`; those of every access. O(1).
  template <GuestInteger T>
  [[nodiscard]] Result<T> load(GuestAddress address, std::memory_order order) const {
    const auto load_at = [order](T* at, DirtyBitmap*, std::uint64_t) -> Result<T> {
      switch (order) {
        case std::memory_order_relaxed: return __atomic_load_n(at, __ATOMIC_RELAXED);
        case std::memory_order_consume:
        case std::memory_order_acquire: return __atomic_load_n(at, __ATOMIC_ACQUIRE);
        default: return __atomic_load_n(at, __ATOMIC_SEQ_CST);
      }
    };
    return with_integer<T, Access::read>("GuestMemory::load", address, load_at);
  }

  /// Writes the integer in one access, then marks its page. Errors: `misaligned`; those of every
  /// access. O(1).
  template <GuestInteger T>
  [[nodiscard]] Result<void> store(GuestAddress address, T value, std::memory_order order) const {
    const auto store_at = [=](T* at, DirtyBitmap* dirty, std::uint64_t offset) -> Result<void> {
      switch (order) {
        case std::memory_order_relaxed: __atomic_store_n(at, value, __ATOMIC_RELAXED); break;
        case std::memory_order_release: __atomic_store_n(at, value, __ATOMIC_RELEASE); break;
        default: __atomic_store_n(at, value, __ATOMIC_SEQ_CST); break;
      }
      dirty->mark(offset, sizeof(T));
      return {};
    };
    return with_integer<T, Access::write>("GuestMemory::store", address, store_at);
  }

  /// Stores `desired` if the integer equals `expected`, in one step; gives what was there before,
  /// so it was stored if that equals `expected`. seq_cst. Errors: `misaligned`; those of every
  /// access. O(1).
  template <GuestInteger T>
  [[nodiscard]] Result<T> compare_exchange(GuestAddress address, T expected, T desired) const {
    const auto exchange_at = [=](T* at, DirtyBitmap* dirty, std::uint64_t offset) -> Result<T> {
      T before = expected;  // overwritten with what was there when it was not equal
      if (__atomic_compare_exchange_n(at, &before, desired, false, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST)) {
        dirty->mark(offset, sizeof(T));
      }
      return before;
    };
    return with_integer<T, Access::write>("GuestMemory::compare_exchange", address, exchange_at);
  }

  /// Sets bits in one step; gives the integer as it was before. seq_cst. Errors: `misaligned`;
  /// those of every access. O(1).
  template <GuestInteger T>
  [[nodiscard]] Result<T> fetch_or(GuestAddress address, T bits) const {
    const auto or_at = [bits](T* at, DirtyBitmap* dirty, std::uint64_t offset) -> Result<T> {
      const T before = __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST);
      dirty->mark(offset, sizeof(T));
      return before;
    };
    return with_integer<T, Access::write>("GuestMemory::fetch_or", address, or_at);
  }

  /// As load() of an integer, for a type that has a byte order: `load<Le16>(address, order)`.
  template <GuestEndianInteger T>
  [[nodiscard]] Result<T> load(GuestAddress address, std::memory_order order) const {
    return in_order<T>(load<typename T::value_type>(address, order));
  }
  /// As store() of an integer, for a type that has a byte order.
  template <GuestEndianInteger T>
  [[nodiscard]] Result<void> store(GuestAddress address, T value, std::memory_order order) const {
    return store(address, std::bit_cast<typename T::value_type>(value), order);
  }
  /// As compare_exchange() of an integer, for a type that has a byte order.
  template <GuestEndianInteger T>
  [[nodiscard]] Result<T> compare_exchange(GuestAddress address, T expected, T desired) const {
    using Stored = typename T::value_type;
    return in_order<T>(
        compare_exchange(address, std::bit_cast<Stored>(expected), std::bit_cast<Stored>(desired)));
  }
  /// As fetch_or() of an integer, for a type that has a byte order.
  template <GuestEndianInteger T>
  [[nodiscard]] Result<T> fetch_or(GuestAddress address, T bits) const {
    return in_order<T>(fetch_or(address, std::bit_cast<typename T::value_type>(bits)));
  }

  // Bytes, across adjacent regions.

  /// Fills `to` from the guest: all of it, or nothing and an error; see `fault` above.
  [[nodiscard]] Result<void> read_slice(GuestAddress address, std::span<std::byte> to) const {
    const bool done =
        detail::is_short(to.size()) ? read_short(address, to) : read_long(address, to);
    if (done) [[likely]]
      return {};
    return read_across("GuestMemory::read_slice", address, to.data(), to.size());
  }

  /// Writes all of `from` into the guest, or nothing and an error; see `fault` above.
  [[nodiscard]] Result<void> write_slice(GuestAddress address,
                                         std::span<const std::byte> from) const {
    const bool done =
        detail::is_short(from.size()) ? write_short(address, from) : write_long(address, from);
    if (done) [[likely]]
      return {};
    return write_across("GuestMemory::write_slice", address, from.data(), from.size());
  }

  /// Reads up to the first gap, unreadable region, page that is gone or 2^64; gives how many bytes. An
  /// error when the first byte can't be read; 0 for an empty span.
  [[nodiscard]] Result<std::size_t> read_some(GuestAddress address, std::span<std::byte> to) const;
  /// Writes up to the first gap, read-only region, page that is gone or 2^64; gives how many bytes. An
  /// error when the first byte can't be written; 0 for an empty span.
  [[nodiscard]] Result<std::size_t> write_some(GuestAddress address,
                                               std::span<const std::byte> from) const;

  /// Sets every byte of the range, or none; see `fault` above. Errors: those of every access. O(bytes).
  [[nodiscard]] Result<void> fill(GuestRange range, std::byte value) const;
  /// Copies the range `from` to the address `to`; they may overlap, as with memmove. Both are
  /// checked first. Errors: those of every access; after a `fault`, some pages of the target are
  /// copied and marked. O(bytes).
  [[nodiscard]] Result<void> copy(GuestAddress to, GuestRange from) const;

  /// The text from `address` to its terminating 0, without it. Errors: `limit_exceeded` when there
  /// is no 0 among `limit` bytes; those of every access when the memory ends before a 0. O(bytes);
  /// allocates.
  [[nodiscard]] Result<std::string> read_string(GuestAddress address, std::size_t limit) const;

  // Views, which hold this map. One atomic increment each.

  /// The range as bytes to read, kept mapped by the view. Errors: as const_host_address(), but an
  /// empty range gives an empty view. O(1).
  [[nodiscard]] Result<GuestView> view(GuestRange range) const;
  /// The range as bytes to read and write, marked dirty when the view ends. Errors: as
  /// host_address(), but an empty range gives an empty view, and one that crosses regions is
  /// `out_of_bounds` in an arena as well. O(1), and at the end O(pages) while tracking is on.
  [[nodiscard]] Result<MutableGuestView> mutable_view(GuestRange range) const;
  /// A list of pieces for readv(2), which writes to the guest (Access::write), or writev(2): one a
  /// region, so fewer than IOV_MAX. Errors: those of every access; an empty range gives none.
  [[nodiscard]] Result<GuestIovecs> iovecs(GuestRange range, Access access) const {
    return iovecs(std::span(&range, 1), access);
  }
  /// Several ranges as one list, in their order, such as the buffers of a request; readv(2) takes
  /// IOV_MAX of them at a time. Errors: those of every access; `overflow` when the sizes sum to 2^64
  /// or more; `limit_exceeded` above 65536 pieces. Allocates above 16 pieces.
  [[nodiscard]] Result<GuestIovecs> iovecs(std::span<const GuestRange> ranges, Access access) const;

  /// `corrupt` when the invariant is broken, with the first broken rule as the reason. For tests;
  /// O(n).
  [[nodiscard]] Result<void> check_invariants() const noexcept;

 private:
  friend struct detail::GuestPieces;
  friend class GuestCursor;
  struct Map;
  class Pieces;

  /// Where the map keeps the region that holds `address`; null when none does.
  [[nodiscard]] const MemoryRegionPtr* place_of(GuestAddress address) const noexcept;

  /// The first broken rule of the invariant, or null.
  [[nodiscard]] const char* broken_rule() const noexcept;

  explicit GuestMemory(std::shared_ptr<const Map> map) noexcept;

  /// The entry that holds all of a range that may be accessed; null for a range that takes the slow
  /// way, which also finds the error.
  template <Access access>
  [[nodiscard, gnu::always_inline]] static const detail::TranslationEntry* entry_of(
      const detail::Translator& translator, GuestRange range) noexcept {
    const auto* entry = translator.find_any(range.base.value(), range.size);
    if constexpr (access == Access::write) {
      if (entry != nullptr && entry->dirty == nullptr) [[unlikely]]
        return nullptr;
    }
    return entry;
  }

  // Slices that lie in one region; false, and nothing done, for others. Short and long ones have
  // functions of their own, so that the former need not save registers around the latter's memcpy.

  [[nodiscard]] bool read_short(GuestAddress address, std::span<std::byte> to) const noexcept {
    return read_at<detail::copy_short>(translator_.find(address.value(), to.size()), address, to);
  }
  [[nodiscard]] bool read_long(GuestAddress address, std::span<std::byte> to) const noexcept {
    return read_at<detail::copy_from_shared>(translator_.find_any(address.value(), to.size()),
                                             address, to);
  }
  [[nodiscard]] bool write_short(GuestAddress address,
                                 std::span<const std::byte> from) const noexcept {
    return write_at<detail::copy_short>(translator_.find(address.value(), from.size()), address,
                                        from);
  }
  [[nodiscard]] bool write_long(GuestAddress address,
                                std::span<const std::byte> from) const noexcept {
    return write_at<detail::copy_to_shared>(translator_.find_any(address.value(), from.size()),
                                            address, from);
  }

  template <auto Copy>
  [[gnu::always_inline]] static bool read_at(const detail::TranslationEntry* entry,
                                             GuestAddress address,
                                             std::span<std::byte> to) noexcept {
    if (entry == nullptr) [[unlikely]]
      return false;
    Copy(to.data(), entry->host + (address.value() - entry->first), to.size());
    return true;
  }

  template <auto Copy>
  [[gnu::always_inline]] static bool write_at(const detail::TranslationEntry* entry,
                                              GuestAddress address,
                                              std::span<const std::byte> from) noexcept {
    // Loaded before the copy: for all the compiler knows, the copy may change the entry.
    DirtyBitmap* const dirty = entry != nullptr ? entry->dirty : nullptr;
    if (dirty == nullptr) [[unlikely]]
      return false;
    const std::uint64_t offset = address.value() - entry->first;
    Copy(entry->host + offset, from.data(), from.size());
    dirty->mark(offset, from.size());
    return true;
  }

  /// The integer of a byte order whose bytes were loaded.
  template <typename T>
  [[gnu::always_inline]] static Result<T> in_order(const Result<typename T::value_type>& stored) {
    if (!stored) [[unlikely]]
      return fail(stored.error());
    return std::bit_cast<T>(*stored);
  }

  /// Where an aligned integer is, and what is to be marked when it is written.
  struct IntegerPlace {
    std::byte* host;
    DirtyBitmap* dirty;
    std::uint64_t offset;
    bool may_fault;
  };

  /// Calls `use(T*, DirtyBitmap*, offset)` for an aligned integer that may be accessed.
  // Regions and their mappings begin at multiples of a page, so that an aligned guest address is
  // aligned in this process.
  template <typename T, Access access, typename Use>
  [[nodiscard, gnu::always_inline]] auto with_integer(const char* operation, GuestAddress address,
                                                      Use use) const {
    const auto* entry = translator_.find(address.value(), sizeof(T));
    bool is_found = entry != nullptr && address.is_aligned(sizeof(T));
    if constexpr (access == Access::write) is_found = is_found && entry->dirty != nullptr;
    if (!is_found) [[unlikely]]
      return with_integer_across<T>(operation, address, access, use);
    const std::uint64_t offset = address.value() - entry->first;
    return use(reinterpret_cast<T*>(entry->host + offset), entry->dirty, offset);
  }
  template <typename T, typename Use>
  [[gnu::cold, gnu::noinline]] std::invoke_result_t<Use, T*, DirtyBitmap*, std::uint64_t>
  with_integer_across(const char* operation, GuestAddress address, Access access, Use use) const {
    const auto place = find_integer(operation, address, sizeof(T), access);
    if (!place) return fail(place.error());
    const auto use_place = [&] {
      return use(reinterpret_cast<T*>(place->host), place->dirty, place->offset);
    };
    if (!place->may_fault) return use_place();
    std::invoke_result_t<Use, T*, DirtyBitmap*, std::uint64_t> result;
    auto use_guarded = [&] { result = use_place(); };
    const auto ok = touch_integer(
        operation, {address, sizeof(T)}, *place,
        [](void* guarded) { (*static_cast<decltype(use_guarded)*>(guarded))(); }, &use_guarded);
    if (!ok) return fail(ok.error());
    return result;
  }

  // Out of line: what is rare, and every Error, so that the accessors above stay a few
  // instructions.
  [[gnu::cold]] Result<void> read_across(const char* operation, GuestAddress address, void* to,
                                         std::size_t size) const;
  [[gnu::cold]] Result<void> write_across(const char* operation, GuestAddress address,
                                          const void* from, std::size_t size) const;
  [[nodiscard]] detail::Touched read_pieces(GuestRange range, void* to) const;
  [[nodiscard]] detail::Touched write_pieces(GuestRange range, const void* from) const;
  [[gnu::cold]] Result<IntegerPlace> find_integer(const char* operation, GuestAddress address,
                                                  std::size_t size, Access access) const;
  [[nodiscard, gnu::cold]] Result<std::byte*> host_address_across(GuestRange range) const;
  [[nodiscard, gnu::cold]] Result<const std::byte*> const_host_address_across(
      GuestRange range) const;
  /// Calls `touch(argument)`, which accesses an integer of memory that may fault.
  [[gnu::cold]] static Result<void> touch_integer(const char* operation, GuestRange integer,
                                                  const IntegerPlace& place, void (*touch)(void*),
                                                  void* argument);
  [[gnu::cold]] Error range_error(const char* operation, GuestRange range, Access access) const;
  [[nodiscard]] Result<void> check(const char* operation, GuestRange range, Access access) const;
  /// How many bytes from the start of the range can be accessed.
  [[nodiscard]] std::uint64_t reachable(GuestRange range, Access access) const noexcept;

  detail::Translator translator_;
  std::shared_ptr<const Map> map_;  ///< null without regions; what translator_ points into
};

}  // namespace vmspace
