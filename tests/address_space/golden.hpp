// SPDX-License-Identifier: Apache-2.0
//
// Texts against files in golden/. A new file is written by running the test once with
// VMSPACE_WRITE_GOLDEN=1; the same rewrites files after a deliberate change, to be read in review.

#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

namespace vmspace::test {

/// Expects `text` to be what the file of this name holds. The last statement of a test.
inline void expect_golden(std::string_view text, const char* file) {
  const std::string path = std::string(VMSPACE_GOLDEN_DIR "/") + file;
  if (std::getenv("VMSPACE_WRITE_GOLDEN") != nullptr) {
    std::ofstream(path) << text;
    // Asked to write the file, the test has nothing to compare it with.
    GTEST_SKIP() << "wrote " << path;
  }
  std::ifstream in(path);
  ASSERT_TRUE(in) << path;
  const std::string expected{std::istreambuf_iterator<char>(in), {}};
  EXPECT_EQ(text, expected) << path << ": see the head of this test before changing it";
}

}  // namespace vmspace::test
