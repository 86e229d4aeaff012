// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/iommu_view.hpp"

#include <algorithm>
#include <limits>

#include "vmspace/base/try.hpp"

namespace vmspace {

namespace {

/// Whether `next` continues the last of the ranges; not where both together have 2^64 bytes.
template <typename Ranges>
bool continues(Ranges& ranges, const GuestRange& next) {
  if (ranges.empty()) return false;
  const auto end = ranges.back().end();
  return end && *end == next.base &&
         next.size <= std::numeric_limits<std::uint64_t>::max() - ranges.back().size;
}

}  // namespace

Result<void> IommuView::append(const char* operation, std::span<const GuestRange> iovas,
                               Access access, Ranges& ranges) {
  // Each may be a miss, also where they give one piece together.
  std::size_t translations = 0;
  for (const GuestRange& range : iovas) {
    if (range.empty()) continue;
    VMSPACE_TRY_IN(operation, range.range());
    for (std::uint64_t done = 0; done < range.size;) {
      const GuestAddress iova(range.base.value() + done);
      const detail::IoTlbSlot slot = VMSPACE_TRY_IN(operation, reader_.find(iova, access));
      const std::uint64_t offset = iova.value() - slot.first;
      const GuestRange part{GuestAddress(slot.guest + offset),
                            std::min(slot.size - offset, range.size - done)};
      if (continues(ranges, part)) {
        ranges.back().size += part.size;
      } else {
        ranges.push_back(part);
      }
      if (++translations > detail::GuestPieces::max_count) {
        return fail({.code = Errc::limit_exceeded,
                     .operation = operation,
                     .first = Operand::number(translations),
                     .second = Operand::number(detail::GuestPieces::max_count),
                     .reason = "more translations than one request may need"});
      }
      done += part.size;
    }
  }
  return {};
}

Result<std::vector<GuestRange>> IommuView::translate(GuestRange iova, Access access) {
  Ranges ranges;
  VMSPACE_TRY(append("IommuView::translate", std::span(&iova, 1), access, ranges));
  return std::vector(ranges.values().begin(), ranges.values().end());
}

Result<GuestReader> IommuView::reader(std::span<const GuestRange> iovas) {
  constexpr const char* operation = "IommuView::reader";
  Ranges ranges;
  VMSPACE_TRY(append(operation, iovas, Access::read, ranges));
  return VMSPACE_TRY_IN(operation, GuestReader::make(memory_, ranges.values()));
}

Result<GuestWriter> IommuView::writer(std::span<const GuestRange> iovas) {
  constexpr const char* operation = "IommuView::writer";
  Ranges ranges;
  VMSPACE_TRY(append(operation, iovas, Access::write, ranges));
  return VMSPACE_TRY_IN(operation, GuestWriter::make(memory_, ranges.values()));
}

Result<GuestIovecs> IommuView::iovecs(std::span<const GuestRange> iovas, Access access) {
  constexpr const char* operation = "IommuView::iovecs";
  Ranges ranges;
  VMSPACE_TRY(append(operation, iovas, access, ranges));
  return VMSPACE_TRY_IN(operation, memory_.iovecs(ranges.values(), access));
}

Result<void> IommuView::read_across(const char* operation, GuestAddress iova,
                                    std::span<std::byte> to) {
  const GuestRange range{iova, to.size()};
  auto in = VMSPACE_TRY_IN(operation, reader(std::span(&range, 1)));
  VMSPACE_TRY_IN(operation, in.read_exact(to));
  return {};
}

Result<void> IommuView::write_across(const char* operation, GuestAddress iova,
                                     std::span<const std::byte> from) {
  const GuestRange range{iova, from.size()};
  auto out = VMSPACE_TRY_IN(operation, writer(std::span(&range, 1)));
  VMSPACE_TRY_IN(operation, out.write_exact(from));
  return {};
}

Result<GuestAddress> IommuView::find_integer(const char* operation, GuestAddress iova,
                                             std::size_t size, Access access) {
  const GuestRange range{iova, size};
  Ranges ranges;
  VMSPACE_TRY(append(operation, std::span(&range, 1), access, ranges));
  if (ranges.size() != 1) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "an integer must not lie in two places"});
  }
  return ranges[0].base;
}

}  // namespace vmspace
