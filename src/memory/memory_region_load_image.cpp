// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/try.hpp"
#include "vmspace/memory/detail/guest_access.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/marked_read.hpp"

namespace vmspace {

Result<void> MemoryRegion::check_image(const char* operation, std::uint64_t offset,
                                       std::uint64_t size) const {
  if (offset > this->size() || size > this->size() - offset) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::span(offset, size),
                 .second = Operand::span(0, this->size()),
                 .reason = "the image must lie within the region"});
  }
  if (blocks_ != nullptr && blocks_->present_after(offset, size) != size) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = Operand::span(offset, size),
                 .second = detail::operand(description_->guest_range()),
                 .reason = "the image must lie within blocks that are plugged"});
  }
  if (!allows(mapping().protection(), Protection::write)) {
    return fail({.code = Errc::access_denied,
                 .operation = operation,
                 .first = detail::operand(description_->guest_range()),
                 .reason = "the region's mapping must be writable"});
  }
  return {};
}

Result<void> MemoryRegion::load_image(std::uint64_t offset,
                                      std::span<const std::byte> bytes) const {
  constexpr const char* operation = "MemoryRegion::load_image";
  VMSPACE_TRY(check_image(operation, offset, bytes.size()));
  if (bytes.empty()) return {};
  const auto copied = detail::touch_region(operation, *this, offset, bytes.size(), [&] {
    detail::copy_to_shared(host_base() + offset, bytes.data(), bytes.size());
  });
  dirty().mark(offset, bytes.size());  // also when a part was written
  return copied;
}

Result<std::uint64_t> MemoryRegion::load_image_from(int fd, std::uint64_t offset,
                                                    std::uint64_t size) const {
  constexpr const char* operation = "MemoryRegion::load_image_from";
  VMSPACE_TRY(check_image(operation, offset, size));
  const auto read = detail::marked_read(
      fd, {.host = host_base() + offset, .size = size, .dirty = dirty(), .offset = offset});
  if (detail::is_fault(*this, read.error)) {
    return fail(detail::fault_error(operation, {GuestAddress(base().value() + offset), size},
                                    GuestAddress(base().value() + offset + read.bytes)));
  }
  if (read.error != 0) {
    return detail::fail_os(operation, Operand::span(offset, size), "read", read.error);
  }
  return read.bytes;
}

}  // namespace vmspace
