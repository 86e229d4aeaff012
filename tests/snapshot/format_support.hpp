// SPDX-License-Identifier: Apache-2.0
//
// Snapshot files altered on purpose, with the checksums that belong to what they are then: as
// FORMAT.md describes them, written a second time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "vmspace/memory/endian.hpp"

namespace vmspace::test {

inline std::uint64_t xxh3(const std::byte* bytes, std::size_t size, std::uint64_t seed = 0) {
  return XXH3_64bits_withSeed(bytes, size, seed);
}

template <typename T>
T stored_at(const std::vector<std::byte>& bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}
template <typename T>
void store_at(std::vector<std::byte>& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

/// Header and table of version 2, which are the first bytes of a file.
inline void mend_head(std::vector<std::byte>& file) {
  if (file.size() < 128) return;
  const std::size_t regions = stored_at<Le32>(file, 12);
  const std::size_t end = 128 + 32 * regions;
  if (regions > 512 || end > file.size()) return;
  store_at(file, 24, Le64(xxh3(file.data() + 32, end - 32, xxh3(file.data(), 24))));
}

/// The index and the trailer of a whole file with records.
inline void mend_index(std::vector<std::byte>& file) {
  if (file.size() < 128 + 64) return;
  const std::size_t trailer = file.size() - 64;
  const std::uint64_t index = stored_at<Le64>(file, trailer + 8);
  if (index <= trailer && (trailer - index) % 32 == 0) {
    std::uint64_t sum = xxh3(file.data() + 32, 16);
    for (std::size_t at = index; at != trailer; at += 32)
      sum = xxh3(file.data() + at, 32, sum);
    store_at(file, trailer + 24, Le64(sum));
  }
  store_at(file, trailer + 56, Le64(xxh3(file.data() + trailer, 56)));
}

/// The headers of the records, as a stream has them, up to the first that leads nowhere.
inline void mend_records(std::vector<std::byte>& file) {
  if (file.size() < 128) return;
  const bool has_sums = stored_at<Le32>(file, 68) != 0;
  std::uint64_t before = stored_at<Le64>(file, 24);
  for (std::uint64_t at = 128 + 32 * std::uint64_t{stored_at<Le32>(file, 12)};
       at + 32 <= file.size();) {
    before = xxh3(file.data() + at, 24, before);
    store_at(file, at + 24, Le64(before));
    const std::uint32_t kind = stored_at<Le32>(file, at);
    const std::uint64_t size = stored_at<Le64>(file, at + 16);
    if (kind == 3 || size > file.size()) return;
    at += 32 + (kind == 1 ? size + (has_sums ? size / 4096 * 8 : 0) : 0);
  }
}

}  // namespace vmspace::test
