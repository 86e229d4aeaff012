// SPDX-License-Identifier: Apache-2.0
//
// VMSPACE_TRY returns from the middle of an expression, and g++ and clang forget to destroy the
// members of an object that is being made in braces, or captured by a lambda, at that moment. So
// it stands only where nothing is half made: as a whole initialiser, the whole right-hand side of an
// assignment, a whole statement, the operand of a return, the range of a for, the whole condition
// of an if or a while, and as a whole argument of a call inside another one. Not where a static
// variable is initialised either: the next caller would wait for ever for the one that returned.

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lint/cpp_tokens.hpp"

namespace vmspace::lint {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

/// Those that give a value or return.
constexpr std::array<std::string_view, 3> macros = {"VMSPACE_TRY", "VMSPACE_TRY_IN",
                                                    "VMSPACE_ASSERT_OK"};

template <typename... Texts>
bool is_one_of(std::string_view text, const Texts&... texts) {
  return ((text == texts) || ...);
}

class TryLint {
 public:
  explicit TryLint(std::string_view code) : tokens_(Tokenizer(code).tokens()) {}

  /// The lines of uses that stand where they may not.
  [[nodiscard]] std::vector<std::size_t> misplaced() {
    std::vector<std::size_t> lines;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const std::string& text = tokens_[i].text;
      if (std::ranges::find(macros, text) != macros.end() && !may_stand(i)) {
        lines.push_back(tokens_[i].line);
      }
      if (is_one_of(text, "(", "[", "{")) open_.push_back(i);
      if (is_one_of(text, ")", "]", "}") && !open_.empty()) open_.pop_back();
    }
    return lines;
  }

 private:
  [[nodiscard]] std::string_view text(std::size_t i) const {
    return i < tokens_.size() ? std::string_view(tokens_[i].text) : std::string_view();
  }
  /// The bracket around what is being looked at; "" outside of all.
  [[nodiscard]] std::string_view around() const {
    return open_.empty() ? std::string_view() : text(open_.back());
  }
  [[nodiscard]] std::string_view before_bracket() const {
    return open_.empty() || open_.back() == 0 ? std::string_view() : text(open_.back() - 1);
  }

  [[nodiscard]] std::size_t after_call(std::size_t macro) const {
    std::size_t depth = 0;
    for (std::size_t i = macro + 1; i < tokens_.size(); ++i) {
      if (is_one_of(text(i), "(", "[", "{")) ++depth;
      if (is_one_of(text(i), ")", "]", "}") && --depth == 0) return i + 1;
    }
    return tokens_.size();
  }

  /// Where the statement that `i` belongs to begins, or its part behind the bracket around it.
  [[nodiscard]] std::size_t statement_begin(std::size_t i) const {
    const std::size_t first = open_.empty() ? 0 : open_.back() + 1;
    std::size_t depth = 0;
    for (; i > first; --i) {
      const std::string_view before = text(i - 1);
      if (is_one_of(before, ")", "]", "}")) {
        // A block ends a statement; the braces of a structured value before `=` do not occur.
        if (depth == 0 && before == "}") break;
        ++depth;
      }
      if (is_one_of(before, "(", "[", "{")) --depth;
      if (depth == 0 && before == ";") break;
    }
    return i;
  }
  [[nodiscard]] bool statement_has(std::size_t end, std::string_view wanted) const {
    for (std::size_t i = statement_begin(end); i < end; ++i) {
      if (text(i) == wanted) return true;
    }
    return false;
  }

  [[nodiscard]] bool may_stand(std::size_t macro) const {
    const std::string_view before = macro == 0 ? std::string_view(";") : text(macro - 1);
    const std::string_view after = text(after_call(macro));
    const bool assigns =
        is_one_of(before, "=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=");
    if (assigns && (statement_has(macro, "static") || statement_has(macro, "thread_local"))) {
      return false;
    }
    if (after == ";") {
      if (before == ":") return !statement_has(macro, "?");           // a label
      if (before == "]") return macro > 1 && text(macro - 2) == "]";  // an attribute
      if (before == ")") return true;                                 // if (...), (void)
      return assigns || is_one_of(before, ";", "{", "}", "else", "do", "return");
    }
    if (around() != "(") return false;
    if (after == ")") {
      if (before == ":" && before_bracket() == "for") return true;
      if (before == "(" && is_one_of(before_bracket(), "if", "while")) return true;
      if (before == "=" && is_one_of(before_bracket(), "if", "while", "switch")) return true;
    }
    return is_one_of(before, "(", ",") && is_one_of(after, ")", ",") && is_inside_another();
  }

  /// Whether only parentheses lie between here and the arguments of another use.
  [[nodiscard]] bool is_inside_another() const {
    for (auto bracket = open_.rbegin(); bracket != open_.rend() && text(*bracket) == "(";
         ++bracket) {
      if (*bracket > 0 && std::ranges::find(macros, text(*bracket - 1)) != macros.end())
        return true;
    }
    return false;
  }

  std::vector<Token> tokens_;
  std::vector<std::size_t> open_;  ///< brackets around the current token
};

std::vector<std::size_t> misplaced(std::string_view code) {
  return TryLint(code).misplaced();
}

std::string read(const fs::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(TryLint, EveryUseStandsWhereNothingIsHalfMade) {
  const fs::path root = VMSPACE_SOURCE_DIR;
  std::vector<fs::path> files = {root / "README.md"};
  for (const char* folder : {"include", "src", "tests", "examples", "bench"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::size_t checked = 0;
  std::vector<std::string> found;
  for (const fs::path& file : files) {
    const bool page = file.extension() == ".md";
    if (!page && file.extension() != ".hpp" && file.extension() != ".cpp") continue;
    ++checked;
    for (const std::size_t line : misplaced(page ? code_blocks(read(file)) : read(file))) {
      found.push_back(fs::relative(file, root).string() + ":" + std::to_string(line));
    }
  }
  EXPECT_GT(checked, 50u);
  EXPECT_THAT(found, IsEmpty());
}

TEST(TryLint, AcceptsWholeInitialisersStatementsReturnsAndRanges) {
  EXPECT_THAT(misplaced(R"cpp(
                Result<int> f() {
                  const auto bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB}, "nic0"));
                  const auto [a, b] = VMSPACE_TRY(pair());
                  VMSPACE_TRY(insert(x));
                  if (x)
                    VMSPACE_TRY(insert(x));
                  else
                    VMSPACE_TRY(remove(x));
                  if (x) [[unlikely]]
                    VMSPACE_TRY(insert(x));
                  for (int i = VMSPACE_TRY(first()); i < 3; ++i)
                    VMSPACE_TRY(insert(i));
                  for (const auto& piece : VMSPACE_TRY(plan())) {
                    VMSPACE_TRY(insert(piece));
                  }
                  if (const auto* region = VMSPACE_TRY(find(x))) use(region);
                  if (const auto owner = VMSPACE_TRY(find(x)); owner > 3) return 1;
                  switch (x) {
                    case 1: VMSPACE_TRY(insert(x)); break;
                    default: VMSPACE_TRY(remove(x));
                  }
                  memory_ = VMSPACE_TRY(memory_.with_region(region));
                  *places[3] += VMSPACE_TRY(count());
                  (void)VMSPACE_TRY(insert(x));
                  const auto taken = VMSPACE_TRY(std::move(result));
                  const auto relabelled = VMSPACE_TRY_IN("f", g(1, 2));
                  return VMSPACE_TRY(half(x));
                }
                TEST(A, B) {
                  const auto x = VMSPACE_ASSERT_OK(half(4));
                }
              )cpp"),
              IsEmpty());
}

TEST(TryLint, AcceptsTheWholeConditionOfAnIfOrAWhile) {
  EXPECT_THAT(misplaced("while (VMSPACE_TRY(queue.pop(memory, chain))) {}"), IsEmpty());
  EXPECT_THAT(misplaced("do { f(); } while (VMSPACE_TRY(more()));"), IsEmpty());
  EXPECT_THAT(misplaced("if (VMSPACE_TRY(memory.serve(socket, message))) return;"), IsEmpty());
  EXPECT_THAT(misplaced("while (!VMSPACE_TRY(more())) {}"), SizeIs(1));
  EXPECT_THAT(misplaced("while (VMSPACE_TRY(count()) > 1) {}"), SizeIs(1));
}

TEST(TryLint, AcceptsWholeArgumentsInsideAnotherOneAndBodiesOfLambdas) {
  EXPECT_THAT(misplaced(R"cpp(
                return VMSPACE_TRY(sum(VMSPACE_TRY(half(x)), twice(1, VMSPACE_TRY(half(y)))));
                VMSPACE_TRY(VMSPACE_TRY(f()));
                VMSPACE_TRY(space.transact([&](auto& draft) -> Result<void> {
                  VMSPACE_TRY(draft.remove(x));
                  const Pair pair{1, 2};
                  return VMSPACE_TRY(draft.insert(x));
                }));
                const Device nic = make([&]() -> Result<int> { return VMSPACE_TRY(f()); });
              )cpp"),
              IsEmpty());
}

TEST(TryLint, RefusesTheBracesOfAnInitialiser) {
  EXPECT_THAT(misplaced("Device nic = {.name = \"nic0\",\n .bar = VMSPACE_TRY(f())};"),
              ElementsAre(2));
  EXPECT_THAT(misplaced("const Device nic{name, VMSPACE_TRY(f())};"), SizeIs(1));
  EXPECT_THAT(misplaced("return {VMSPACE_TRY(f()), 1};"), SizeIs(1));
  EXPECT_THAT(misplaced("int x{VMSPACE_TRY(f())};"), SizeIs(1));
  EXPECT_THAT(misplaced("VMSPACE_TRY(g({.name = n, .bar = VMSPACE_TRY(f())}));"), SizeIs(1));
  EXPECT_THAT(misplaced("VMSPACE_TRY(g(Device{name, h(VMSPACE_TRY(f()))}));"), SizeIs(1));
  EXPECT_THAT(misplaced("const Device x{name, VMSPACE_ASSERT_OK(f())};"), SizeIs(1));
}

TEST(TryLint, RefusesCapturesOfALambdaAndStaticVariables) {
  EXPECT_THAT(misplaced("auto f = [a, x = VMSPACE_TRY(g())] { return x; };"), SizeIs(1));
  EXPECT_THAT(misplaced("auto f = [x = VMSPACE_TRY(g()), a] { return x; };"), SizeIs(1));
  EXPECT_THAT(misplaced("{ static const int x = VMSPACE_TRY(g()); }"), SizeIs(1));
  EXPECT_THAT(misplaced("int y; thread_local int x = VMSPACE_TRY(g());"), SizeIs(1));
  EXPECT_THAT(misplaced("{ static int y; const int x = VMSPACE_TRY(g()); }"), IsEmpty());
}

TEST(TryLint, RefusesAPartOfAnExpression) {
  EXPECT_THAT(misplaced("const auto size = VMSPACE_TRY(f()).size();"), SizeIs(1));
  EXPECT_THAT(misplaced("const int sum = 1 + VMSPACE_TRY(f());"), SizeIs(1));
  EXPECT_THAT(misplaced("const int sum = VMSPACE_TRY(f()) + 1;"), SizeIs(1));
  EXPECT_THAT(misplaced("use(name, VMSPACE_TRY(f()));"), SizeIs(1));
  EXPECT_THAT(misplaced("int x(VMSPACE_TRY(f()));"), SizeIs(1));
  EXPECT_THAT(misplaced("const int x = c ? VMSPACE_TRY(f())\n : VMSPACE_TRY(g());"),
              ElementsAre(1, 2));
  EXPECT_THAT(misplaced("if (x == VMSPACE_TRY(f())) return;"), SizeIs(1));
  EXPECT_THAT(misplaced("X::X() : a(1), b(VMSPACE_TRY(f())) {}"), SizeIs(1));
  EXPECT_THAT(misplaced("for (auto& x : g(VMSPACE_TRY(f()))) {}"), SizeIs(1));
}

TEST(TryLint, LooksAtNeitherCommentsNorStringsNorDefinitions) {
  EXPECT_THAT(misplaced("// f(VMSPACE_TRY(g()))\n/* f(VMSPACE_TRY(g())) */"), IsEmpty());
  EXPECT_THAT(misplaced("puts(\"f(VMSPACE_TRY(g()) \\\" {\");"), IsEmpty());
  EXPECT_THAT(misplaced("puts(R\"(f(VMSPACE_TRY(g()))\")\");"), IsEmpty());
  EXPECT_THAT(misplaced("#define TWICE(x) \\\n  f(VMSPACE_TRY(x))\n"), IsEmpty());
  // What follows is found all the same, at its line.
  EXPECT_THAT(misplaced("#define A \\\n  1\nint a = 1'000 + '\\'';\nf(VMSPACE_TRY(g()));"),
              ElementsAre(4));
}

TEST(TryLint, ReadsTheCodeBlocksOfAPage) {
  EXPECT_THAT(misplaced(code_blocks("`f(VMSPACE_TRY(x))`\n```cpp\nf(VMSPACE_TRY(x));\n```\n"
                                    "```sh\nf(VMSPACE_TRY(x))\n```\n")),
              ElementsAre(3));
}

}  // namespace
}  // namespace vmspace::lint
