// SPDX-License-Identifier: Apache-2.0
//
// What devices hold, to be claimed again when a VM is restored.
//
// No allocator is saved: a claim is a request for exactly what was held, so that restoring is
// asking again, with every check that asking has. The text has one claim a line, in the order in
// which they were acquired:
//
//   vmspace-claims 1
//   pio owner="nic0" first=0x1000 size=0x20 align=0x20
//   mmio owner="nic0" base=0xc0000000 size=0x4000 name="nic0 BAR0"
//   legacy_irq owner="nic0" first=5 shared
//   mac_address owner="nic0" address=52:54:00:12:34:56
//   end
//
// Every line ends with a newline; that of the last may be missing. The last line is there because a
// text that was cut off between two claims would otherwise read as the text of a VM with fewer
// devices.
//
// A claim is a kind, as name_of() has it, then its fields, each once, in any order and after one
// space: `name=value`, or for what is true or false `name` alone when it is true. A field that has
// its default is left out; `owner`, `size`, and `count` of msi and msix have none.
//
//   kind                         fields
//   (all)                        owner
//   pio                          first size align window
//   mmio                         base size align reach prefetchable bridge parked name
//   memory                       base size align aperture type protection node huge_pages hotplug
//                                populate name
//   bridge_window                base size align reach prefetchable bridge parked
//   legacy_irq                   first shared
//   generic_irq, msi, msix,
//   kvm_slot                     first count
//   pci_device                   segment bus device
//   mac_address                  address
//
// They are the members of the request, with `first`, `base` and `address` for what it is fixed to.
// Numbers are decimal, or hexadecimal after `0x`. A range is two numbers, `0x1000-0x1fff`, the
// second included. Protection is as in /proc/PID/maps: `rw-`. Texts are in double quotes, with
// `\xNN` for a quote, a backslash and each byte that is not part of printable UTF-8; so the whole is
// UTF-8, whatever the names are.

#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/resource_request.hpp"

namespace vmspace {

/// That an owner holds something: the request that gets exactly this.
struct ResourceClaim {
  std::string owner;
  ResourceRequest request;  ///< fixed

  friend bool operator==(const ResourceClaim&, const ResourceClaim&) = default;
};

/// The claims as text, version 1. O(n).
///
/// parse_claims() gives equal claims, except that three members of MemoryRange::region are not in
/// the text and come back as their defaults: the backing, because a file must not say which
/// descriptors or paths a VMM maps (the restoring VMM sets the one that it is configured with),
/// and `base` and `owner`, which are the manager's to set. A request that is not fixed is written
/// too; it is ResourceManager::adopt() that refuses it. An enumeration that holds an unnamed value is
/// written as `unknown`, which parse_claims() refuses.
[[nodiscard]] VMSPACE_EXPORT std::string format_claims(std::span<const ResourceClaim> claims);

/// The claims of a text that format_claims() made, in its order.
///
/// The text may come from anywhere. Errors: `corrupt`, with the number of the line, from 1, as the
/// first operand and the words at fault as the detail, when any part of it is not as described, or
/// a value does not fit the member it is for; `unsupported`, quoting the version, when it is not 1.
/// What the claims mean is checked by ResourceManager::adopt(). O(n).
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<ResourceClaim>> parse_claims(std::string_view text);

}  // namespace vmspace
