// SPDX-License-Identifier: Apache-2.0
//
// Random numbers that cost next to nothing beside what is measured.

#pragma once

#include <cstdint>

/// Steele, Lea and Flood's generator: the same numbers for the same seed, everywhere.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    std::uint64_t z = (state_ += 0x9e37'79b9'7f4a'7c15);
    z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
    z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
    return z ^ (z >> 31);
  }
  /// A number below `bound`, which is below 2^32.
  std::uint64_t below(std::uint64_t bound) { return ((*this)() >> 32) * bound >> 32; }

 private:
  std::uint64_t state_;
};
