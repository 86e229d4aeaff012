// SPDX-License-Identifier: Apache-2.0
//
// <program> [GoogleTest's options] [<source>...]
//
// Runs the cases of these sources, or all. A program has the cases of many sources, and CTest runs those of
// each in a process of its own.

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

/// The names of the cases of `source`, each with a colon behind it.
std::string cases_of(std::string_view source) {
  std::string names;
  const auto& program = *testing::UnitTest::GetInstance();
  for (int i = 0; i < program.total_test_suite_count(); ++i) {
    const auto& suite = *program.GetTestSuite(i);
    for (int j = 0; j < suite.total_test_count(); ++j) {
      const auto& test = *suite.GetTestInfo(j);
      const std::string_view file = test.file();
      if (file.substr(file.rfind('/') + 1) == source) {
        names.append(suite.name()).append(".").append(test.name()).append(":");
      }
    }
  }
  return names;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const std::string filter = GTEST_FLAG_GET(filter);
  const std::size_t excluded = std::min(filter.find('-'), filter.size());
  // Which cases to leave out may be said beside the sources (in GTEST_FILTER), which to run instead of them.
  if (const auto included = filter.substr(0, excluded); included.empty() || included == "*") {
    std::string chosen;
    for (int i = 1; i < argc; ++i) {
      const auto cases = cases_of(argv[i]);
      if (cases.empty()) {
        std::fprintf(stderr, "no case is in %s\n", argv[i]);
        return 2;
      }
      chosen += cases;
    }
    if (argc > 1) GTEST_FLAG_SET(filter, chosen + filter.substr(excluded));
  }
  return RUN_ALL_TESTS();
}
