// SPDX-License-Identifier: Apache-2.0
//
// The guest as the host sees it: its code and what it needs to start, written to its memory.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/memory.hpp"

#include "guest_abi.h"
#include "vm.hpp"

namespace tiny_vm {

/// One page of a pattern, as the guest writes it.
using Pattern = std::array<std::uint64_t, PATTERN_WORDS>;
Pattern make_pattern(std::uint64_t seed);
Pattern inverted(const Pattern& pattern);

/// What the guest finds in its memory when it starts; guest_abi.h says what the fields mean.
struct BootParams {
  vmspace::GuestAddress low;
  vmspace::GuestAddress high;
  std::uint64_t seed;
  std::uint64_t port;
  std::uint64_t plugged = 0;
  std::uint64_t unplugged = 0;
};
static_assert(offsetof(BootParams, low) == BOOT_LOW && offsetof(BootParams, high) == BOOT_HIGH);
static_assert(offsetof(BootParams, seed) == BOOT_SEED && offsetof(BootParams, port) == BOOT_PORT);
static_assert(offsetof(BootParams, plugged) == BOOT_PLUGGED);
static_assert(offsetof(BootParams, unplugged) == BOOT_UNPLUGGED);

/// Where the boot parameters lie.
inline constexpr vmspace::GuestAddress boot_params{0x1000};

/// Writes code and page tables to the first 2 MiB of memory; boot parameters are for the caller.
vmspace::Result<Start> load_code(const vmspace::GuestMemory& memory,
                                 std::span<const std::byte> instructions);

/// Writes the guest of this demo and its boot parameters there.
vmspace::Result<Start> load_guest(const vmspace::GuestMemory& memory, const BootParams& params);

}  // namespace tiny_vm
