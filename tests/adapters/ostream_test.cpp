// SPDX-License-Identifier: Apache-2.0

#include "vmspace/ostream.hpp"

#include <iomanip>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace {

// Not in namespace vmspace, as a user is not.
struct Device {
  std::string name;
  friend std::ostream& operator<<(std::ostream& out, const Device& device) {
    return out << "device " << device.name;
  }
};
struct Silent {};

template <typename T>
std::string streamed(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

using vmspace::Errc;
using vmspace::GuestAddress;
using vmspace::IntervalTree;
using vmspace::Range;
using vmspace::Result;

TEST(Ostream, PrintsWhatToTextGives) {
  EXPECT_EQ(streamed(Range::of(0x100, 0x1ff)), "[0x100-0x1ff]");
  EXPECT_EQ(streamed(GuestAddress(0x1000)), "0x1000");
  EXPECT_EQ(streamed(Errc::no_space), "no_space");
  EXPECT_EQ(streamed(vmspace::Error{.code = Errc::corrupt}), "corrupt data");
  EXPECT_EQ(streamed(Result<Range>(Range::of(1, 2))), "[0x1-0x2]");
  EXPECT_EQ(streamed(Result<>(vmspace::fail({.code = Errc::corrupt}))), "error: corrupt data");
  EXPECT_EQ(streamed(vmspace::LittleEndian<std::uint32_t>(16)), "0x10");
}

TEST(Ostream, PadsTheWholeText) {
  std::ostringstream out;
  out << std::setw(12) << Range::of(1, 2) << "|" << std::left << std::setw(12) << Range::of(1, 2)
      << "|";
  EXPECT_EQ(out.str(), "   [0x1-0x2]|[0x1-0x2]   |");
}

TEST(Ostream, PrintsAUsersValuesByTheirOwnOperator) {
  EXPECT_EQ(streamed(Result<Device>(Device{"nic0"})), "device nic0");
  EXPECT_EQ(streamed(Result<Silent>(Silent{})), "ok");
  IntervalTree<Device> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 0xf), Device{"nic0"}));
  EXPECT_EQ(streamed(tree), "[0x0-0xf] device nic0");
  EXPECT_EQ(streamed(*tree.begin()), "[0x0-0xf] valued device nic0");
}

TEST(Ostream, SpeaksInMessagesOfGoogleTest) {
  using testing::PrintToString;
  EXPECT_EQ(PrintToString(Range::of(1, 2)), "[0x1-0x2]");
  EXPECT_EQ(PrintToString(std::optional(GuestAddress(16))), "(0x10)");
  EXPECT_EQ(PrintToString(std::vector{Range::of(1, 2), Range::of(3, 4)}),
            "{ [0x1-0x2], [0x3-0x4] }");
  EXPECT_EQ(PrintToString(Result<Range>(Range::of(1, 2))), "[0x1-0x2]");
  EXPECT_EQ(PrintToString(Result<int>(vmspace::fail({.code = Errc::corrupt}))),
            "error: corrupt data");
  EXPECT_EQ(PrintToString(vmspace::Protection::read), "r--");
  // To GoogleTest a tree is a container, whose elements it prints one by one.
  IntervalTree<std::string> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 0xf), "nic0"));
  ASSERT_TRUE(tree.insert(Range::of(0x10, 0x1f)));
  EXPECT_EQ(PrintToString(tree), "{ [0x0-0xf] valued nic0, [0x10-0x1f] free }");
}

}  // namespace
