// SPDX-License-Identifier: Apache-2.0
//
// The input is a list of calls of six bytes each, made on guest memory and on its oracle. The first
// byte says where in the address space.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "model/guest_memory_oracle.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using vmspace::test::GuestSideBySide;
  if (size == 0) return 0;
  static constexpr std::uint64_t origins[] = {GuestSideBySide::lowest, GuestSideBySide::highest,
                                              0xc000'0000, std::uint64_t{1} << 46};
  GuestSideBySide both(origins[data[0] % 4]);
  const auto check = [](const auto& difference) {
    if (!difference) return;
    std::fprintf(stderr, "%s\n", difference->c_str());
    std::abort();
  };
  for (std::size_t i = 1; i + 6 <= size; i += 6) {
    check(both.apply({.kind = data[i],
                      .value = data[i + 1],
                      .a = static_cast<std::uint16_t>(data[i + 2] | data[i + 3] << 8),
                      .b = static_cast<std::uint16_t>(data[i + 4] | data[i + 5] << 8)}));
  }
  check(both.finish());
  return 0;
}
