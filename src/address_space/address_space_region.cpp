// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/address_space_region.hpp"

#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "vmspace/base/try.hpp"

#include "address_space/known_values.hpp"
#include "spec/backing_rules.hpp"
#include "spec/known_values.hpp"

namespace vmspace {

namespace {

constexpr const char* make_region_operation = "AddressSpaceRegion::make";

Result<void> check_known(const RegionOptions& options) {
  const auto unknown = [&](auto value, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = make_region_operation,
                 .first = Operand::number(static_cast<std::uint64_t>(value)),
                 .reason = reason,
                 .text = options.name});
  };
  if (!is_known(options.type)) return unknown(options.type, "not a value of RegionType");
  if (!is_known(options.backing.source)) {
    return unknown(options.backing.source, "not a value of MemorySource");
  }
  if (!is_known(options.backing.sharing))
    return unknown(options.backing.sharing, "not a value of Sharing");
  if (!is_known(options.protection)) return unknown(options.protection, "unknown protection bits");
  return {};
}

Result<void> check_backing(const RegionOptions& options) {
  const BackingSpec& backing = options.backing;
  const Operand where = Operand::span(options.base.value(), options.size);
  const auto invalid = [&](const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = make_region_operation,
                 .first = where,
                 .reason = reason,
                 .text = {options.name, backing.path}});
  };
  if (backing.source == MemorySource::none) {
    if (backing != BackingSpec{})
      return invalid("with source none, all other backing fields must be left at their defaults");
    if (options.numa_node) return invalid("numa_node requires a backing");
    if (options.huge_pages) return invalid("huge_pages requires a backing");
    if (options.populate) return invalid("populate requires a backing");
    return {};
  }
  if (const char* const rule = detail::broken_rule(backing)) return invalid(rule);
  const bool is_external =
      backing.source == MemorySource::device || backing.source == MemorySource::external;
  if (is_external && (options.numa_node || options.huge_pages || options.populate)) {
    return invalid(
        "numa_node, huge_pages and populate are not for sources device and external, "
        "whose pages are not made here");
  }
  if (backing.fd && *backing.fd < 0) return invalid("fd must not be negative");

  const std::uint64_t page = backing.effective_page_size();
  if (!std::has_single_bit(page)) {
    return fail({.code = Errc::bad_alignment,
                 .operation = make_region_operation,
                 .first = Operand::size(page),
                 .second = where,
                 .text = options.name});
  }
  if (page < BackingSpec{}.effective_page_size())
    return invalid("page_size must be at least the machine's base page size");
  const auto misaligned = [&](Operand value, const char* reason) {
    return fail({.code = Errc::misaligned,
                 .operation = make_region_operation,
                 .first = value,
                 .second = Operand::size(page),
                 .reason = reason,
                 .text = options.name});
  };
  if (!options.base.is_aligned(page)) {
    return misaligned(Operand::address(options.base.value()),
                      "base must be a multiple of the page size");
  }
  if (options.size % page != 0) {
    return misaligned(Operand::size(options.size), "size must be a multiple of the page size");
  }
  if (backing.offset % page != 0) {
    return misaligned(Operand::size(backing.offset),
                      "the file offset must be a multiple of the page size");
  }
  constexpr auto max_file_end =
      static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const bool is_file =
      backing.source == MemorySource::file || backing.source == MemorySource::device;
  if (is_file && (backing.offset > max_file_end || options.size > max_file_end - backing.offset)) {
    return fail({.code = Errc::overflow,
                 .operation = make_region_operation,
                 .first = Operand::size(backing.offset),
                 .second = Operand::size(options.size),
                 .reason = "offset + size must not exceed 2^63 - 1, the largest file offset",
                 .text = {options.name, backing.path}});
  }
  return {};
}

}  // namespace

Result<AddressSpaceRegionPtr> AddressSpaceRegion::make(RegionOptions options) {
  if (options.size == 0) {
    return fail({.code = Errc::zero_size,
                 .operation = make_region_operation,
                 .second = Operand::address(options.base.value()),
                 .text = options.name});
  }
  if (!options.base.checked_add(options.size - 1)) {
    return fail({.code = Errc::overflow,
                 .operation = make_region_operation,
                 .first = Operand::address(options.base.value()),
                 .second = Operand::size(options.size),
                 .text = options.name});
  }
  VMSPACE_TRY(check_known(options));
  VMSPACE_TRY(check_backing(options));
  return std::make_shared<const AddressSpaceRegion>(Passkey(), std::move(options));
}

std::string_view name_of(RegionType type) noexcept {
  switch (type) {
    case RegionType::default_memory: return "ram";
    case RegionType::device_memory: return "device";
    case RegionType::dax_memory: return "dax";
    case RegionType::firmware_memory: return "firmware";
  }
  return "unknown";
}

}  // namespace vmspace
