// SPDX-License-Identifier: Apache-2.0
//
// A shared library that hides its symbols. error_category_dso_test is linked to it.

#include <system_error>

#include "vmspace/base/error.hpp"

[[gnu::visibility("default")]] std::error_code vmspace_test_no_space() {
  return vmspace::Errc::no_space;
}
