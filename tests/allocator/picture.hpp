// SPDX-License-Identifier: Apache-2.0
//
// Trees as pictures, one character a member: `.` free, `x` allocated, a letter a value, a space
// what is not in the tree; `|` between two free ranges that touch. "xx..A |" starts at address 0,
// or where the test says.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "vmspace/allocator.hpp"

namespace vmspace::test {

using Letters = IntervalTree<char>;

/// Each run of one character becomes one range, but letters and `x` are ranges of one by one.
inline Letters from_picture(std::string_view picture, std::uint64_t base = 0) {
  Letters tree;
  std::uint64_t at = base;
  for (std::size_t i = 0; i < picture.size();) {
    const char c = picture[i];
    if (c == '|') {
      ++i;
      continue;
    }
    std::size_t run = 1;
    while ((c == '.' || c == ' ') && i + run < picture.size() && picture[i + run] == c)
      ++run;
    const Range range = *Range::from_base_size(at, run);
    if (c == '.') {
      EXPECT_TRUE(tree.insert(range));
    } else if (c == 'x') {
      EXPECT_TRUE(tree.insert(range));
      EXPECT_TRUE(tree.allocate_at(range));
    } else if (c != ' ') {
      EXPECT_TRUE(tree.insert(range, c));
    }
    at += run;
    i += run;
  }
  return tree;
}

inline std::string to_picture(const Letters& tree, std::uint64_t base = 0) {
  std::string picture;
  std::uint64_t at = base;
  bool after_free = false;
  for (const auto& entry : tree) {
    picture.append(entry.range.min() - at, ' ');
    after_free = after_free && entry.range.min() == at;
    const bool free = entry.state == NodeState::free;
    if (free && after_free) picture += '|';
    picture.append(entry.range.max() - entry.range.min() + 1, free ? '.'
                                                              : entry.value == nullptr
                                                                  ? 'x'
                                                                  : *entry.value);
    at = entry.range.max() + 1;
    after_free = free;
  }
  return picture;
}

}  // namespace vmspace::test
