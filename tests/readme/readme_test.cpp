// SPDX-License-Identifier: Apache-2.0
//
// README's examples are parts of programs that are compiled and run; here the two texts are held
// together. A file of examples/readme marks its part with `// README begin` and `// README end`;
// README names the file in a comment before the block: `<!-- examples/readme/allocator.cpp -->`.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

namespace fs = std::filesystem;
using Lines = std::vector<std::string>;

const fs::path source_dir = VMSPACE_SOURCE_DIR;

Lines read_lines(const fs::path& file) {
  std::ifstream in(file);
  EXPECT_TRUE(in) << file;
  Lines lines;
  for (std::string line; std::getline(in, line);)
    lines.push_back(line);
  return lines;
}

// The marked part of a program, moved to the left margin.
Lines marked_part(const fs::path& file) {
  Lines part;
  bool inside = false;
  for (const std::string& line : read_lines(file)) {
    const std::size_t text = line.find_first_not_of(' ');
    const std::string_view stripped =
        text == std::string::npos ? std::string_view{} : std::string_view(line).substr(text);
    if (stripped == "// README end") return part;
    if (inside) part.push_back(line);
    if (stripped == "// README begin") inside = true;
  }
  ADD_FAILURE() << file << " has no part between the README marks";
  return {};
}

Lines at_left_margin(Lines lines) {
  std::size_t margin = std::string::npos;
  for (const std::string& line : lines)
    margin = std::min(margin, line.find_first_not_of(' '));
  for (std::string& line : lines)
    line.erase(0, std::min(margin, line.size()));
  return lines;
}

// The C++ blocks of README by the file that each names.
std::map<std::string, Lines> readme_blocks() {
  constexpr std::string_view opening = "<!-- examples/readme/";
  std::map<std::string, Lines> blocks;
  Lines* block = nullptr;
  std::string file;
  for (const std::string& line : read_lines(source_dir / "README.md")) {
    if (line.starts_with(opening)) {
      file = line.substr(opening.size(), line.find(' ', opening.size()) - opening.size());
    } else if (block == nullptr && line == "```cpp") {
      EXPECT_FALSE(file.empty()) << "a C++ block of README names no file";
      block = &blocks[file];
      file.clear();
    } else if (block != nullptr && line == "```") {
      block = nullptr;
    } else if (block != nullptr) {
      block->push_back(line);
    }
  }
  return blocks;
}

TEST(Readme, ShowsTheMarkedPartOfEveryExampleProgram) {
  const auto blocks = readme_blocks();
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(source_dir / "examples/readme")) {
    if (entry.path().extension() == ".cpp") files.push_back(entry.path().filename().string());
  }
  EXPECT_EQ(blocks.size(), files.size());
  for (const std::string& file : files) {
    ASSERT_TRUE(blocks.contains(file)) << "README does not show " << file;
    EXPECT_EQ(blocks.at(file), at_left_margin(marked_part(source_dir / "examples/readme" / file)))
        << file;
  }
}

TEST(Readme, NamesTheTwoCommands) {
  const Lines lines = read_lines(source_dir / "README.md");
  EXPECT_THAT(lines, testing::Contains("sh cmake/bootstrap.sh demo"));
  EXPECT_THAT(lines, testing::Contains("sh cmake/bootstrap.sh test"));
}

}  // namespace
