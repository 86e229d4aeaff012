// SPDX-License-Identifier: Apache-2.0
//
// Which CPUs are near which memory.

#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vmspace::detail {

/// Of the masks in which the kernel takes and gives sets of CPUs and of nodes.
inline constexpr std::size_t mask_word_bits = sizeof(unsigned long) * CHAR_BIT;

/// A set of CPUs, a bit each, as sched_setaffinity(2) takes it.
using CpuSet = std::vector<unsigned long>;

/// The CPUs that the calling thread may run on; empty where the kernel does not say.
CpuSet allowed_cpus();

/// Those of `allowed` that belong to one of these NUMA nodes (/sys/devices/system/node). All of
/// `allowed` where that is none of them, or not known.
CpuSet cpus_near(std::span<const std::uint32_t> nodes, const CpuSet& allowed);

}  // namespace vmspace::detail
