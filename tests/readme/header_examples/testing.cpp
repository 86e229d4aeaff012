// SPDX-License-Identifier: Apache-2.0
//
// The examples in the comments of the headers, as functions that compile; see ../header_examples_test.cpp.

#include "vmspace/testing.hpp"

#include <string>

#include "vmspace/allocator.hpp"
#include "vmspace/base/literals.hpp"

namespace vmspace::header_examples {

using namespace literals;
using testing::HasSubstr;
using testing::Property;

void matchers(IntervalTree<std::string>& tree) {
  // from vmspace/testing.hpp
  const Range bar = VMSPACE_ASSERT_OK(tree.allocate({.size = 16_KiB}, "nic0"));
  VMSPACE_EXPECT_OK(tree.free(bar));
  EXPECT_THAT(tree.allocate({.size = 1}), IsOkAndHolds(Range::point(7)));
  EXPECT_THAT(tree.free(bar), HasError(Errc::not_found));
  EXPECT_THAT(tree.free(bar), HasErrorThat(Property(&Error::message, HasSubstr("0x100"))));
  // end
}

}  // namespace vmspace::header_examples
