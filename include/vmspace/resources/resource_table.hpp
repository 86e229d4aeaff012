// SPDX-License-Identifier: Apache-2.0
//
// A manager as text for a person.

#pragma once

#include <string>

#include "vmspace/base/export.hpp"

namespace vmspace {

class ResourceManager;

/// Who holds what, one line a range under a header row, by kind; then how much is left of each kind,
/// in decimal. O(n log n). Ends with a newline.
[[nodiscard]] VMSPACE_EXPORT std::string resource_table(const ResourceManager& manager);

/// memory_map() of the ledger's space, with bridge windows around what lies in them. O(n log n).
[[nodiscard]] VMSPACE_EXPORT std::string memory_map(const ResourceManager& manager);

}  // namespace vmspace
