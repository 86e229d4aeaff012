// SPDX-License-Identifier: Apache-2.0
//
// Acquisition of numbers; addresses are in acquisition_addresses.cpp.

#include "resources/acquisition.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <utility>
#include <variant>

#include "vmspace/base/try.hpp"

namespace vmspace::detail {

namespace {

tl::unexpected<Error> wrong_count(std::uint64_t count, const char* rule) {
  return fail({.code = Errc::invalid_argument, .first = Operand::number(count), .reason = rule});
}

tl::unexpected<Error> none_of(const char* what) {
  return fail({.code = Errc::not_found, .reason = what});
}

}  // namespace

Result<void> check_alignment(std::uint64_t align) {
  if ((align & (align - 1)) == 0) return {};  // 0: the default alignment
  return fail({.code = Errc::bad_alignment,
               .first = Operand::size(align),
               .reason = "the alignment must be a power of two"});
}

Result<void> check_multiple(Operand value, std::uint64_t unit) {
  if (value.first % unit == 0) return {};
  return fail({.code = Errc::misaligned, .first = value, .second = Operand::size(unit)});
}

Result<void> Acquisition::take(const ResourceRequest& request, DeviceRecord& record,
                               AddressSpaceRegionPtr lifted) {
  lifted_ = std::move(lifted);
  return std::visit([&](const auto& alternative) { return take(alternative, record); }, request);
}

Result<void> Acquisition::take_at(ResourceKind kind, Range range) {
  const Result<void> taken = state_.numbers(kind)->take_at(range);
  if (taken) return {};
  Error error = taken.error();
  if (error.code == Errc::overlap) {
    if (const auto holding = state_.holding(kind, range)) {
      error.second = operand(holding->range);
      error.text = {{}, holding->record->owner};
    }
  }
  return fail(error);
}

Result<void> Acquisition::take_numbers(const Numbers& wanted, DeviceRecord& record) {
  if (!wanted.fixed) {
    const Range taken =
        VMSPACE_TRY(state_.numbers(wanted.kind)->take(wanted.size, wanted.align, wanted.window));
    record.numbers.push_back({.kind = wanted.kind, .range = taken});
    return {};
  }
  const Range range = VMSPACE_TRY(Range::from_base_size(*wanted.fixed, wanted.size));
  VMSPACE_TRY(check_multiple(Operand::address(range.min()), wanted.align));
  if (wanted.window && !wanted.window->contains(range)) {
    return fail({.code = Errc::out_of_bounds,
                 .first = operand(range),
                 .second = operand(*wanted.window),
                 .reason = "the range must be within the requested window"});
  }
  VMSPACE_TRY(take_at(wanted.kind, range));
  record.numbers.push_back({.kind = wanted.kind, .range = range});
  return {};
}

Result<void> Acquisition::take(const PioRange& request, DeviceRecord& record) {
  VMSPACE_TRY(check_alignment(request.align));
  const std::uint64_t align = port_alignment(request.size, request.align);
  const bool unaligned = request.align == 0 && request.fixed && *request.fixed % align != 0;
  if (request.parked) {
    const Range last = VMSPACE_TRY(Range::from_base_size(request.fixed.value_or(0), request.size));
    record.numbers.push_back({.kind = ResourceKind::pio, .range = last, .parked = true});
  } else {
    VMSPACE_TRY(take_numbers({.kind = ResourceKind::pio,
                              .size = request.size,
                              .align = unaligned ? 1 : align,
                              .window = request.window,
                              .fixed = request.fixed},
                             record));
  }
  record.numbers.back().unaligned = unaligned;
  record.numbers.back().align = request.align;
  return {};
}

Result<void> Acquisition::take(const GenericIrq& request, DeviceRecord& record) {
  return take_numbers(
      {.kind = ResourceKind::generic_irq, .size = request.count, .fixed = request.fixed}, record);
}

Result<void> Acquisition::take(const MsiVectors& request, DeviceRecord& record) {
  constexpr std::uint32_t most = 32;
  // Not std::has_single_bit: without a popcount instruction that is a call.
  if (request.count == 0 || (request.count & (request.count - 1)) != 0 || request.count > most) {
    return wrong_count(request.count, "the number of MSI vectors must be 1, 2, 4, 8, 16 or 32");
  }
  return take_numbers({.kind = ResourceKind::msi,
                       .size = request.count,
                       .align = request.count,
                       .fixed = request.fixed},
                      record);
}

Result<void> Acquisition::take(const MsixVectors& request, DeviceRecord& record) {
  constexpr std::uint32_t most = 2048;
  if (request.count > most) {
    return wrong_count(request.count, "a device can have at most 2048 MSI-X vectors");
  }
  return take_numbers({.kind = ResourceKind::msix, .size = request.count, .fixed = request.fixed},
                      record);
}

Result<void> Acquisition::take(const PciDevice& request, DeviceRecord& record) {
  constexpr std::uint64_t last_bus = 255;
  constexpr std::uint64_t last_device = 31;
  if (request.device && !request.bus) {
    return fail({.code = Errc::invalid_argument,
                 .first = Operand::number(*request.device),
                 .reason = "a device number requires a bus number"});
  }
  if (request.device > last_device) {
    return wrong_count(*request.device, "PCI device numbers are 0 to 31");
  }
  const std::uint64_t segment = request.segment;
  const Range bus = request.bus ? unchecked_range(pci_number(segment, *request.bus, 0),
                                                  pci_number(segment, *request.bus, last_device))
                                : unchecked_range(pci_number(segment, 0, 0),
                                                  pci_number(segment, last_bus, last_device));
  Numbers wanted{.kind = ResourceKind::pci_device, .size = 1, .window = bus};
  if (request.device) wanted.fixed = pci_number(segment, *request.bus, *request.device);
  const Result<void> taken = take_numbers(wanted, record);
  if (!taken && !state_.pci_devices.has_any_of(bus))
    return none_of("no such PCI bus: see ResourceLimits::pci_buses");
  return taken;
}

Result<void> Acquisition::take(const MacAddress& request, DeviceRecord& record) {
  if (!state_.has_mac_addresses)
    return none_of("no MAC addresses are configured: set ResourceLimits::mac_addresses");
  return take_numbers({.kind = ResourceKind::mac_address, .size = 1, .fixed = request.fixed},
                      record);
}

Result<void> Acquisition::take(const KvmSlots& request, DeviceRecord& record) {
  if (!state_.slots)
    return none_of("no pool of memory slots is configured: set ResourceLimits::kvm_slots");
  const Range wanted = VMSPACE_TRY(Range::from_base_size(request.fixed.value_or(0), request.count));
  constexpr std::uint64_t last = std::numeric_limits<std::uint32_t>::max();
  if (wanted.max() > last) {
    return fail({.code = Errc::out_of_bounds,
                 .first = operand(wanted),
                 .second = Operand::range(0, last),
                 .reason = "slot numbers are 32-bit"});
  }
  RangePoolState& pool = state_of(*state_.slots);
  const auto make = [&]() -> PoolHolding& {
    return record.slots.emplace_back(PoolHolding{.tag = record.owner});
  };
  const Result<Range> slots = request.fixed
                                  ? pool.acquire_at(wanted, make)
                                  : pool.acquire({.size = request.count, .max = last}, make);
  if (!slots) {
    Error error = slots.error();
    const bool is_held = error.code == Errc::bad_state && error.second.kind != Operand::Kind::none;
    if (is_held) {
      error.code = Errc::overlap;
      error.reason = "held by";
    } else if (error.code == Errc::not_found || error.code == Errc::bad_state) {
      error.code = Errc::out_of_bounds;
      error.reason = "the slots must be within a single range of the pool";
    }
    return fail(error);
  }
  record.numbers.push_back({.kind = ResourceKind::kvm_slot, .range = *slots});
  return {};
}

SharedLine* Acquisition::least_shared() noexcept {
  const Range any = state_.legacy_irqs.any();
  SharedLine* least = nullptr;
  for (SharedLine& line : state_.shared_lines) {
    if (!any.contains(line.number)) continue;
    const bool is_less = least == nullptr || line.holders < least->holders ||
                         (line.holders == least->holders && line.number < least->number);
    if (is_less) least = &line;
  }
  return least;
}

Result<Range> Acquisition::take_line(std::optional<std::uint32_t> fixed) {
  if (!fixed) return state_.legacy_irqs.take(1);
  const Range line = Range::point(*fixed);
  VMSPACE_TRY(take_at(ResourceKind::legacy_irq, line));
  return line;
}

Result<void> Acquisition::take(const LegacyIrq& request, DeviceRecord& record) {
  std::vector<SharedLine>& lines = state_.shared_lines;
  SharedLine* const line = request.fixed ? state_.find_line(*request.fixed) : least_shared();
  const bool joins = request.shared && line != nullptr &&
                     (request.fixed.has_value() || !state_.legacy_irqs.has_free());
  if (joins) {
    ++line->holders;
    record.numbers.push_back(
        {.kind = ResourceKind::legacy_irq, .range = Range::point(line->number), .shared = true});
    return {};
  }
  if (request.shared && lines.size() == lines.capacity()) lines.reserve(2 * lines.size() + 1);
  const Result<Range> own = take_line(request.fixed);
  if (!own) {
    Error error = own.error();
    if (request.fixed && line != nullptr) {
      error.reason = "exclusive use was requested, but the line is shared; held by";
    } else if (request.shared && error.code == Errc::overlap) {
      error.reason = "held by an owner that does not share it";
    }
    return fail(error);
  }
  record.numbers.push_back(
      {.kind = ResourceKind::legacy_irq, .range = *own, .shared = request.shared});
  if (request.shared) lines.push_back({.number = own->min(), .holders = 1});
  return {};
}

void reserve(DeviceRecord& record, const RecordSize& size) {
  record.numbers.reserve(size.numbers);
  record.slots.reserve(size.slots);
  record.regions.reserve(size.regions);
  record.retirement.resize(size.regions);
  record.windows.reserve(size.windows);
}

bool is_fixed(const ResourceRequest& request) {
  if (const auto* device = std::get_if<PciDevice>(&request)) return device->bus && device->device;
  return std::visit(
      [](const auto& alternative) {
        if constexpr (requires { alternative.fixed; }) return alternative.fixed.has_value();
        return false;
      },
      request);
}

}  // namespace vmspace::detail
