// SPDX-License-Identifier: Apache-2.0
//
// Guest memory as a device behind an IOMMU sees it: by IOVA, and only what it was given.
//
//   IommuView view(reader, memory);                                  // for the length of a request
//   auto in = VMSPACE_TRY(view.reader(chain.readable()));            // a GuestReader of IOVA ranges
//   const auto header = VMSPACE_TRY(in.read<Header>());
//   const auto flags = VMSPACE_TRY(view.load<Le16>(ring, std::memory_order_acquire));
//
// A view is a short section: while it lives, its translations stay good, and so do cursors, iovecs and
// guest addresses that were made from them; IoTlb::invalidate() waits for its end. So a view ends
// before its thread waits for anything that a driver, or who serves one, has to do.
//
// A range is translated whole, across any number of entries, and checked in guest memory, before any of
// it is touched. Errors of every access: `not_found` for an address without a translation; what
// IoTlbOptions::on_miss gave, and `invalid_argument` where that was a wrong entry; `access_denied` where
// the translation does not allow the access; `overflow` for a range that would pass 2^64;
// `limit_exceeded` above 65536 translations; those of GuestMemory for what an entry refers to. A call that
// fails has changed nothing. What is said of costs is for translations that the table has: a miss costs
// its answer and a copy of the table (IoTlbOptions::on_miss).

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/detail/inline_vector.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/guest_object.hpp"
#include "vmspace/memory/guest_view.hpp"
#include "vmspace/memory/io_tlb.hpp"

namespace vmspace {

/// A GuestMemory behind an IoTlb, with the translations of the moment at which the view began. The
/// memory and the reader have to outlive it. Views of one reader may nest, and then share what the
/// outermost began with.
///
/// Threads: made, used and destroyed by the thread of its reader. Neither copied nor moved: it is a
/// section of the code.
class VMSPACE_EXPORT IommuView {
 public:
  /// Begins: an atomic exchange, and a lock held briefly where the table has changed.
  IommuView(IoTlbReader& reader, const GuestMemory& memory) : reader_(reader), memory_(memory) {
    reader_.begin_view();
    decoder_ = reader_.map_->decoder;
    origin_ = reader_.map_->origin;
  }
  // It would refer to what is gone at the end of the statement.
  IommuView(IoTlbReader& reader, const GuestMemory&& memory) = delete;
  IommuView(const IommuView&) = delete;
  IommuView& operator=(const IommuView&) = delete;
  /// Ends: an atomic exchange. Translations that were made here must not be used afterwards.
  ~IommuView() { reader_.end_view(); }

  // Objects and integers, by IOVA: what GuestMemory promises of each holds within an entry. An integer
  // that entries put in two places is `out_of_bounds`.

  /// A copy of the object at `iova`, read once.
  template <GuestObject T>
  [[nodiscard]] Result<T> read(GuestAddress iova) {
    if (const auto* slot = find(iova, sizeof(T), Access::read)) [[likely]]
      return memory_.read<T>(translated(*slot, iova));
    T value;
    const auto ok = read_across("IommuView::read", iova,
                                std::as_writable_bytes(std::span(std::addressof(value), 1)));
    if (!ok) return fail(ok.error());
    return value;
  }
  /// Writes the object, then marks its pages.
  template <WritableGuestObject T>
  [[nodiscard]] Result<void> write(GuestAddress iova, const T& value) {
    if (const auto* slot = find(iova, sizeof(T), Access::write)) [[likely]]
      return memory_.write(translated(*slot, iova), value);
    return write_across("IommuView::write", iova,
                        std::as_bytes(std::span(std::addressof(value), 1)));
  }

  /// Reads an integer in one access: see GuestMemory::load. Errors: those of every access;
  /// `misaligned`, by the guest address.
  template <GuestAtomic T>
  [[nodiscard]] Result<T> load(GuestAddress iova, std::memory_order order) {
    return with_integer<T>("IommuView::load", iova, Access::read,
                           [&](GuestAddress address) { return memory_.load<T>(address, order); });
  }
  /// Writes an integer in one access: see GuestMemory::store. Errors: those of every access;
  /// `misaligned`, by the guest address.
  template <GuestAtomic T>
  [[nodiscard]] Result<void> store(GuestAddress iova, T value, std::memory_order order) {
    return with_integer<T>("IommuView::store", iova, Access::write, [&](GuestAddress address) {
      return memory_.store<T>(address, value, order);
    });
  }
  /// Stores `desired` if the integer equals `expected`: see GuestMemory::compare_exchange. Errors:
  /// those of every access; `misaligned`, by the guest address.
  template <GuestAtomic T>
  [[nodiscard]] Result<T> compare_exchange(GuestAddress iova, T expected, T desired) {
    return with_integer<T>("IommuView::compare_exchange", iova, Access::write,
                           [&](GuestAddress address) {
                             return memory_.compare_exchange<T>(address, expected, desired);
                           });
  }
  /// Sets bits of an integer: see GuestMemory::fetch_or. Errors: those of every access;
  /// `misaligned`, by the guest address.
  template <GuestAtomic T>
  [[nodiscard]] Result<T> fetch_or(GuestAddress iova, T bits) {
    return with_integer<T>("IommuView::fetch_or", iova, Access::write, [&](GuestAddress address) {
      return memory_.fetch_or<T>(address, bits);
    });
  }

  /// Fills `to`: all of it, or nothing and an error. O(bytes).
  [[nodiscard]] Result<void> read_slice(GuestAddress iova, std::span<std::byte> to) {
    if (const auto* slot = find(iova, to.size(), Access::read)) [[likely]]
      return memory_.read_slice(translated(*slot, iova), to);
    return read_across("IommuView::read_slice", iova, to);
  }
  /// Writes all of `from`, or nothing and an error. O(bytes).
  [[nodiscard]] Result<void> write_slice(GuestAddress iova, std::span<const std::byte> from) {
    if (const auto* slot = find(iova, from.size(), Access::write)) [[likely]]
      return memory_.write_slice(translated(*slot, iova), from);
    return write_across("IommuView::write_slice", iova, from);
  }

  // Ranges. What is made must not be used when the view has ended.

  /// Where the range lies in guest memory, in order; neighbours are one. For a ring, which must be one
  /// range, and for what takes guest ranges. Not checked against the memory. O(entries); allocates.
  [[nodiscard]] Result<std::vector<GuestRange>> translate(GuestRange iova, Access access);
  /// A cursor over ranges of IOVAs, such as those of a DescriptorChain. O(ranges + entries + regions);
  /// allocates above 16 pieces.
  [[nodiscard]] Result<GuestReader> reader(std::span<const GuestRange> iovas);
  /// As reader(), for ranges that the device writes.
  [[nodiscard]] Result<GuestWriter> writer(std::span<const GuestRange> iovas);
  /// Ranges of IOVAs as a list for readv(2) or writev(2): see GuestMemory::iovecs.
  [[nodiscard]] Result<GuestIovecs> iovecs(std::span<const GuestRange> iovas, Access access);

 private:
  using Ranges = detail::InlineVector<GuestRange, detail::inline_pieces>;

  /// The slot that holds all of a range which is not empty; null when there is none, or it does not
  /// allow the access.
  [[nodiscard, gnu::always_inline]] const detail::IoTlbSlot* find(GuestAddress iova,
                                                                  std::uint64_t bytes,
                                                                  Access access) const noexcept {
    const std::uint64_t at = iova.value() - origin_;
    const detail::IoTlbSlot* slot = decoder_.nearest(at);
    return slot->holds(at, bytes, access) ? slot : nullptr;
  }
  [[nodiscard]] GuestAddress translated(const detail::IoTlbSlot& slot,
                                        GuestAddress iova) const noexcept {
    return GuestAddress(slot.guest + (iova.value() - origin_ - slot.first));
  }

  template <typename T, typename Use>
  [[nodiscard, gnu::always_inline]] std::invoke_result_t<Use, GuestAddress> with_integer(
      const char* operation, GuestAddress iova, Access access, Use use) {
    if (const auto* slot = find(iova, sizeof(T), access)) [[likely]]
      return use(translated(*slot, iova));
    const auto address = find_integer(operation, iova, sizeof(T), access);
    if (!address) return fail(address.error());
    return use(*address);
  }

  // Out of line: what lies in several entries, or in none.
  [[gnu::cold]] Result<void> read_across(const char* operation, GuestAddress iova,
                                         std::span<std::byte> to);
  [[gnu::cold]] Result<void> write_across(const char* operation, GuestAddress iova,
                                          std::span<const std::byte> from);
  [[gnu::cold]] Result<GuestAddress> find_integer(const char* operation, GuestAddress iova,
                                                  std::size_t size, Access access);
  /// Appends where the ranges lie.
  [[nodiscard]] Result<void> append(const char* operation, std::span<const GuestRange> iovas,
                                    Access access, Ranges& ranges);

  IoTlbReader& reader_;
  const GuestMemory& memory_;
  detail::Decoder<detail::IoTlbSlot> decoder_;
  std::uint64_t origin_;
};

}  // namespace vmspace
