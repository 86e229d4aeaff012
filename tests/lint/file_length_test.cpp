// SPDX-License-Identifier: Apache-2.0
//
// A file holds one idea, and one that grows long has begun a second: none is above 450 lines, unless
// a comment in it says why (`// Longer than 450 lines: ...`).

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmspace::lint {
namespace {

namespace fs = std::filesystem;
using testing::IsEmpty;
using testing::SizeIs;

constexpr std::size_t limit = 450;
constexpr std::string_view excuse = "// Longer than 450 lines: ";

bool is_too_long(std::string_view text) {
  const auto lines = std::count(text.begin(), text.end(), '\n');
  return static_cast<std::size_t>(lines) > limit && text.find(excuse) == std::string_view::npos;
}

TEST(FileLengthLint, EachFileHoldsOneIdea) {
  const fs::path root = VMSPACE_SOURCE_DIR;
  std::vector<std::string> too_long;
  std::vector<std::string> read;
  for (const char* folder : {"include", "src", "tests", "bench", "examples"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".hpp" && extension != ".cpp" && extension != ".h") continue;
      std::ifstream in(entry.path());
      const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
      read.push_back(fs::relative(entry.path(), root).string());
      if (is_too_long(text)) too_long.push_back(read.back());
    }
  }
  EXPECT_THAT(read, SizeIs(testing::Gt(100U)));
  EXPECT_THAT(too_long, IsEmpty());
}

TEST(FileLengthLint, FindsALongFileWithoutAReason) {
  const std::string longest(limit, '\n');
  EXPECT_FALSE(is_too_long(longest));
  EXPECT_TRUE(is_too_long(longest + "\n"));
  EXPECT_FALSE(is_too_long("// Longer than 450 lines: a table.\n" + longest));
}

}  // namespace
}  // namespace vmspace::lint
