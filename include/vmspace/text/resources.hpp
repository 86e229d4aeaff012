// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the resources layer. Include text.hpp, which has all of them.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "vmspace/resources.hpp"
#include "vmspace/text/address_space.hpp"

namespace vmspace {

/// The name, as by name_of(): `legacy_irq`.
[[nodiscard]] inline std::string to_text(ResourceKind kind) {
  return std::string(name_of(kind));
}

/// The name, as by name_of(): `below_4g`.
[[nodiscard]] inline std::string to_text(MmioReach reach) {
  return std::string(name_of(reach));
}

namespace detail {

/// The `count` least significant hexadecimal digits of a number.
inline std::string hex_digits(std::uint64_t number, unsigned count) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (unsigned shift = 4 * count; shift != 0;) {
    shift -= 4;
    text += digits[number >> shift & 0xfU];
  }
  return text;
}

/// `0000:00:1f`.
inline std::string pci_text(std::uint64_t segment, std::uint64_t bus, std::uint64_t device) {
  return concat(hex_digits(segment, 4), ":", hex_digits(bus, 2), ":", hex_digits(device, 2));
}

/// `52:54:00:12:34:56`.
inline std::string mac_text(std::uint64_t number) {
  std::string text;
  for (unsigned shift = 48; shift != 0;) {
    shift -= 8;
    if (!text.empty()) text += ':';
    text += hex_digits(number >> shift, 2);
  }
  return text;
}

inline std::string at_text(const std::optional<std::uint64_t>& fixed) {
  return fixed ? " at " + hex(*fixed) : std::string();
}

inline std::string at_text(const std::optional<GuestAddress>& fixed) {
  return fixed ? " at " + to_text(*fixed) : std::string();
}

inline std::string at_text(const std::optional<std::uint32_t>& fixed) {
  return fixed ? " at " + std::to_string(*fixed) : std::string();
}

inline std::string align_text(std::uint64_t align) {
  return align == 0 ? std::string() : " aligned to " + hex(align);
}

/// The common part of the texts of MmioRange and BridgeWindow.
template <typename Request>
std::string mmio_text(std::string_view kind, const Request& request) {
  return concat(kind, " ", hex(request.size), at_text(request.fixed), align_text(request.align),
                request.reach == MmioReach::any ? "" : " " + to_text(request.reach),
                request.prefetchable ? " prefetchable" : "", request.parked ? " parked" : "",
                request.bridge.empty() ? "" : " behind " + request.bridge,
                request.aperture.empty() ? "" : " in " + request.aperture);
}

}  // namespace detail

/// Segment, bus and device: `0000:00:1f`.
[[nodiscard]] inline std::string to_text(const PciSlot& slot) {
  return detail::pci_text(slot.segment, slot.bus, slot.device);
}

/// The size, and every member that differs from its default:
/// `pio 0x20 at 0x1000 aligned to 0x20 in [0x1000-0x1fff]`.
[[nodiscard]] inline std::string to_text(const PioRange& request) {
  return detail::concat("pio ", detail::hex(request.size), detail::at_text(request.fixed),
                        detail::align_text(request.align),
                        request.window ? " in " + to_text(*request.window) : std::string());
}

/// The size, and every member that differs from its default: `mmio 0x4000 at 0xc0000000 aligned to
/// 0x4000 below_4g prefetchable parked behind bridge0 in mmio_low named BAR0`.
[[nodiscard]] inline std::string to_text(const MmioRange& request) {
  return detail::concat(detail::mmio_text("mmio", request),
                        request.name.empty() ? "" : " named " + request.name);
}

/// The region, and every member that differs from its default:
/// `memory dimm0 ram 0x0+0x8000000 shmem hotplug at 0x100000000 in ram_high`.
[[nodiscard]] inline std::string to_text(const MemoryRange& request) {
  return detail::concat("memory ", to_text(request.region), detail::at_text(request.fixed),
                        detail::align_text(request.align),
                        request.aperture.empty() ? "" : " in " + request.aperture);
}

/// Like the text of an MmioRange: `bridge_window 0x200000 prefetchable`.
[[nodiscard]] inline std::string to_text(const BridgeWindow& request) {
  return detail::mmio_text("bridge_window", request);
}

/// `legacy_irq at 5 shared`.
[[nodiscard]] inline std::string to_text(const LegacyIrq& request) {
  return detail::concat("legacy_irq", detail::at_text(request.fixed),
                        request.shared ? " shared" : "");
}

/// The count, and the first number if it is fixed: `generic_irq 2 at 24`.
[[nodiscard]] inline std::string to_text(const GenericIrq& request) {
  return detail::concat("generic_irq ", std::to_string(request.count),
                        detail::at_text(request.fixed));
}

/// The count, and the first number if it is fixed: `msi 4 at 1024`.
[[nodiscard]] inline std::string to_text(const MsiVectors& request) {
  return detail::concat("msi ", std::to_string(request.count), detail::at_text(request.fixed));
}

/// The count, and the first number if it is fixed: `msix 3 at 1024`.
[[nodiscard]] inline std::string to_text(const MsixVectors& request) {
  return detail::concat("msix ", std::to_string(request.count), detail::at_text(request.fixed));
}

/// The count, and the first number if it is fixed: `kvm_slot 1 at 7`.
[[nodiscard]] inline std::string to_text(const KvmSlots& request) {
  return detail::concat("kvm_slot ", std::to_string(request.count), detail::at_text(request.fixed));
}

/// The location, with an asterisk for an unset part: `pci_device 0000:00:*`.
[[nodiscard]] inline std::string to_text(const PciDevice& request) {
  const auto part = [](const std::optional<std::uint8_t>& number) {
    return number ? detail::hex_digits(*number, 2) : std::string("*");
  };
  return detail::concat("pci_device ", detail::hex_digits(request.segment, 4), ":",
                        part(request.bus), ":", part(request.device));
}

/// `mac_address at 52:54:00:12:34:56`.
[[nodiscard]] inline std::string to_text(const MacAddress& request) {
  return detail::concat("mac_address",
                        request.fixed ? " at " + detail::mac_text(*request.fixed) : std::string());
}

namespace detail {

// Deliberately not named to_text(): ResourceRequest is a std::variant, and the adapters would then
// claim every variant, which fmt and GoogleTest already print.
inline std::string request_text(const ResourceRequest& request) {
  return std::visit([](const auto& alternative) { return to_text(alternative); }, request);
}

/// A range in the notation of its kind: `[0x1000-0x101f]`, `5`, `24-27`, `0000:00:1f`.
inline std::string range_text(ResourceKind kind, const Range& range) {
  switch (kind) {
    case ResourceKind::pio:
    case ResourceKind::mmio:
    case ResourceKind::memory:
    case ResourceKind::bridge_window: return to_text(range);
    case ResourceKind::pci_device:
      return pci_text(range.min() >> 13U, range.min() >> 5U, range.min() & 0x1fU);
    case ResourceKind::mac_address: return mac_text(range.min());
    case ResourceKind::legacy_irq:
    case ResourceKind::generic_irq:
    case ResourceKind::msi:
    case ResourceKind::msix:
    case ResourceKind::kvm_slot: break;
  }
  std::string text = std::to_string(range.min());
  if (range.min() != range.max()) text.append("-").append(std::to_string(range.max()));
  return text;
}

}  // namespace detail

/// The owner and the text of the request: `nic0: legacy_irq at 5 shared`.
[[nodiscard]] inline std::string to_text(const ResourceClaim& claim) {
  return detail::concat(claim.owner, ": ", detail::request_text(claim.request));
}

/// `nic0: pio [0x1000-0x101f]`, `nic0: legacy_irq 5 shared`, `nic0: pci_device 0000:00:1f`.
[[nodiscard]] inline std::string to_text(const ResourceHolder& holder) {
  return detail::concat(holder.owner, ": ", to_text(holder.kind), " ",
                        detail::range_text(holder.kind, holder.range),
                        holder.shared ? " shared" : "", holder.parked ? " parked" : "",
                        holder.name.empty() || holder.name == holder.owner ? "" : " named ",
                        holder.name == holder.owner ? "" : holder.name);
}

/// `pio: 65464 of 65528 free, largest free run 61408`; of an aperture, `... of 65536 bytes free, ...`.
[[nodiscard]] inline std::string to_text(const ResourceUsage& usage) {
  return detail::concat(usage.name, ": ", std::to_string(usage.free), " of ",
                        std::to_string(usage.total), usage.is_aperture ? " bytes" : "",
                        " free, largest free run ", std::to_string(usage.largest_free));
}

/// The kind and index of the range, and its destination: `move mmio 0 of nic0 to 0xd0000000`, or
/// `park mmio 0 of nic0`.
[[nodiscard]] inline std::string to_text(const ResourceMove& move) {
  return detail::concat(move.to ? "move " : "park ", to_text(move.kind), " ",
                        std::to_string(move.index), " of ",
                        move.device == nullptr ? std::string_view("null") : move.device->owner(),
                        move.to ? " to " + to_text(*move.to) : std::string());
}

/// What it holds, by kind: `nic0: {pio [0x1000-0x101f], mmio [0xc0000000-0xc0003fff], legacy_irq
/// 5}`; or `released` when it holds nothing.
[[nodiscard]] inline std::string to_text(const DeviceResources& resources) {
  if (!resources.is_held()) return "released";
  std::string text;
  const auto add = [&](ResourceKind kind, auto text_of) {
    for (std::size_t i = 0; i < resources.count(kind); ++i) {
      text.append(text.empty() ? "" : ", ").append(to_text(kind)).append(" ").append(text_of(i));
    }
  };
  const auto add_numbers = [&](ResourceKind kind,
                               Range (DeviceResources::*number)(std::size_t) const noexcept) {
    add(kind, [=, &resources](std::size_t i) {
      return detail::range_text(kind, (resources.*number)(i));
    });
  };
  add_numbers(ResourceKind::pio, &DeviceResources::pio);
  add(ResourceKind::mmio, [&](std::size_t i) {
    return to_text(resources.mmio(i)->range()) +
           (resources.is_parked(ResourceKind::mmio, i) ? " parked" : "");
  });
  add(ResourceKind::memory, [&](std::size_t i) { return to_text(resources.memory(i)->range()); });
  add(ResourceKind::bridge_window, [&](std::size_t i) {
    return to_text(resources.bridge_window(i)) +
           (resources.is_parked(ResourceKind::bridge_window, i) ? " parked" : "");
  });
  add(ResourceKind::legacy_irq,
      [&](std::size_t i) { return std::to_string(resources.legacy_irq(i)); });
  add_numbers(ResourceKind::generic_irq, &DeviceResources::generic_irq);
  add_numbers(ResourceKind::msi, &DeviceResources::msi);
  add_numbers(ResourceKind::msix, &DeviceResources::msix);
  add_numbers(ResourceKind::kvm_slot, &DeviceResources::kvm_slot);
  add(ResourceKind::pci_device, [&](std::size_t i) { return to_text(resources.pci_device(i)); });
  add(ResourceKind::mac_address, [&](std::size_t i) {
    std::uint64_t number = 0;
    for (const std::uint8_t byte : resources.mac_address(i))
      number = number << 8U | byte;
    return detail::mac_text(number);
  });
  return detail::concat(resources.owner(), ": {", text, "}");
}

}  // namespace vmspace
