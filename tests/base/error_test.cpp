// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/error.hpp"

#include <cerrno>

#include <gtest/gtest.h>

namespace vmspace::error_test {
namespace {

TEST(Error, MessageNamesTheOperationAndBothOperandsInHex) {
  const Error error{.code = Errc::overlap,
                    .operation = "insert",
                    .first = Operand::range(0x200, 0x2ff),
                    .second = Operand::range(0x100, 0x20f)};
  EXPECT_EQ(error.message(), "insert: [0x200, 0x2ff] overlaps [0x100, 0x20f]");
}

TEST(Error, MessageReadsWellWithOneOperandOrNone) {
  EXPECT_EQ((Error{.code = Errc::not_found, .operation = "free", .first = Operand::address(0x40)})
                .message(),
            "free: not found: 0x40");
  EXPECT_EQ((Error{.code = Errc::zero_size, .operation = "make", .second = Operand::address(0)})
                .message(),
            "make: size is zero at 0x0");
  EXPECT_EQ((Error{.code = Errc::overlap, .operation = "insert"}).message(), "insert: overlaps");
  EXPECT_EQ((Error{.code = Errc::corrupt}).message(), "corrupt data");
}

TEST(Error, MessageEndsWithReasonAndSystemError) {
  const Error error{.code = Errc::os,
                    .operation = "mmap",
                    .first = Operand::size(0x1000),
                    .reason = "reserving",
                    .os_errno = ENOMEM};
  EXPECT_EQ(error.message(), "mmap: failed: 0x1000 (reserving): Cannot allocate memory");
}

TEST(Error, MessageQuotesTheSubjectAndTheDetailThatTheReasonIntroduces) {
  Error error{.code = Errc::os,
              .operation = "map",
              .first = Operand::range(0, 0x3ffff),
              .reason = "opening the file",
              .os_errno = ENOENT,
              .text = {"ram0", "/srv/vm/ram"}};
  EXPECT_EQ(
      error.message(),
      "map: \"ram0\": failed: [0x0, 0x3ffff] (opening the file: \"/srv/vm/ram\"): No such file "
      "or directory");
  error = {.code = Errc::not_found, .operation = "place", .text = "bar\n0"};
  EXPECT_EQ(error.message(), "place: \"bar\\x0a0\": not found");
  error = {.code = Errc::not_found, .text = {{}, "/srv"}};
  EXPECT_EQ(error.message(), "not found (\"/srv\")");
}

TEST(Error, NumbersAreDecimalAndRangesReachTheEndOfTheDomain) {
  const Error error{.code = Errc::limit_exceeded,
                    .operation = "map",
                    .first = Operand::number(513),
                    .second = Operand::number(512)};
  EXPECT_EQ(error.message(), "map: limit exceeded: 513 exceeds 512");
  EXPECT_EQ((Error{.code = Errc::no_space, .first = Operand::range(0, UINT64_MAX)}).message(),
            "no space for [0x0, 0xffffffffffffffff]");
}

TEST(Error, MessageWithoutASubjectIsAPhraseThatNothingIsMissingFrom) {
  EXPECT_EQ((Error{.code = Errc::not_found, .second = Operand::address(0x40)}).message(),
            "not found in 0x40");
  EXPECT_EQ((Error{.code = Errc::no_space, .second = Operand::range(0, 9)}).message(),
            "no space in [0x0, 0x9]");
}

TEST(Error, MessageNamesWhatIsAvailableInstead) {
  EXPECT_EQ((Error{.code = Errc::no_space,
                   .operation = "allocate",
                   .first = Operand::size(0x4000),
                   .second = Operand::range(0, 0xffff),
                   .available = Operand::range(0x1000, 0x2fff),
                   .reason = "why"})
                .message(),
            "allocate: no space for 0x4000 in [0x0, 0xffff]; the largest free piece is "
            "[0x1000, 0x2fff] (why)");
  EXPECT_EQ((Error{.code = Errc::limit_exceeded,
                   .first = Operand::number(9),
                   .available = Operand::number(8)})
                .message(),
            "limit exceeded: 9; available is 8");
}

/// Whoever reads `[0x200, 0x1ff]` takes it for a range.
TEST(Error, InvertedBoundsAreNotPrintedAsARange) {
  EXPECT_EQ((Error{.code = Errc::invalid_range, .first = Operand::range(2, 1)}).message(),
            "invalid range: min 0x2 above max 0x1");
  EXPECT_EQ((Error{.code = Errc::misaligned, .first = Operand::range(1, 1)}).message(),
            "misaligned: [0x1, 0x1]");
}

TEST(Error, ASpanThatIsNoRangeIsPrintedAsBaseAndSize) {
  EXPECT_EQ((Error{.code = Errc::zero_size, .first = Operand::span(0x1000, 0)}).message(),
            "size is zero: 0x1000 + 0x0");
  EXPECT_EQ((Error{.code = Errc::zero_size, .first = Operand::span(0, 0)}).message(),
            "size is zero: 0x0 + 0x0");
  EXPECT_EQ((Error{.code = Errc::overflow, .first = Operand::span(UINT64_MAX, 2)}).message(),
            "overflow: 0xffffffffffffffff + 0x2");
  EXPECT_EQ(Operand::span(UINT64_MAX - 1, 2), Operand::range(UINT64_MAX - 1, UINT64_MAX));
  EXPECT_EQ(Operand::span(1, UINT64_MAX), Operand::range(1, UINT64_MAX));
  EXPECT_NE(Operand::span(0x1000, 0), Operand::span(0x1000, 1));
}

TEST(Error, ConvertsToStandardErrorCodes) {
  const std::error_code code = Errc::no_space;
  EXPECT_STREQ(code.category().name(), "vmspace");
  EXPECT_EQ(code.message(), "no space");
  EXPECT_EQ((Error{.code = Errc::overlap}).error_code(), Errc::overlap);
  EXPECT_EQ((Error{.code = Errc::os, .os_errno = EIO}).error_code(), std::errc::io_error);
}

TEST(Error, EveryCodeHasItsOwnWords) {
  for (int value = 1; value <= static_cast<int>(Errc::fault); ++value) {
    const std::error_code code = static_cast<Errc>(value);
    EXPECT_NE(code.message(), "unknown error") << value;
    EXPECT_FALSE(code.message().empty()) << value;
  }
}

TEST(Error, InReplacesTheOperationAndNothingElse) {
  constexpr Error inner{.code = Errc::os,
                        .operation = "Backing::open",
                        .first = Operand::size(0x1000),
                        .second = Operand::number(7),
                        .reason = "reserving",
                        .os_errno = ENOMEM};
  constexpr Error outer = inner.in("MemoryRegion::map");
  EXPECT_STREQ(inner.operation, "Backing::open");
  EXPECT_EQ(outer, (Error{.code = Errc::os,
                          .operation = "MemoryRegion::map",
                          .first = Operand::size(0x1000),
                          .second = Operand::number(7),
                          .reason = "reserving",
                          .os_errno = ENOMEM}));
}

TEST(Error, EqualityComparesTextsByContent) {
  const std::string copy = "insert";
  EXPECT_EQ((Error{.code = Errc::overlap, .operation = copy.c_str()}),
            (Error{.code = Errc::overlap, .operation = "insert"}));
  EXPECT_NE((Error{.code = Errc::overlap}), (Error{.code = Errc::overlap, .reason = "why"}));
  EXPECT_NE((Error{.code = Errc::overlap}), (Error{.code = Errc::overlap, .text = "ram"}));
  EXPECT_NE((Error{.code = Errc::no_space}),
            (Error{.code = Errc::no_space, .available = Operand::size(1)}));
}

}  // namespace
}  // namespace vmspace::error_test
