// SPDX-License-Identifier: Apache-2.0

#include "vmspace/error.hpp"

#include <cerrno>

#include <gtest/gtest.h>

namespace vmspace {
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

TEST(Error, NumbersAreDecimalAndRangesReachTheEndOfTheDomain) {
  const Error error{.code = Errc::limit_exceeded,
                    .operation = "map",
                    .first = Operand::number(513),
                    .second = Operand::number(512)};
  EXPECT_EQ(error.message(), "map: limit exceeded: 513 above 512");
  EXPECT_EQ((Error{.code = Errc::no_space, .first = Operand::range(0, UINT64_MAX)}).message(),
            "no space for [0x0, 0xffffffffffffffff]");
}

TEST(Error, ConvertsToStandardErrorCodes) {
  const std::error_code code = Errc::no_space;
  EXPECT_STREQ(code.category().name(), "vmspace");
  EXPECT_EQ(code.message(), "no space");
  EXPECT_EQ((Error{.code = Errc::overlap}).error_code(), Errc::overlap);
  EXPECT_EQ((Error{.code = Errc::os, .os_errno = EIO}).error_code(), std::errc::io_error);
}

TEST(Error, EveryCodeHasItsOwnWords) {
  for (int value = 1; value <= static_cast<int>(Errc::os); ++value) {
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
}

}  // namespace
}  // namespace vmspace
