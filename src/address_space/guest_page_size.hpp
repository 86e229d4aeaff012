// SPDX-License-Identifier: Apache-2.0
//
// The unit of what a layout places.

#pragma once

#include <cstdint>

namespace vmspace::detail {

/// The smallest page of a guest, whatever its architecture.
inline constexpr std::uint64_t guest_page_size = 4096;

}  // namespace vmspace::detail
