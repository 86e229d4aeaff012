// SPDX-License-Identifier: Apache-2.0
//
// How gdb prints a program's objects with the pretty-printers of cmake/gdb.

#include <array>
#include <cstdio>
#include <initializer_list>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::StartsWith;

std::string output_of(const std::string& command) {
  std::string output;
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return output;
  std::array<char, 4096> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe))
    output.append(buffer.data(), got);
  pclose(pipe);
  return output;
}

class Gdb : public testing::Test {
 protected:
  void SetUp() override {
    if (output_of("gdb --version 2>&1").find("GNU gdb") == std::string::npos) {
      // A build needs no debugger: the bootstrap script installs one, a user may have none.
      GTEST_SKIP() << "gdb is not installed";
    }
    if (output_of("gdb -nx -batch -ex 'python print(6 * 7)' 2>&1").find("42") ==
        std::string::npos) {
      // The printers are Python, which gdb can be built without (gdb-minimal).
      GTEST_SKIP() << "this gdb was built without Python";
    }
    if (printed("print 6 * 7").find("= 42") == std::string::npos) {
      // Containers may forbid ptrace(2).
      GTEST_SKIP() << "gdb can't run programs here: " << printed("info program");
    }
  }

  // What gdb says to a command where the program has made its objects; all of it, which includes
  // what it says of the breakpoint.
  static std::string printed(const std::string& command) {
    return output_of(
        "env -u DEBUGINFOD_URLS gdb -nx -batch -ex 'set width 0' -ex 'source " GDB_PRINTERS
        "' -ex 'break look_here' -ex run -ex up -ex '" +
        command + "' " GDB_SUBJECT " 2>&1");
  }

  // An object as `print` shows it, without `$1 = `.
  static std::string value_of(const std::string& expression) {
    const std::string output = printed("print " + expression);
    const std::size_t begin = output.find("$1 = ");
    if (begin == std::string::npos) return output;
    return output.substr(begin + 5, output.find('\n', begin) - begin - 5);
  }
};

TEST_F(Gdb, PrintsValues) {
  EXPECT_EQ(value_of("range"), "[0xc0000000-0xc0003fff]");
  EXPECT_EQ(value_of("address"), "0xfee00000");
  EXPECT_EQ(value_of("code"), "no_space");
}

TEST_F(Gdb, PrintsErrorsAsLinesThatReadLikeTheirMessages) {
  EXPECT_EQ(value_of("error"), "insert: overlap: [0x200, 0x2ff], [0x100, 0x20f]");
  EXPECT_EQ(value_of("os_error"), "mmap: os: 0x1000 (reserving): Cannot allocate memory");
}

TEST_F(Gdb, PrintsWhatAResultHolds) {
  EXPECT_EQ(value_of("value"), "[0xc0000000-0xc0003fff]");
  EXPECT_EQ(value_of("valued"), "[0x1000-0x100f]");
  EXPECT_EQ(value_of("failed"), "insert: overlap: [0x200, 0x2ff], [0x100, 0x20f]");
  EXPECT_EQ(value_of("done"), "ok");
  EXPECT_EQ(value_of("undone"), "mmap: os: 0x1000 (reserving): Cannot allocate memory");
}

TEST_F(Gdb, PrintsATreeAsAMap) {
  EXPECT_THAT(value_of("tree"),
              MatchesRegex("IntervalTree of 4 = \\{\\[0xc0000000-0xc0003fff\\] = 0x[0-9a-f]+ "
                           "\"nic0\", \\[0xc0004000-0xc0004fff\\] = allocated, "
                           "\\[0xc0005000-0xffffefff\\] = free, "
                           "\\[0xfffff000-0xffffffff\\] = 0x[0-9a-f]+ \"rom\"\\}"));
  EXPECT_EQ(value_of("stateless"), "IntervalTree of 2 = {[0x0-0x0] = valued, [0x1-0x9] = free}");
  EXPECT_EQ(value_of("empty"), "IntervalTree of 0");
}

TEST_F(Gdb, WalksFromLeafToLeaf) {
  EXPECT_THAT(value_of("-elements 1000 -- large"),
              AllOf(StartsWith("IntervalTree of 100 = {[0x0-0x0] = 0, [0x2-0x2] = 1, "),
                    HasSubstr("[0x80-0x80] = 64, "), HasSubstr(", [0xc6-0xc6] = 99}")));
}

}  // namespace
