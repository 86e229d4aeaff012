// SPDX-License-Identifier: Apache-2.0
//
// Whether memory holds nothing but zeros: asked of every page that is saved, sent or given back.

#pragma once

#include <cstddef>
#include <span>

#include "vmspace/base/export.hpp"

namespace vmspace {

/// Whether all of these bytes are 0; true of none at all. Any address and any length will do. Stops
/// soon after the first byte that is not. Reads at the processor's speed: 32 bytes at a time where it
/// has AVX2, else 16; wider registers gain nothing that memory could keep up with. Bytes that others
/// write meanwhile count as either. Async-signal-safe, once the program's constructors have run.
[[nodiscard]] VMSPACE_EXPORT bool is_zero(std::span<const std::byte> bytes) noexcept;

}  // namespace vmspace
