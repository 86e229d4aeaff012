// SPDX-License-Identifier: Apache-2.0
//
// Errors about a region of guest memory.

#pragma once

#include <string_view>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/base/error.hpp"

namespace vmspace::detail {

/// An error about a region of guest memory, with the region's name, its guest range and, unless the
/// error has one, the path of its file: `"ram0 [0x0, 0xfffff]": failed (opening the file: "/ram")`.
Error name_region(Error error, std::string_view name, Operand range, std::string_view path);
/// An error about `region`, with its name, its guest range and the path of its backing.
Error name_region(const Error& error, const AddressSpaceRegion& region);

}  // namespace vmspace::detail
