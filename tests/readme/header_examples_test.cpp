// SPDX-License-Identifier: Apache-2.0
//
// The examples in the comments of the public headers compile: header_examples/ has each, inside of a
// function that declares what it uses, between `// from vmspace/base/try.hpp` and `// end`. Here the
// texts are held together. Spaces and comments may differ, and what a header leaves out (`...`) is
// whatever it takes to compile.
//
// An example of one or two lines is no program, and need not be there.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

namespace fs = std::filesystem;
using testing::SizeIs;

using Lines = std::vector<std::string>;

Lines read_lines(const fs::path& file) {
  std::ifstream in(file);
  EXPECT_TRUE(in) << file;
  Lines lines;
  for (std::string line; std::getline(in, line);)
    lines.push_back(line);
  return lines;
}

// Without spaces and comments. A line that begins with what was left out consists of nothing else.
std::string essence(const Lines& lines) {
  std::string text;
  for (std::string line : lines) {
    line.erase(std::min(line.find("//"), line.size()));
    std::erase(line, ' ');
    text += line.starts_with("...") ? "..." : line;
  }
  return text;
}

bool is_code(const Lines& block) {
  static const std::regex code(R"(.*[;{}]( *//.*)?$)");
  return !block.front().starts_with("-") && std::any_of(block.begin(), block.end(), [](auto& line) {
    return std::regex_match(line, code);
  });
}

// The programs in a header's comments: lines that are indented by three spaces, after an empty one.
std::vector<Lines> programs_of(const fs::path& header) {
  static const std::regex empty(R"( *///?)");
  static const std::regex indented(R"( *///?   (.*))");
  std::vector<Lines> programs;
  Lines block;
  bool may_begin = false;
  for (const std::string& line : read_lines(header)) {
    std::smatch match;
    if (std::regex_match(line, empty)) {
      may_begin = true;
    } else if ((may_begin || !block.empty()) && std::regex_match(line, match, indented)) {
      block.push_back(match.str(1));
    } else {
      if (!block.empty() && block.size() > 2 && is_code(block)) programs.push_back(block);
      block.clear();
      may_begin = false;
    }
  }
  return programs;
}

// The marked parts of the sources beside this one, by the header that each names, in their order.
std::map<std::string, std::vector<Lines>> compiled_parts() {
  constexpr std::string_view begin = "// from ";
  std::map<std::string, std::vector<Lines>> parts;
  for (const auto& entry :
       fs::directory_iterator(fs::path(VMSPACE_SOURCE_DIR) / "tests/readme/header_examples")) {
    Lines* part = nullptr;
    for (const std::string& line : read_lines(entry.path())) {
      const std::string text = line.substr(std::min(line.find_first_not_of(' '), line.size()));
      if (text.starts_with(begin)) {
        part = &parts[text.substr(begin.size())].emplace_back();
      } else if (text == "// end") {
        part = nullptr;
      } else if (part != nullptr) {
        part->push_back(text);
      }
    }
  }
  return parts;
}

// Whether `text` is `pattern` with something in place of each `...`.
bool matches(std::string_view text, std::string_view pattern) {
  constexpr std::string_view gap = "...";
  std::size_t at = pattern.find(gap);
  if (at == std::string_view::npos) return text == pattern;
  if (!text.starts_with(pattern.substr(0, at))) return false;
  text.remove_prefix(at);
  pattern.remove_prefix(at + gap.size());
  while ((at = pattern.find(gap)) != std::string_view::npos) {
    const std::size_t found = text.find(pattern.substr(0, at));
    if (found == std::string_view::npos) return false;
    text.remove_prefix(found + at);
    pattern.remove_prefix(at + gap.size());
  }
  return text.ends_with(pattern);
}

TEST(HeaderExamples, EachProgramInACommentIsOneThatCompiles) {
  const fs::path include = fs::path(VMSPACE_SOURCE_DIR) / "include";
  const auto parts = compiled_parts();
  std::map<std::string, std::vector<Lines>> programs;
  for (const auto& entry : fs::recursive_directory_iterator(include)) {
    const fs::path header = fs::relative(entry.path(), include);
    if (header.extension() != ".hpp" || header.string().find("detail/") != std::string::npos)
      continue;
    auto found = programs_of(entry.path());
    if (!found.empty()) programs[header.string()] = std::move(found);
  }
  EXPECT_THAT(programs, SizeIs(testing::Gt(20U)));
  for (const auto& [header, part] : parts)
    EXPECT_TRUE(programs.contains(header)) << "no program in a comment of " << header;
  for (const auto& [header, blocks] : programs) {
    const auto compiled = parts.find(header);
    if (compiled == parts.end()) {
      ADD_FAILURE() << "tests/readme/header_examples has nothing from " << header;
      continue;
    }
    ASSERT_THAT(compiled->second, SizeIs(blocks.size())) << header;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      EXPECT_TRUE(matches(essence(compiled->second[i]), essence(blocks[i])))
          << header << " shows\n  " << essence(blocks[i]) << "\nand what compiles is\n  "
          << essence(compiled->second[i]);
    }
  }
}

TEST(HeaderExamples, ALeftOutPartMayBeAnythingAndTheRestMayNot) {
  EXPECT_TRUE(matches("a(1);b(2);", "a(...);b(...);"));
  EXPECT_TRUE(matches("a;b;", "a;...b;"));
  EXPECT_FALSE(matches("a(1);c(2);", "a(...);b(...);"));
  EXPECT_FALSE(matches("a;b;c;", "a;...b;"));
  EXPECT_FALSE(matches("a;b;", "a;c;"));
}

}  // namespace
