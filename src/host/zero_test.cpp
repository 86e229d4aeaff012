// SPDX-License-Identifier: Apache-2.0
//
// The variant is chosen by a test of a flag in each call, which costs a load and a branch that is
// always predicted. An IFUNC would save them, but its resolver runs while the program is being
// relocated: before AddressSanitizer and ThreadSanitizer are ready for it, and not at all with C
// libraries that have no IFUNC.

#include "vmspace/host/zero_test.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <array>
#include <cstdint>
#include <cstring>

#include "host/zero_test_variants.hpp"

namespace vmspace {

namespace {

/// Bytes between two tests of what was read.
constexpr std::size_t bytes_per_test = 128;

/// What is left after whole blocks.
bool is_zero_tail(const std::byte* at, std::size_t size) noexcept {
  std::uint64_t all = 0;
  for (; size >= sizeof all; at += sizeof all, size -= sizeof all) {
    std::uint64_t word;
    std::memcpy(&word, at, sizeof word);
    all |= word;
  }
  for (; size != 0; ++at, --size)
    all |= std::to_integer<std::uint64_t>(*at);
  return all == 0;
}

}  // namespace

bool detail::is_zero_baseline(std::span<const std::byte> bytes) noexcept {
  // SSE2 for x86-64 and NEON for aarch64, by the vector types of g++ and clang.
  using Vector [[gnu::vector_size(16)]] = std::uint64_t;
  const std::byte* at = bytes.data();
  std::size_t size = bytes.size();
  for (; size >= bytes_per_test; at += bytes_per_test, size -= bytes_per_test) {
    std::array<Vector, bytes_per_test / sizeof(Vector)> v;
    std::memcpy(&v, at, bytes_per_test);
    const Vector all = ((v[0] | v[1]) | (v[2] | v[3])) | ((v[4] | v[5]) | (v[6] | v[7]));
    if ((all[0] | all[1]) != 0) return false;
  }
  return is_zero_tail(at, size);
}

#if defined(__x86_64__)

bool detail::has_avx2() noexcept {
  return __builtin_cpu_supports("avx2");
}

[[gnu::target("avx2")]] bool detail::is_zero_avx2(std::span<const std::byte> bytes) noexcept {
  const std::byte* at = bytes.data();
  std::size_t size = bytes.size();
  for (; size >= bytes_per_test; at += bytes_per_test, size -= bytes_per_test) {
    const auto* const v = reinterpret_cast<const __m256i_u*>(at);
    const __m256i low = _mm256_or_si256(_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1));
    const __m256i high = _mm256_or_si256(_mm256_loadu_si256(v + 2), _mm256_loadu_si256(v + 3));
    const __m256i all = _mm256_or_si256(low, high);
    if (_mm256_testz_si256(all, all) == 0) return false;
  }
  return is_zero_tail(at, size);
}

bool is_zero(std::span<const std::byte> bytes) noexcept {
  return detail::has_avx2() ? detail::is_zero_avx2(bytes) : detail::is_zero_baseline(bytes);
}

#else

bool is_zero(std::span<const std::byte> bytes) noexcept {
  return detail::is_zero_baseline(bytes);
}

#endif

}  // namespace vmspace
