// SPDX-License-Identifier: Apache-2.0
//
// fmt.hpp and format.hpp; fmt/ranges.h comes first, which would print trees as lists, and fmt/std.h,
// which prints variants.

#include <string>
#include <version>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fmt/std.h>
#include <gtest/gtest.h>

#include "vmspace/fmt.hpp"
#include "vmspace/format.hpp"

namespace {

using vmspace::Errc;
using vmspace::IntervalTree;
using vmspace::Range;
using vmspace::Result;

struct Device {
  std::string name;
};

}  // namespace

template <>
struct fmt::formatter<Device> : fmt::formatter<std::string> {
  auto format(const Device& device, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format("device " + device.name, context);
  }
};

#ifdef __cpp_lib_format
template <>
struct std::formatter<Device> : std::formatter<std::string> {
  auto format(const Device& device, std::format_context& context) const {
    return std::formatter<std::string>::format("device " + device.name, context);
  }
};
#endif

namespace {

TEST(Fmt, PrintsWhatToTextGives) {
  EXPECT_EQ(fmt::format("{} {}", Errc::no_space, vmspace::GuestAddress(16)), "no_space 0x10");
  EXPECT_EQ(fmt::format("{} {}", Result<Range>(Range::of(1, 2)),
                        Result<>(vmspace::fail({.code = Errc::corrupt}))),
            "[0x1-0x2] error: corrupt data");
  EXPECT_EQ(fmt::format("{:>12}|{:*<12}|", Range::of(1, 2), Range::of(1, 2)),
            "   [0x1-0x2]|[0x1-0x2]***|");
}

TEST(Fmt, ATreeIsOneLineAndAUsersValueIsFormatted) {
  IntervalTree<Device> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 0xf), Device{"nic0"}));
  ASSERT_TRUE(tree.insert(Range::of(0x10, 0x1f)));
  EXPECT_EQ(fmt::format("{}", tree), "[0x0-0xf] device nic0 | free 0x10");
  EXPECT_EQ(fmt::format("{}", *tree.begin()), "[0x0-0xf] valued device nic0");
  EXPECT_EQ(fmt::format("{}", Result<Device>(Device{"nic0"})), "device nic0");
  EXPECT_EQ(fmt::format("{}", std::vector{Range::of(1, 2), Range::of(3, 4)}),
            "[[0x1-0x2], [0x3-0x4]]");
}

TEST(Fmt, ARequestIsAVariantToIt) {
  EXPECT_EQ(fmt::format("{}", vmspace::ResourceRequest(vmspace::LegacyIrq{.fixed = 5})),
            "variant(legacy_irq at 5)");
}

TEST(StdFormat, PrintsTheSame) {
#ifdef __cpp_lib_format
  EXPECT_EQ(std::format("{} {:>12}|", Errc::no_space, Range::of(1, 2)), "no_space    [0x1-0x2]|");
  EXPECT_EQ(std::format("{}", Result<>(vmspace::fail({.code = Errc::corrupt}))),
            "error: corrupt data");
  IntervalTree<Device> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 0xf), Device{"nic0"}));
  EXPECT_EQ(std::format("{}", tree), "[0x0-0xf] device nic0");
#else
  // libstdc++ has it since version 13; format.hpp is empty without it.
  GTEST_SKIP() << "this standard library has no <format>";
#endif
}

}  // namespace
