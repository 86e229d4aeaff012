// SPDX-License-Identifier: Apache-2.0
//
// Readers and writers of random ranges, moved at random, against lists of addresses.

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "model/guest_cursor_oracle.hpp"

namespace vmspace::test::guest_cursor_model_test {
namespace {

RC_GTEST_PROP(GuestCursorModel, ReadsAndWritesAsAListOfAddressesWould, ()) {
  const auto bytes =
      *rc::gen::container<std::vector<std::uint8_t>>(rc::gen::arbitrary<std::uint8_t>());
  CursorSideBySide both;
  Bytes left(bytes);
  // Cursors one after the other, so that what one has written is read by the next.
  while (!left.empty()) {
    const auto difference = both.run(left);
    if (difference) RC_FAIL(*difference);
  }
  const auto difference = both.finish();
  if (difference) RC_FAIL(*difference);
}

}  // namespace
}  // namespace vmspace::test::guest_cursor_model_test
