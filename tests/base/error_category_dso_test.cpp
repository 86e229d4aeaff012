// SPDX-License-Identifier: Apache-2.0
//
// Error codes made on one side of the border of a shared library and compared on the other.

#include <system_error>

#include <gtest/gtest.h>

#include "vmspace/base/error.hpp"

std::error_code vmspace_test_no_space();

namespace vmspace::error_category_dso_test {
namespace {

TEST(ErrorCategoryDso, AnErrorCodeOfALibraryWithHiddenSymbolsIsEqualToTheProgramsOwn) {
  EXPECT_EQ(vmspace_test_no_space(), Errc::no_space);
  EXPECT_EQ(&vmspace_test_no_space().category(), &error_category());
}

}  // namespace
}  // namespace vmspace::error_category_dso_test
