// SPDX-License-Identifier: Apache-2.0
//
// Random updates, invalidations, misses and accesses, against a map of bytes.

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "model/io_tlb_oracle.hpp"

namespace vmspace::test::io_tlb_model_test {
namespace {

RC_GTEST_PROP(IoTlbModel, TranslatesAsAMapOfBytesWould, ()) {
  const auto bytes =
      *rc::gen::container<std::vector<std::uint8_t>>(400, rc::gen::arbitrary<std::uint8_t>());
  IoTlbSideBySide both;
  Bytes left(bytes);
  while (!left.empty()) {
    const auto difference = both.run(left);
    if (difference) RC_FAIL(*difference);
  }
  const auto difference = both.finish();
  if (difference) RC_FAIL(*difference);
}

}  // namespace
}  // namespace vmspace::test::io_tlb_model_test
