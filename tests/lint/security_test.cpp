// SPDX-License-Identifier: Apache-2.0
//
// The threat model (.github/SECURITY.md) names a test for each claim: every row of its tables has at
// least one, and each is in the file that its link leads to.

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmspace::lint {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::Gt;
using testing::IsEmpty;

std::string contents(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Whether the source has the GoogleTest case "Suite.Name", or is the fuzzer of this name.
bool has_test(const fs::path& path, const std::string& name) {
  const std::string text = contents(path);
  const auto dot = name.find('.');
  if (dot == std::string::npos)
    return path.stem() == name && text.find("LLVMFuzzerTestOneInput") != std::string::npos;
  const std::string of = "(" + name.substr(0, dot) + ", " + name.substr(dot + 1) + ")";
  return std::ranges::any_of(
      std::array{"\nTEST", "\nTEST_F", "\nTEST_P", "\nTYPED_TEST"},
      [&](const char* macro) { return text.find(macro + of) != std::string::npos; });
}

struct Verdict {
  std::size_t claims = 0;
  std::vector<std::string> wrong;
};

Verdict judge(const std::string& page, const fs::path& folder) {
  static const std::regex link(R"(\[([\w.]+)\]\((\.\./tests/[\w/.]+)\))");
  Verdict verdict;
  std::istringstream lines(page);
  bool in_table = false;  // behind its |---| line
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| ") || !in_table) {
      in_table = line.starts_with("|---");
      continue;
    }
    ++verdict.claims;
    const std::sregex_iterator first(line.begin(), line.end(), link);
    if (first == std::sregex_iterator()) verdict.wrong.push_back(line);
    for (auto at = first; at != std::sregex_iterator(); ++at) {
      if (!has_test(folder / (*at)[2].str(), (*at)[1].str()))
        verdict.wrong.push_back((*at)[0].str());
    }
  }
  return verdict;
}

const fs::path folder = fs::path(VMSPACE_SOURCE_DIR) / ".github";

TEST(SecurityLint, EachClaimHasATestWhereItsLinkLeads) {
  const Verdict verdict = judge(contents(folder / "SECURITY.md"), folder);
  EXPECT_THAT(verdict.claims, Gt(40U));
  EXPECT_THAT(verdict.wrong, IsEmpty());
}

TEST(SecurityLint, FindsClaimsWithoutATestAndLinksThatLeadNowhere) {
  const std::string here = "(../tests/lint/security_test.cpp)";
  const std::string page =
      "| it may | what holds | shown by |\n"
      "|---|---|---|\n"
      "| lie | it is refused | [SecurityLint.EachClaimHasATestWhereItsLinkLeads]" +
      here +
      " |\n"
      "| fake | it is refused | [SecurityLint.Gone]" +
      here +
      " |\n"
      "| fuzz | it is refused | [gone_fuzz](../tests/fuzz/gone_fuzz.cpp) |\n"
      "| hide | nothing | |\n";
  const Verdict verdict = judge(page, folder);
  EXPECT_EQ(verdict.claims, 4U);
  EXPECT_THAT(verdict.wrong,
              ElementsAre("[SecurityLint.Gone]" + here, "[gone_fuzz](../tests/fuzz/gone_fuzz.cpp)",
                          "| hide | nothing | |"));
}

}  // namespace
}  // namespace vmspace::lint
