// SPDX-License-Identifier: Apache-2.0
//
// The examples of README and of the layers' pages are parts of programs that are compiled and run;
// here the texts are held together. A program marks its part with `// README begin` and
// `// README end`; the page names the program in a comment before the block:
// `<!-- examples/readme/allocator.cpp -->`. What a program prints is shown from a golden file of the
// tests, which is named in the same way.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
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

// README, and the pages among the headers.
std::vector<fs::path> pages() {
  std::vector<fs::path> found = {source_dir / "README.md"};
  for (const auto& entry : fs::recursive_directory_iterator(source_dir / "include")) {
    if (entry.path().extension() == ".md") found.push_back(entry.path());
  }
  return found;
}

// The blocks of a page by the file that each names, as a path from the top: a program in a C++ block,
// which must name one, or a golden file.
std::map<std::string, Lines> blocks_of(const fs::path& page) {
  constexpr std::string_view opening = "<!-- ";
  std::map<std::string, Lines> blocks;
  Lines* block = nullptr;
  std::string file;
  for (const std::string& line : read_lines(page)) {
    if (line.starts_with(opening)) {
      file = line.substr(opening.size(), line.find(' ', opening.size()) - opening.size());
    } else if (block == nullptr && (line == "```cpp" || (line == "```text" && !file.empty()))) {
      EXPECT_FALSE(file.empty()) << "a C++ block of " << page << " names no file";
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

TEST(Readme, PagesShowGoldenFilesAndTheMarkedPartOfEveryExampleProgram) {
  std::set<std::string> shown;
  for (const fs::path& page : pages()) {
    for (const auto& [file, block] : blocks_of(page)) {
      const fs::path path = source_dir / file;
      const Lines expected =
          path.extension() == ".txt" ? read_lines(path) : at_left_margin(marked_part(path));
      EXPECT_EQ(block, expected) << page << " shows " << file;
      shown.insert(file);
    }
  }
  for (const char* folder : {"examples/readme", "examples/layers", "examples/cookbook"}) {
    for (const auto& entry : fs::directory_iterator(source_dir / folder)) {
      if (entry.path().extension() != ".cpp") continue;
      EXPECT_TRUE(shown.contains(fs::relative(entry.path(), source_dir).string()))
          << "no page shows " << entry.path();
    }
  }
}

TEST(Readme, EveryLayerHasAPageWithAnExample) {
  for (const auto& entry : fs::directory_iterator(source_dir / "include/vmspace")) {
    const fs::path layer = entry.path().filename();
    if (!entry.is_directory() || layer == "text") continue;  // text/ is an adapter
    const fs::path page = entry.path() / "README.md";
    ASSERT_TRUE(fs::exists(page)) << page;
    EXPECT_FALSE(blocks_of(page).empty()) << page;
  }
}

TEST(Readme, LinksOfThePagesLeadToFilesThatExist) {
  static const std::regex link(R"(\]\(([^)#:]+)(#[^)]*)?\))");
  for (const fs::path& page : pages()) {
    bool in_block = false;
    for (const std::string& line : read_lines(page)) {
      if (line.starts_with("```")) in_block = !in_block;
      if (in_block) continue;  // a lambda looks like a link
      for (std::sregex_iterator at(line.begin(), line.end(), link), end; at != end; ++at) {
        EXPECT_TRUE(fs::exists(page.parent_path() / at->str(1))) << page << ": " << at->str(1);
      }
    }
  }
}

// A newcomer has read the pages and opened no header, so the programs that stand for one get by with
// the headers that README names.
TEST(Readme, TheProgramsOfANewcomerNeedNoMoreThanUmbrellas) {
  static const std::regex include(R"re(#include "(.*)")re");
  const fs::path programs = source_dir / "examples/newcomer";
  std::size_t count = 0;
  for (const auto& entry : fs::directory_iterator(programs)) {
    if (entry.path().extension() != ".cpp") continue;
    ++count;
    for (const std::string& line : read_lines(entry.path())) {
      std::smatch match;
      if (!std::regex_match(line, match, include)) continue;
      EXPECT_EQ(fs::path(match.str(1)).parent_path(), "vmspace") << entry.path() << ": " << line;
    }
  }
  EXPECT_EQ(count, 3U);
  EXPECT_LE(read_lines(programs / "memory_setup.cpp").size(), 40U);
}

TEST(Readme, NamesTheTwoCommands) {
  const Lines lines = read_lines(source_dir / "README.md");
  EXPECT_THAT(lines, testing::Contains("sh cmake/bootstrap.sh demo"));
  EXPECT_THAT(lines, testing::Contains("sh cmake/bootstrap.sh test"));
}

}  // namespace
