// SPDX-License-Identifier: Apache-2.0
//
// The input is a list of operations on a table of translations: see the oracle, which says what each
// byte means.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "model/io_tlb_oracle.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmspace::test::IoTlbSideBySide both;
  const auto check = [](const auto& difference) {
    if (!difference) return;
    std::fprintf(stderr, "%s\n", difference->c_str());
    std::abort();
  };
  vmspace::test::Bytes bytes({data, size});
  while (!bytes.empty())
    check(both.run(bytes));
  check(both.finish());
  return 0;
}
