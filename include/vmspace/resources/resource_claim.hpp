// SPDX-License-Identifier: Apache-2.0
//
// What devices hold, to be claimed again when a VM is restored.
//
// No allocator is saved: a claim is a request for exactly what was held, so that restoring is
// asking again, with every check that asking has. The text has one claim a line, in the order in
// which they were acquired:
//
//   vmspace-claims 1
//   pio first=0x1000 size=0x20 align=0x20 owner="nic0"
//   mmio base=0xc0000000 size=0x4000 align=0x4000 reach=any owner="nic0" name="nic0 BAR0"
//   legacy_irq first=5 shared owner="nic0"

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

/// The claims as text, version 1: a line each after the line of the version. O(n).
///
/// A line is a kind, as name_of() has it, then fields in any order, each once: `name=value` or, for
/// what is true or false, `name` alone when true. Numbers are decimal, or hexadecimal after `0x`;
/// texts are in double quotes, with `\xNN` for a byte that is not printable, a quote or a backslash.
/// What a memory range is backed by is not in the text, because a file must not say which
/// descriptors or paths a VMM maps: its region comes back without a backing, and the restoring VMM
/// sets the one that it is configured with.
[[nodiscard]] VMSPACE_EXPORT std::string format_claims(std::span<const ResourceClaim> claims);

/// The claims of a text that format_claims() made, in its order. `corrupt`, with the number of the
/// line and the words at fault, when any part of it is not as described; `unsupported` for a version
/// that this one does not know. O(n). The text may come from anywhere: what the claims mean is
/// checked by ResourceManager::adopt().
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<ResourceClaim>> parse_claims(std::string_view text);

}  // namespace vmspace
