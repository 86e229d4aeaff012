// SPDX-License-Identifier: Apache-2.0
//
// The input is a list of calls of six bytes each, made on a tree and on its oracle. The first byte
// says where in the domain; a quarter of the places start from a tree of several levels.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "model/interval_tree_side_by_side.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using vmspace::test::SideBySide;
  using vmspace::test::Step;

  if (size == 0) return 0;
  static constexpr std::uint64_t origins[] = {0, UINT64_MAX - UINT16_MAX,
                                              (std::uint64_t{1} << 63) - 1000, 0x1000};
  SideBySide both(origins[data[0] % 4]);
  const auto apply = [&both](const Step& step) {
    if (const auto difference = both.apply(step)) {
      std::fprintf(stderr, "after {%u, %u, %u, %u}: %s\n", step.kind, step.shape, step.a, step.b,
                   difference->c_str());
      std::abort();
    }
  };
  if (data[0] / 4 % 4 == 3) {
    for (std::uint16_t i = 0; i < 80; ++i) {
      apply({.kind = static_cast<std::uint8_t>(i % 2),
             .a = static_cast<std::uint16_t>(i * 7919u % 80 * 65),
             .b = 63});
    }
  }
  for (std::size_t i = 1; i + 6 <= size; i += 6) {
    apply({.kind = data[i],
           .shape = data[i + 1],
           .a = static_cast<std::uint16_t>(data[i + 2] | data[i + 3] << 8),
           .b = static_cast<std::uint16_t>(data[i + 4] | data[i + 5] << 8)});
  }
  return 0;
}
