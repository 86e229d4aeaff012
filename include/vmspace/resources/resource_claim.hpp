// SPDX-License-Identifier: Apache-2.0
//
// What devices hold, in a form from which a restored VM can acquire it again.
//
// No allocator state is saved. A claim is a request for exactly what was held, so restoring means
// acquiring again, with all the usual checks. The text has one claim per line: owners in the order
// in which they acquired, and for each owner its numbers, then its bridge windows, then its
// regions:
//
//   vmspace-claims 1
//   pio owner="nic0" first=0x1000 size=0x20 align=0x20
//   legacy_irq owner="nic0" first=5 shared
//   mac_address owner="nic0" address=52:54:00:12:34:56
//   mmio owner="nic0" base=0xc0000000 size=0x4000 name="nic0 BAR0"
//   end
//
// Lines end with a newline, which is optional after the last one. The "end" line exists because a
// file truncated between two claims would otherwise be a valid file of a VM with fewer devices.
//
// A claim is a kind, as named by name_of(), followed by its fields, each at most once, in any
// order, each preceded by one space: `name=value`, or just `name` for a boolean that is true.
// Fields with default values are omitted. `owner`, `size`, and the `count` of msi and msix have no
// default.
//
//   kind                         fields
//   (all)                        owner
//   pio                          first size align window parked
//   mmio                         base size align reach prefetchable bridge aperture parked name
//   memory                       base size align aperture type protection numa_node huge_pages
//                                hotplug populate name
//   bridge_window                base size align reach prefetchable bridge aperture parked
//   legacy_irq                   first shared
//   generic_irq, msi, msix,
//   kvm_slot                     first count
//   pci_device                   segment bus device
//   mac_address                  address
//
// Fields are named after the members of the request, and for memory of its region; `first`, `base`
// and `address` stand for `fixed`. Numbers are decimal, or hexadecimal after `0x`. A range is
// written with inclusive ends, `0x1000-0x1fff`. Protection is as in /proc/PID/maps: `rw-`. Strings
// are in double quotes; quotes, backslashes and bytes that are not part of printable UTF-8 are
// written as `\xNN`, so the file is always valid UTF-8.

#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/resource_request.hpp"

namespace vmspace {

/// A resource that an owner holds: a request that acquires exactly it.
struct ResourceClaim {
  std::string owner;        ///< who holds it
  ResourceRequest request;  ///< pinned to one resource

  friend bool operator==(const ResourceClaim&, const ResourceClaim&) = default;
};

/// Writes claims as text, version 1.
///
/// parse_claims() returns equal claims, except that three members of MemoryRange::region are
/// omitted and read back as their defaults: the backing, because a file must not decide which
/// descriptors or paths a VMM maps (the restoring VMM supplies its own), and `base` and `owner`,
/// which the manager sets. A request that is not fixed is written too, but ResourceManager::adopt()
/// rejects it. An unnamed enumerator is written as `unknown`, which parse_claims() rejects. O(n).
/// Threads: any.
[[nodiscard]] VMSPACE_EXPORT std::string format_claims(std::span<const ResourceClaim> claims);

/// Parses text written by format_claims(); the order is kept. The text need not be trusted.
///
/// Errors: `corrupt`, naming the line (`line 3`, from 1) and the offending words, when the text
/// does not follow the format above or a value is out of range for its member; `unsupported`,
/// quoting the version, when it is not 1. ResourceManager::adopt() checks the meaning of the
/// claims. O(n). Threads: any.
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<ResourceClaim>> parse_claims(std::string_view text);

}  // namespace vmspace
