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

namespace vmspace::interval_tree_values_test {
namespace {

struct NoState {};

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

// -- arguments that lie inside the tree ----------------------------------------------------------

/// `n` values above 1000, each made of its number, with free ranges below and above: what is put in
/// below moves them all, up to n = 32 inside one leaf, and now and then into another.
template <typename T, typename Make>
IntervalTree<T> values_above(std::uint64_t n, Make make) {
  IntervalTree<T> tree;
  EXPECT_TRUE(tree.insert(Range::of(500, 999)));
  for (std::uint64_t i = 0; i < n; ++i)
    EXPECT_TRUE(tree.insert(Range::point(1000 + i), make(i)));
  return tree;
}

TEST(IntervalTreeValues, MayHoldTheRangeThatACallIsMadeWith) {
  using Tree = IntervalTree<Range>;
  const auto free_at_500 = [](std::uint64_t i) { return Range::point(500 + 2 * i); };
  const auto none_at_0 = [](std::uint64_t i) { return Range::point(2 * i); };
  const auto itself = [](std::uint64_t i) { return Range::point(1000 + i); };
  const Range value = Range::point(7);
  for (std::uint64_t n = 1; n < 70; ++n) {
    for (const std::uint64_t i : {std::uint64_t{0}, n / 2, n - 1}) {
      const auto check = [&](const auto& wanted, auto call) {
        Tree tree = values_above<Range>(n, wanted);
        ASSERT_TRUE(call(tree, *tree.find_value(1000 + i)));
        ASSERT_TRUE(tree.check_invariants()) << n << " " << i;
        EXPECT_TRUE(tree.get(wanted(i))) << n << " " << i;
      };
      check(none_at_0, [](Tree& t, const Range& r) { return t.insert(r); });
      check(none_at_0, [&](Tree& t, const Range& r) { return t.insert(r, value); });
      check(none_at_0, [](Tree& t, const Range& r) { return t.insert(r, Range::point(7)); });
      check(free_at_500, [](Tree& t, const Range& r) {
        const Range wanted = r;
        return t.allocate_at(r) == wanted;
      });
      check(free_at_500, [](Tree& t, const Range& r) {
        const Range wanted = r;
        return t.allocate_at(r, Range::point(7)) == wanted;
      });
      check(itself, [](Tree& t, const Range& r) { return t.update(r, Range::point(7)); });

      Tree tree = values_above<Range>(n, itself);
      ASSERT_TRUE(tree.free(*tree.find_value(1000 + i)));
      ASSERT_TRUE(tree.check_invariants());
      EXPECT_EQ(tree.find(1000 + i)->state, NodeState::free);
      tree = values_above<Range>(n, itself);
      ASSERT_TRUE(tree.erase(*tree.find_value(1000 + i)));
      EXPECT_FALSE(tree.find(1000 + i));
    }
  }
}

TEST(IntervalTreeValues, MayHoldTheConstraintThatACallIsMadeWith) {
  for (std::uint64_t n = 1; n < 70; ++n) {
    auto tree = values_above<Constraint>(
        n, [](std::uint64_t i) { return Constraint{.size = 2, .min = 501 + 4 * i}; });
    const Constraint& inside = *tree.find_value(1000);
    EXPECT_EQ(tree.allocate(inside, *tree.find_value(1000)), Range::of(501, 502));
    EXPECT_TRUE(tree.check_invariants());
    EXPECT_EQ(*tree.find_value(501), (Constraint{.size = 2, .min = 501}));
  }
}

TEST(IntervalTreeValues, MoveFromOneRangeToAnother) {
  using Tree = IntervalTree<std::unique_ptr<std::uint64_t>>;
  const auto make = [](std::uint64_t i) { return std::make_unique<std::uint64_t>(i); };
  const auto move_to = [&](std::uint64_t n, std::uint64_t i, std::uint64_t place, auto call) {
    Tree tree = values_above<std::unique_ptr<std::uint64_t>>(n, make);
    ASSERT_TRUE(call(tree, std::move(*tree.find_value(1000 + i)))) << n << " " << i;
    ASSERT_TRUE(tree.check_invariants());
    ASSERT_NE(tree.find_value(place), nullptr);
    ASSERT_NE(*tree.find_value(place), nullptr) << n << " " << i;
    EXPECT_EQ(**tree.find_value(place), i) << n << " " << i;
    for (std::uint64_t other = 0; other < n; ++other)
      EXPECT_EQ(*tree.find_value(1000 + other) == nullptr, other == i);
  };
  using Value = std::unique_ptr<std::uint64_t>;
  for (std::uint64_t n = 1; n < 70; ++n) {
    for (const std::uint64_t i : {std::uint64_t{0}, n / 2, n - 1}) {
      move_to(n, i, 3, [](Tree& t, Value&& v) { return t.insert(Range::point(3), std::move(v)); });
      move_to(n, i, 600,
              [](Tree& t, Value&& v) { return t.allocate_at(Range::point(600), std::move(v)); });
      move_to(n, i, 500, [](Tree& t, Value&& v) { return t.allocate({.size = 1}, std::move(v)); });
    }
  }
}

TEST(IntervalTreeValues, AreCopiedFromOneRangeToAnother) {
  const auto make = [](std::uint64_t i) { return std::string(40, static_cast<char>('A' + i)); };
  for (std::uint64_t n = 1; n < 50; ++n) {
    auto tree = values_above<std::string>(n, make);
    const std::string& last = *tree.find_value(999 + n);
    ASSERT_TRUE(tree.insert(Range::point(3), last));
    ASSERT_TRUE(tree.allocate_at(Range::point(600), std::as_const(*tree.find_value(999 + n))));
    ASSERT_TRUE(tree.allocate({.size = 1}, std::as_const(*tree.find_value(999 + n))));
    for (const std::uint64_t place : {std::uint64_t{3}, std::uint64_t{600}, std::uint64_t{500}})
      EXPECT_EQ(*tree.find_value(place), make(n - 1)) << n;
  }
}

TEST(IntervalTreeValues, UpdatedWithThemselvesStay) {
  IntervalTree<std::unique_ptr<int>> tree;
  ASSERT_TRUE(tree.insert(Range::point(0), std::make_unique<int>(7)));
  ASSERT_TRUE(tree.insert(Range::point(1), std::make_unique<int>(8)));
  const auto before = tree.update(Range::point(0), std::move(*tree.find_value(0)));
  ASSERT_TRUE(before && before->has_value());
  EXPECT_EQ(**before, nullptr);  // what was there when the value had been moved away
  ASSERT_NE(*tree.find_value(0), nullptr);
  EXPECT_EQ(**tree.find_value(0), 7);

  const auto other = tree.update(Range::point(0), std::move(*tree.find_value(1)));
  ASSERT_TRUE(other && other->has_value());
  EXPECT_EQ(***other, 7);
  EXPECT_EQ(**tree.find_value(0), 8);
  EXPECT_EQ(*tree.find_value(1), nullptr);
}

TEST(IntervalTreeValues, MayOwnTheTreeThatReplacesTheirs) {
  struct Branch {
    std::unique_ptr<IntervalTree<Branch>> tree;
  };
  IntervalTree<Branch> tree;
  ASSERT_TRUE(tree.insert(Range::point(1), {std::make_unique<IntervalTree<Branch>>()}));
  ASSERT_TRUE(tree.find_value(1)->tree->insert(Range::point(2), Branch{}));
  tree = std::move(*tree.find_value(1)->tree);
  EXPECT_EQ(tree.size(), 1U);
  EXPECT_TRUE(tree.find(2));
}

}  // namespace

// -- values with operators of their own ----------------------------------------------------------

namespace own_operators {

struct Value {
  int number = 0;
  Value* operator&() = delete;
  const Value* operator&() const = delete;
  friend bool operator==(const Value& a, const Value& b) { return a.number == b.number; }
};

/// Found by argument-dependent look-up for whatever is made with a Value: trees, leaves, iterators.
template <typename X>
void operator&(X&&) = delete;
template <typename X, typename Y>
void operator,(X&&, Y&&) = delete;
template <typename... X>
void range_of(X&&...) = delete;
template <typename... X>
void state_of(X&&...) = delete;
template <typename... X>
void overlapping(X&&...) = delete;

}  // namespace own_operators

namespace {

TEST(IntervalTreeValues, MayHaveOperatorsAndFunctionsOfTheirOwn) {
  using own_operators::Value;
  IntervalTree<Value> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99)));
  for (std::uint64_t i = 0; i < 40; ++i)
    ASSERT_TRUE(tree.insert(Range::point(200 + i), Value{1}));
  const Value two{2};
  ASSERT_TRUE(tree.insert(Range::point(300), two));
  ASSERT_TRUE(tree.allocate({.size = 10}, two));
  ASSERT_TRUE(tree.allocate_at(Range::of(50, 59), Value{3}));
  ASSERT_TRUE(tree.update(Range::of(50, 59), two));
  IntervalTree<Value> copy(tree);
  EXPECT_TRUE(copy == tree);
  copy = tree;
  copy = std::move(tree);
  EXPECT_TRUE(copy.check_invariants());
  EXPECT_EQ(copy.find_value(55)->number, 2);
  EXPECT_EQ(copy.begin()->value->number, 2);
  EXPECT_EQ(copy.free_ranges().begin()->min(), 10U);
  EXPECT_FALSE(copy.overlapping(Range::whole_domain()).empty());
  ASSERT_TRUE(copy.free(Range::of(50, 59)));
  ASSERT_TRUE(copy.erase(Range::point(300)));
  EXPECT_EQ(copy.stats().valued_ranges, 41U);
  EXPECT_FALSE(copy.free(Range::of(50, 59)));
  EXPECT_FALSE(copy.allocate({.size = 1000}));
}

TEST(IntervalTreeValues, CanBeReachedWithoutALookUpWhenTheyAreStored) {
  IntervalTree<std::string> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99)));
  const Result<std::string*> inserted = tree.insert(Range::of(100, 109), "inserted");
  ASSERT_TRUE(inserted);
  EXPECT_EQ(*inserted, tree.find_value(100));
  **inserted += " and changed";
  EXPECT_EQ(*tree.find_value(109), "inserted and changed");

  const auto bar = tree.allocate({.size = 10, .min = 20}, "bar");
  ASSERT_TRUE(bar);
  EXPECT_EQ(&bar->value(), tree.find_value(20));
  bar->value() = "changed";
  EXPECT_EQ(*tree.find_value(29), "changed");

  const std::string name = "a name to be copied";
  const auto at = tree.allocate_at(Range::of(50, 59), name);
  ASSERT_TRUE(at);
  EXPECT_EQ(&at->value(), tree.find_value(50));
  EXPECT_EQ(at->value(), name);
}

TEST(IntervalTreeValues, CanBeReachedWhereverASplitPutsThem) {
  IntervalTree<std::uint64_t> tree;
  ASSERT_TRUE(tree.insert(Range::of(10'000, 99'999)));
  for (std::uint64_t i = 0; i < 3000; ++i) {
    const auto inserted = tree.insert(Range::point(i * 7919 % 3000), i);
    ASSERT_TRUE(inserted);
    ASSERT_EQ(*inserted, tree.find_value(i * 7919 % 3000));
    ASSERT_EQ(**inserted, i);
    const auto allocated = tree.allocate({.size = 1, .align = 4}, i);
    ASSERT_TRUE(allocated);
    ASSERT_EQ(&allocated->value(), tree.find_value(allocated->min()));
    ASSERT_EQ(allocated->value(), i);
  }
}

/// What an allocation gives is a Range wherever one is used.
TEST(IntervalTreeValues, AValuedRangeIsARange) {
  IntervalTree<int> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99)));
  const auto bar = tree.allocate({.size = 10}, 7);
  ASSERT_TRUE(bar);
  EXPECT_EQ(bar->min(), 0U);
  EXPECT_EQ(*bar, Range::of(0, 9));
  EXPECT_EQ(bar, Range::of(0, 9));
  EXPECT_TRUE(bar->contains(9));
  const Range range = *bar;
  const auto as_range = [&tree]() -> Result<Range> {
    return VMSPACE_TRY(tree.allocate_at(Range::of(20, 29), 8));
  };
  EXPECT_EQ(as_range(), Range::of(20, 29));
  const auto [min, max] = *bar;
  EXPECT_EQ(min, 0U);
  EXPECT_EQ(max, 9U);
  EXPECT_EQ(range, *bar);
  EXPECT_EQ(tree.free(*bar), 7);
}

}  // namespace
}  // namespace vmspace::interval_tree_values_test
