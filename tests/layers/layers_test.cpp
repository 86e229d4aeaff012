// SPDX-License-Identifier: Apache-2.0
//
// The architecture as a test: each layer includes only itself and what it may build on, and what is
// private to the sources stays out of the headers.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

struct Layer {
  std::string_view name;
  std::vector<std::string_view> may_include;  // besides itself; closed over what those may include
};

const std::vector<Layer> layers = {
    {"base", {}},
    {"os", {"base"}},
    {"allocator", {"base"}},
    {"spec", {"os", "base"}},
    {"address_space", {"allocator", "spec", "os", "base"}},
    {"boot", {"address_space", "allocator", "spec", "os", "base"}},
    {"host", {"allocator", "spec", "os", "base"}},
    {"memory", {"host", "address_space", "allocator", "spec", "os", "base"}},
    {"virtio", {"memory", "host", "address_space", "allocator", "spec", "os", "base"}},
    {"snapshot", {"memory", "host", "address_space", "allocator", "spec", "os", "base"}},
    {"resources", {"address_space", "allocator", "spec", "os", "base"}},
    {"vmm", {"resources", "memory", "host", "address_space", "allocator", "spec", "os", "base"}},
};

const Layer* find_layer(std::string_view name) {
  const auto it = std::ranges::find(layers, name, &Layer::name);
  return it == layers.end() ? nullptr : &*it;
}

// Headers that stand above all layers and that none includes; text is a folder as well.
bool is_adapter(const fs::path& relative) {
  static const std::vector<std::string_view> adapters = {"exit_on_error", "fmt",     "format",
                                                         "ostream",       "testing", "text"};
  return std::ranges::find(adapters, relative.begin()->stem().string()) != adapters.end();
}

// The layer of a path below include/vmspace or src: its folder, or its umbrella's name. "" for those
// that stand above all layers.
std::string layer_of(const fs::path& relative) {
  if (is_adapter(relative) || relative == "vmspace.hpp") return "";
  return relative.begin()->stem().string();
}

std::vector<std::string> included_files(const fs::path& file) {
  static const std::regex include(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  std::vector<std::string> names;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (std::regex_search(line, match, include)) names.push_back(match[1]);
  }
  return names;
}

// Standard headers that add thousands of lines to every file that includes ours. The allocator, which
// many use alone, does without a few more.
bool is_costly(std::string_view layer, std::string_view header) {
  static const std::vector<std::string_view> everywhere = {
      "algorithm", "format", "fstream", "iomanip", "iostream",     "ostream",
      "random",    "ranges", "regex",   "sstream", "unordered_map"};
  static const std::vector<std::string_view> in_allocator = {
      "atomic", "chrono", "condition_variable", "future", "memory", "thread", "variant"};
  return std::ranges::find(everywhere, header) != everywhere.end() ||
         (layer == "allocator" && std::ranges::find(in_allocator, header) != in_allocator.end());
}

// Every violation below `folder`, which stands for include/vmspace or for src.
std::vector<std::string> violations(const fs::path& folder, bool headers) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const fs::path extension = entry.path().extension();
    if (!entry.is_regular_file() || (extension != ".hpp" && extension != ".cpp")) continue;
    const fs::path relative = fs::relative(entry.path(), folder);
    const std::string from = layer_of(relative);
    const auto report = [&](const std::string& name, const char* why) {
      found.push_back(relative.string() + " includes " + name + ": " + why);
    };
    if (!from.empty() && find_layer(from) == nullptr) {
      found.push_back(relative.string() + " is in no layer");
      continue;
    }
    for (const std::string& name : included_files(entry.path())) {
      const bool is_fmt_header = relative == "fmt.hpp";
      if (name.starts_with("boost/") && headers) report(name, "Boost is private to src");
      if (headers && !from.empty() && is_costly(from, name)) {
        report(name, "a standard header that costs every user too much");
      }
      if (name.starts_with("fmt/") && headers && !is_fmt_header) {
        report(name, "fmt is private to src and the adapter");
      }
      // Ours are "vmspace/<layer>/..." and, among the sources, "<layer>/...".
      const bool is_public = name.starts_with("vmspace/");
      const std::size_t slash = name.find('/');  // none in <memory>, which is no layer
      if (slash == std::string::npos) continue;
      if (!is_public && find_layer(name.substr(0, slash)) == nullptr) continue;
      const fs::path target =
          is_public ? fs::path(name).lexically_relative("vmspace") : fs::path(name);
      if (is_public && is_adapter(target) && !is_adapter(relative)) {
        report(name, "an adapter stands above all layers");
      }
      if (from.empty()) continue;
      const std::string to = layer_of(target);
      const auto& allowed = find_layer(from)->may_include;
      if (to != from && std::ranges::find(allowed, to) == allowed.end()) {
        report(name, "a higher layer");
      }
    }
  }
  return found;
}

const fs::path source_dir = VMSPACE_SOURCE_DIR;

TEST(Layers, HeadersIncludeOnlyWhatTheyMayBuildOn) {
  EXPECT_THAT(violations(source_dir / "include/vmspace", true), IsEmpty());
}

TEST(Layers, SourcesIncludeOnlyWhatTheyMayBuildOn) {
  EXPECT_THAT(violations(source_dir / "src", false), IsEmpty());
}

TEST(Layers, TheLayersAreTheFoldersThatExist) {
  std::vector<std::string> folders;
  for (const auto& entry : fs::directory_iterator(source_dir / "include/vmspace")) {
    if (entry.is_directory() && !is_adapter(entry.path().filename())) {
      folders.push_back(entry.path().filename().string());
    }
  }
  for (const std::string& folder : folders) {
    EXPECT_NE(find_layer(folder), nullptr) << folder;
    EXPECT_TRUE(fs::exists(source_dir / "include/vmspace" / (folder + ".hpp")))
        << folder << " has no umbrella";
  }
}

TEST(Layers, AnUmbrellaIncludesEveryHeaderOfItsLayer) {
  for (const Layer& layer : layers) {
    const fs::path folder = source_dir / "include/vmspace" / layer.name;
    if (!fs::exists(folder)) continue;
    const auto umbrella = included_files(folder.string() + ".hpp");
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() != ".hpp") continue;  // detail/, README.md
      const std::string header = fs::relative(entry.path(), source_dir / "include").string();
      EXPECT_THAT(umbrella, Contains(header));
    }
    EXPECT_THAT(included_files(source_dir / "include/vmspace/vmspace.hpp"),
                Contains("vmspace/" + std::string(layer.name) + ".hpp"));
  }
}

// The checks above would pass if the checker were blind, so here it looks at trees that are wrong.
class BrokenTree : public testing::Test {
 protected:
  void SetUp() override {
    root_ =
        fs::path(testing::TempDir()) /
        (std::string("layers_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const char* file, const char* text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }

  fs::path root_;
};

TEST_F(BrokenTree, ALowerLayerThatIncludesAHigherOneIsFound) {
  write("allocator/range.hpp", "#include \"vmspace/host/memory_mapping.hpp\"\n");
  EXPECT_THAT(violations(root_, true),
              Contains(HasSubstr("host/memory_mapping.hpp: a higher layer")));
}

TEST_F(BrokenTree, AnUmbrellaCountsAsItsLayer) {
  write("base/error.hpp", "# include <vmspace/allocator.hpp>\n");
  EXPECT_THAT(violations(root_, true), Contains(HasSubstr("allocator.hpp: a higher layer")));
}

TEST_F(BrokenTree, ASourceThatReachesIntoAHigherLayersSourcesIsFound) {
  write("address_space/layout.cpp", "#include \"memory/syscalls.hpp\"\n");
  EXPECT_THAT(violations(root_, false), Contains(HasSubstr("syscalls.hpp: a higher layer")));
}

TEST_F(BrokenTree, PrivateDependenciesInHeadersAreFound) {
  write("address_space/layout.hpp",
        "#include <boost/icl/interval_set.hpp>\n#include <fmt/core.h>\n");
  EXPECT_EQ(violations(root_, true).size(), 2u);
  EXPECT_THAT(violations(root_, false), IsEmpty());
}

TEST_F(BrokenTree, StandardHeadersThatCostTooMuchAreFoundInHeaders) {
  write("base/error.hpp", "#include <algorithm>\n#include <memory>\n");
  write("allocator/range.hpp", "#include <memory>\n");
  write("ostream.hpp", "#include <ostream>\n");
  EXPECT_EQ(violations(root_, true).size(), 2u);
  EXPECT_THAT(violations(root_, false), IsEmpty());
}

TEST_F(BrokenTree, AnAdapterInALayerAndAFolderThatIsNoLayerAreFound) {
  write("vmm/slots.hpp", "#include \"vmspace/fmt.hpp\"\n#include \"vmspace/text/allocator.hpp\"\n");
  write("utils/misc.hpp", "\n");
  write("misc.hpp", "\n");
  EXPECT_THAT(violations(root_, true), Contains(HasSubstr("fmt.hpp: an adapter stands above")));
  EXPECT_THAT(violations(root_, true), Contains(HasSubstr("text/allocator.hpp: an adapter")));
  EXPECT_THAT(violations(root_, true), Contains(HasSubstr("utils/misc.hpp is in no layer")));
  EXPECT_THAT(violations(root_, true), Contains("misc.hpp is in no layer"));
}

TEST_F(BrokenTree, ALayerMayIncludeItselfAndWhatItBuildsOn) {
  write("memory/region.hpp",
        "#include \"vmspace/host/memory_mapping.hpp\"\n#include \"vmspace/base/error.hpp\"\n"
        "#include \"vmspace/allocator/range.hpp\"\n#include <memory>\n");
  EXPECT_THAT(violations(root_, true), IsEmpty());
}

}  // namespace
