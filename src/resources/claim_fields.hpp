// SPDX-License-Identifier: Apache-2.0
//
// The fields of each kind of claim, in the order in which they are written: the one table behind both
// formatting and parsing.
//
// Field::member is anything that std::invoke can apply to the request. A field's default is its value
// in a value-initialised request.

#pragma once

#include <functional>
#include <string_view>
#include <tuple>

#include "vmspace/resources/resource_claim.hpp"
#include "vmspace/resources/resource_request.hpp"

namespace vmspace::detail {

template <typename Member>
struct Field {
  std::string_view name;
  Member member;
  bool required;  ///< written even when it has its default, and must be there when read
};

template <typename Member>
constexpr Field<Member> required(std::string_view name, Member member) {
  return {name, member, true};
}
template <typename Member>
constexpr Field<Member> optional(std::string_view name, Member member) {
  return {name, member, false};
}

/// A member of MemoryRange::region.
constexpr auto of_region(auto member) {
  return [member](auto& memory) -> auto& {
    return memory.region.*member;
  };
}

/// What every claim has besides its request.
constexpr auto fields_of(const ResourceClaim&) {
  return std::tuple(required("owner", &ResourceClaim::owner));
}
constexpr auto fields_of(const PioRange&) {
  return std::tuple(optional("first", &PioRange::fixed), required("size", &PioRange::size),
                    optional("align", &PioRange::align), optional("window", &PioRange::window),
                    optional("parked", &PioRange::parked));
}
constexpr auto fields_of(const MmioRange&) {
  return std::tuple(optional("base", &MmioRange::fixed), required("size", &MmioRange::size),
                    optional("align", &MmioRange::align), optional("reach", &MmioRange::reach),
                    optional("prefetchable", &MmioRange::prefetchable),
                    optional("bridge", &MmioRange::bridge),
                    optional("aperture", &MmioRange::aperture),
                    optional("parked", &MmioRange::parked), optional("name", &MmioRange::name));
}
// Left out are the backing, which the restoring VMM sets, and base and owner, which
// are the manager's to set.
constexpr auto fields_of(const MemoryRange&) {
  return std::tuple(
      optional("base", &MemoryRange::fixed), required("size", of_region(&RegionOptions::size)),
      optional("align", &MemoryRange::align), optional("aperture", &MemoryRange::aperture),
      optional("type", of_region(&RegionOptions::type)),
      optional("protection", of_region(&RegionOptions::protection)),
      optional("numa_node", of_region(&RegionOptions::numa_node)),
      optional("huge_pages", of_region(&RegionOptions::huge_pages)),
      optional("hotplug", of_region(&RegionOptions::hotplug)),
      optional("populate", of_region(&RegionOptions::populate)),
      optional("name", of_region(&RegionOptions::name)));
}
constexpr auto fields_of(const BridgeWindow&) {
  return std::tuple(
      optional("base", &BridgeWindow::fixed), required("size", &BridgeWindow::size),
      optional("align", &BridgeWindow::align), optional("reach", &BridgeWindow::reach),
      optional("prefetchable", &BridgeWindow::prefetchable),
      optional("bridge", &BridgeWindow::bridge), optional("aperture", &BridgeWindow::aperture),
      optional("parked", &BridgeWindow::parked));
}
constexpr auto fields_of(const LegacyIrq&) {
  return std::tuple(optional("first", &LegacyIrq::fixed), optional("shared", &LegacyIrq::shared));
}
constexpr auto fields_of(const GenericIrq&) {
  return std::tuple(optional("first", &GenericIrq::fixed), optional("count", &GenericIrq::count));
}
constexpr auto fields_of(const MsiVectors&) {
  return std::tuple(optional("first", &MsiVectors::fixed), required("count", &MsiVectors::count));
}
constexpr auto fields_of(const MsixVectors&) {
  return std::tuple(optional("first", &MsixVectors::fixed), required("count", &MsixVectors::count));
}
constexpr auto fields_of(const KvmSlots&) {
  return std::tuple(optional("first", &KvmSlots::fixed), optional("count", &KvmSlots::count));
}
constexpr auto fields_of(const PciDevice&) {
  return std::tuple(optional("segment", &PciDevice::segment), optional("bus", &PciDevice::bus),
                    optional("device", &PciDevice::device));
}
// The value is the whole request, not its number, which would be written like a port.
constexpr auto fields_of(const MacAddress&) {
  return std::tuple(optional("address", std::identity()));
}

}  // namespace vmspace::detail
