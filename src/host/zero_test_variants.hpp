// SPDX-License-Identifier: Apache-2.0
//
// What is_zero() chooses from, for tests.

#pragma once

#include <cstddef>
#include <span>

namespace vmspace::detail {

/// With what every processor of the architecture has.
[[nodiscard]] bool is_zero_baseline(std::span<const std::byte> bytes) noexcept;

#if defined(__x86_64__)
/// Whether processor and kernel have AVX2.
[[nodiscard]] bool has_avx2() noexcept;
/// To be called only then.
[[nodiscard]] bool is_zero_avx2(std::span<const std::byte> bytes) noexcept;
#endif

}  // namespace vmspace::detail
