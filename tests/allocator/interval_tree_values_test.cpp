// SPDX-License-Identifier: Apache-2.0
//
// Values of every kind: without state, move-only, over-aligned, with a copy that throws; and that
// each is destroyed exactly once, wherever splits and merges have moved it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator/interval_tree.hpp"

namespace vmspace {
namespace {

struct NoState {
  friend bool operator==(NoState, NoState) { return true; }
};

// A value without state takes no place in a leaf; nor does it keep the others from their bounds.
static_assert(sizeof(detail::Leaf<NoState>) == sizeof(detail::Leaf<std::monostate>));
static_assert(sizeof(detail::Leaf<std::monostate>) <=
              32 + detail::node_capacity * 2 * sizeof(std::uint64_t));
static_assert(sizeof(detail::Leaf<std::uint64_t>) ==
              sizeof(detail::Leaf<NoState>) + detail::node_capacity * sizeof(std::uint64_t));

static_assert(!std::is_copy_constructible_v<IntervalTree<std::unique_ptr<int>>>);
static_assert(std::is_copy_constructible_v<IntervalTree<std::string>>);
static_assert(std::is_nothrow_move_constructible_v<IntervalTree<std::string>>);
static_assert(std::is_nothrow_swappable_v<IntervalTree<std::string>>);

/// Knows where it lives, and counts; moves by construction only; no default.
class Tracked {
 public:
  explicit Tracked(std::uint64_t id) : self_(this), id_(id) { ++alive; }
  Tracked(Tracked&& other) noexcept : self_(this), id_(other.id_) {
    EXPECT_EQ(other.self_, &other);
    ++alive;
  }
  Tracked& operator=(Tracked&&) = delete;
  ~Tracked() {
    EXPECT_EQ(self_, this);
    self_ = nullptr;
    --alive;
  }
  std::uint64_t id() const {
    EXPECT_EQ(self_, this);
    return id_;
  }
  inline static int alive = 0;

 private:
  Tracked* self_;
  std::uint64_t id_;
};

TEST(IntervalTreeValues, WithoutStateAreStillValues) {
  IntervalTree<NoState> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 9)));
  ASSERT_TRUE(tree.allocate_at(Range::of(0, 4)));
  EXPECT_EQ(tree.find_value(0), nullptr);
  EXPECT_FALSE(tree.update(Range::of(0, 4), NoState{})->has_value());
  EXPECT_NE(tree.find_value(0), nullptr);
  EXPECT_EQ(tree.find(0)->state, NodeState::valued);
  EXPECT_TRUE(tree.free(Range::of(0, 4))->has_value());
}

TEST(IntervalTreeValues, AreDestroyedOnceWhereverTheyMoved) {
  {
    IntervalTree<Tracked> tree;
    std::vector<std::uint64_t> order;
    constexpr std::uint64_t count = 3000;
    for (std::uint64_t i = 0; i < count; ++i)
      order.push_back(i * 7919 % count);
    for (const std::uint64_t i : order)
      ASSERT_TRUE(tree.insert(Range::point(3 * i), Tracked(i)));
    EXPECT_EQ(Tracked::alive, static_cast<int>(count));
    ASSERT_TRUE(tree.check_invariants());
    for (const auto& entry : tree)
      EXPECT_EQ(3 * entry.value->id(), entry.range.min());

    for (std::uint64_t n = 0; n < count; ++n) {
      const std::uint64_t i = order[n] * 13 % count;
      if (n % 3 == 0) continue;
      const auto value =
          n % 3 == 1 ? tree.erase(Range::point(3 * i)) : tree.free(Range::point(3 * i));
      ASSERT_TRUE(value && value->has_value());
      EXPECT_EQ((**value).id(), i);
    }
    EXPECT_EQ(Tracked::alive, static_cast<int>(count / 3));
    ASSERT_TRUE(tree.check_invariants());
    IntervalTree<Tracked> moved(std::move(tree));
    EXPECT_EQ(Tracked::alive, static_cast<int>(count / 3));
  }
  EXPECT_EQ(Tracked::alive, 0);
}

TEST(IntervalTreeValues, ThatOnlyMoveGoInAndComeBack) {
  IntervalTree<std::unique_ptr<int>> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99)));
  ASSERT_TRUE(tree.allocate({.size = 10}, std::make_unique<int>(1)));
  ASSERT_TRUE(tree.allocate_at(Range::of(50, 59), std::make_unique<int>(2)));
  EXPECT_EQ(*tree.update(Range::of(50, 59), std::make_unique<int>(3))->value(), 2);
  EXPECT_EQ(*tree.free(Range::of(0, 9))->value(), 1);
  EXPECT_EQ(**tree.find_value(55), 3);
}

TEST(IntervalTreeValues, StayWithTheCallerWhenTheCallFails) {
  IntervalTree<std::unique_ptr<int>> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 9)));
  auto value = std::make_unique<int>(1);
  EXPECT_FALSE(tree.insert(Range::of(9, 10), std::move(value)));
  EXPECT_FALSE(tree.allocate({.size = 11}, std::move(value)));
  EXPECT_FALSE(tree.allocate({.size = 0}, std::move(value)));
  EXPECT_FALSE(tree.allocate_at(Range::of(9, 10), std::move(value)));
  EXPECT_FALSE(tree.update(Range::of(0, 9), std::move(value)));
  EXPECT_FALSE(tree.update(Range::of(0, 8), std::move(value)));
  ASSERT_NE(value, nullptr);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(*value, 1);
}

TEST(IntervalTreeValues, AreAlignedAsTheirTypeAsks) {
  struct alignas(64) Line {
    std::uint64_t id;
  };
  IntervalTree<Line> tree;
  for (std::uint64_t i = 0; i < 200; ++i)
    ASSERT_TRUE(tree.insert(Range::point(i), Line{i}));
  for (std::uint64_t i = 0; i < 200; ++i) {
    const Line* const line = tree.find_value(i);
    ASSERT_NE(line, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(line) % 64, 0U);
    EXPECT_EQ(line->id, i);
  }
}

/// Throws at the n-th copy.
struct CopyThrows {
  explicit CopyThrows(int v) : value(std::make_unique<int>(v)) {}
  CopyThrows(const CopyThrows& other) : value(std::make_unique<int>(*other.value)) {
    if (copies_left-- == 0) throw std::runtime_error("copy");
  }
  CopyThrows(CopyThrows&&) noexcept = default;
  CopyThrows& operator=(const CopyThrows&) = delete;
  friend bool operator==(const CopyThrows& a, const CopyThrows& b) { return *a.value == *b.value; }

  std::unique_ptr<int> value;
  inline static int copies_left = -1;
};

TEST(IntervalTreeValues, WhoseCopyThrowsLeaveNothingBehind) {
  IntervalTree<CopyThrows> tree;
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(tree.insert(Range::point(static_cast<std::uint64_t>(2 * i)), CopyThrows(i)));
  }
  for (int n = 0; n < 200; ++n) {
    CopyThrows::copies_left = n;
    EXPECT_THROW(IntervalTree<CopyThrows>{tree}, std::runtime_error);  // the leak checker sees
    IntervalTree<CopyThrows> other;
    ASSERT_TRUE(other.insert(Range::of(0, 9)));
    CopyThrows::copies_left = n;
    EXPECT_THROW(other = tree, std::runtime_error);
    EXPECT_EQ(other.size(), 1U);
    EXPECT_TRUE(other.get(Range::of(0, 9)));
  }
  CopyThrows::copies_left = -1;
  EXPECT_EQ(IntervalTree<CopyThrows>(tree), tree);
}

TEST(IntervalTreeValues, WhoseCopyThrowsLeaveTheTreeAsItWas) {
  IntervalTree<CopyThrows> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99)));
  ASSERT_TRUE(tree.allocate_at(Range::of(0, 9), CopyThrows(1)));
  CopyThrows::copies_left = -1;
  const IntervalTree<CopyThrows> before(tree);
  const CopyThrows value(2);
  const auto throws = [&](auto call) {
    CopyThrows::copies_left = 0;
    EXPECT_THROW(static_cast<void>(call()), std::runtime_error);
    CopyThrows::copies_left = -1;
    EXPECT_EQ(tree, before);
  };
  throws([&] { return tree.insert(Range::of(200, 299), value); });
  throws([&] { return tree.allocate({.size = 10}, value); });
  throws([&] { return tree.allocate_at(Range::of(50, 59), value); });
  throws([&] { return tree.update(Range::of(0, 9), value); });
}

}  // namespace
}  // namespace vmspace
