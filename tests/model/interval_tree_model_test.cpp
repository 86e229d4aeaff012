// SPDX-License-Identifier: Apache-2.0
//
// The tree against oracles, over random lists of calls that RapidCheck shrinks when they differ.

#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include <boost/icl/interval_set.hpp>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "model/interval_tree_oracle.hpp"
#include "model/interval_tree_side_by_side.hpp"

namespace vmspace::test::interval_tree_model_test {
namespace {

rc::Gen<Step> any_step(rc::Gen<std::uint8_t> kind) {
  return rc::gen::build<Step>(rc::gen::set(&Step::kind, std::move(kind)),
                              rc::gen::set(&Step::shape, rc::gen::arbitrary<std::uint8_t>()),
                              rc::gen::set(&Step::a, rc::gen::arbitrary<std::uint16_t>()),
                              rc::gen::set(&Step::b, rc::gen::arbitrary<std::uint16_t>()));
}

void run(SideBySide& both, const std::vector<Step>& steps) {
  for (const Step& step : steps) {
    if (const auto difference = both.apply(step)) {
      RC_LOG() << "after " << step << ": " << *difference << "\n";
      RC_FAIL();
    }
  }
}

/// All kinds of calls, 200 in a list, on a tree that begins empty.
void any_calls(std::uint64_t origin) {
  const auto steps =
      *rc::gen::container<std::vector<Step>>(200, any_step(rc::gen::arbitrary<std::uint8_t>()));
  SideBySide both(origin);
  run(both, steps);
}

RC_GTEST_PROP(IntervalTreeModel, AgreesWithASortedVectorFromZeroOn, ()) {
  any_calls(0);
}

RC_GTEST_PROP(IntervalTreeModel, AgreesWithASortedVectorUpToTheEndOfTheDomain, ()) {
  any_calls(UINT64_MAX - UINT16_MAX);
}

RC_GTEST_PROP(IntervalTreeModel, AgreesWithASortedVectorAcrossTheMiddle, ()) {
  any_calls((std::uint64_t{1} << 63) - 1000);
}

/// A call of a kind from `first` to `last`.
Step any_step(std::uint64_t bits, unsigned first, unsigned last) {
  return {.kind = static_cast<std::uint8_t>(first + bits % (last - first + 1)),
          .shape = static_cast<std::uint8_t>(bits >> 8),
          .a = static_cast<std::uint16_t>(bits >> 16),
          .b = static_cast<std::uint16_t>(bits >> 32)};
}

/// Trees of several levels: hundreds of ranges are put in, used, and taken out again, so that nodes
/// split and merge on every level. Lists of this length would take long to shrink: the seed is
/// fixed.
void grow_and_shrink(std::uint64_t origin, unsigned seed) {
  std::mt19937_64 random(seed);
  const auto next = [&random](unsigned first, unsigned last) {
    return any_step(random(), first, last);
  };
  SideBySide both(origin);
  const auto apply = [&both](const Step& step) {
    const auto difference = both.apply(step);
    ASSERT_FALSE(difference) << "after " << step << ": " << *difference;
  };
  for (unsigned i = 0; i < 750; ++i) {
    apply({.kind = static_cast<std::uint8_t>(i % 2),
           .a = static_cast<std::uint16_t>(i * 7919 % 1000 * 65),
           .b = 63});
  }
  for (int i = 0; i < 1000; ++i)
    apply(next(2, 12));
  for (int i = 0; i < 1000; ++i)
    apply(next(16, 18));
  for (int i = 0; i < 10'000 && both.tree().size() > 20; ++i)
    apply(next(10, 13));
  EXPECT_LE(both.tree().size(), 20U);
}

TEST(IntervalTreeModel, AgreesWhileATreeOfSeveralLevelsGrowsAndShrinks) {
  grow_and_shrink(0, 1);
  grow_and_shrink(UINT64_MAX - UINT16_MAX, 2);
}

/// The same request many times in a row, as a program that fills a space makes it, with now and then a
/// call of any other kind in between: what is freed below must be found again at once.
void ask_again_and_again(std::uint64_t origin, unsigned seed) {
  std::mt19937_64 random(seed);
  const auto any = [&random](unsigned first, unsigned last) {
    return any_step(random(), first, last);
  };
  SideBySide both(origin);
  const auto apply = [&both](const Step& step) {
    const auto difference = both.apply(step);
    ASSERT_FALSE(difference) << "after " << step << ": " << *difference;
  };
  apply({.kind = 0, .shape = 31, .a = 0});  // the whole domain is free
  for (int i = 0; i < 250; ++i) {
    Step again = any(2, 6);
    if (i % 4 != 0) again.shape = static_cast<std::uint8_t>(again.shape / 4 * 4);  // first_match
    for (std::uint64_t left = random() % 40; left != 0; --left) {
      apply(again);
      if (random() % 8 == 0) apply(any(0, 19));
    }
    while (both.tree().size() > 300)
      apply(any(10, 13));
  }
}

TEST(IntervalTreeModel, AgreesWhileTheSameIsAskedForAgainAndAgain) {
  ask_again_and_again(0x1000, 1);
  ask_again_and_again(std::uint64_t{1} << 63, 2);
}

/// Odd sizes and alignments in rotation, more than a tree can learn, over gaps that are long enough or
/// aligned well enough, but hardly ever both: each policy, in windows and without, while gaps come and
/// go. What is learned on the way must change no answer, and be exact.
TEST(IntervalTreeModel, AgreesOnOddSizesAtMoreAlignmentsThanATreeLearns) {
  std::mt19937_64 random(3);
  const auto below = [&random](std::uint64_t bound) { return random() % bound; };
  IntervalTree<int> tree;
  Oracle oracle;
  constexpr std::uint64_t gaps = 500;
  for (std::uint64_t i = 0; i < gaps; ++i) {
    // Short and aligned, or long and misaligned.
    const std::uint64_t low = i * 1024 + (i % 3 == 0 ? 0 : 1);
    const Range gap = *Range::make(low, low + (i % 3 == 0 ? i % 4 : 1 + below(300)));
    ASSERT_TRUE(tree.insert(gap));
    ASSERT_TRUE(oracle.insert(gap, std::nullopt));
  }
  std::vector<Range> taken;
  for (int i = 0; i < 6000; ++i) {
    const bool rotates = i / 1000 % 2 == 0;  // or one alignment at a time
    Constraint constraint{.size = 1 + 2 * below(150),
                          .align = std::uint64_t{2} << (rotates ? i % 8 : i / 250 % 8),
                          .policy = static_cast<AllocPolicy>(below(3))};
    if (below(4) == 0) constraint.min = below(gaps * 1024);
    if (below(4) == 0) constraint.max = constraint.min + below(100 * 1024);
    const auto place = std::as_const(tree).find_place(constraint);
    const auto chosen = i % 2 == 0 ? tree.choose_place(constraint) : place;  // or allocate() learns
    const auto got = tree.allocate(constraint);
    const auto expected = oracle.allocate(constraint, std::nullopt);
    ASSERT_EQ(got.has_value(), expected.has_value()) << i;
    ASSERT_EQ(place.has_value(), expected.has_value()) << i;
    ASSERT_EQ(chosen.has_value(), expected.has_value()) << i;
    if (got) {
      ASSERT_EQ(*got, *expected) << i;
      ASSERT_EQ(*place, *expected) << i;
      ASSERT_EQ(*chosen, *expected) << i;
      taken.push_back(*got);
    } else {
      ASSERT_EQ(got.error().available, expected.error().available) << i;
    }
    if (!taken.empty() && below(2) == 0) {
      std::swap(taken[below(taken.size())], taken.back());
      ASSERT_TRUE(tree.free(taken.back()));
      ASSERT_TRUE(oracle.free(taken.back()));
      taken.pop_back();
    }
    const auto sound = tree.check_invariants();
    ASSERT_TRUE(sound) << i << " " << sound.error().message();
    if (i % 1000 == 999) {
      IntervalTree<int> copy(tree);
      ASSERT_TRUE(copy.check_invariants());
      swap(copy, tree);
    }
  }
}

using Set = boost::icl::interval_set<std::uint64_t>;
using Interval = boost::icl::discrete_interval<std::uint64_t>;

Interval to_icl(const Range& range) {
  return Interval::closed(range.min(), range.max());
}

/// What is free and what is taken, as sets, whoever split or merged it. ICL's arithmetic wraps at
/// 2^64-1, so this stays below.
RC_GTEST_PROP(IntervalTreeModel, CoversWhatBoostIclSaysItCovers, ()) {
  const auto steps =
      *rc::gen::container<std::vector<Step>>(100, any_step(rc::gen::arbitrary<std::uint8_t>()));
  IntervalTree<> tree;
  Set free;
  Set taken;
  for (const Step& step : steps) {
    const Range range = *Range::from_base_size(step.a % 4096u, 1 + step.b % 100u);
    switch (step.kind % 4) {
      case 0:
        if (tree.insert(range)) free.add(to_icl(range));
        break;
      case 1:
        if (const auto got = tree.allocate({.size = range.size(),
                                            .min = range.min(),
                                            .align = std::uint64_t{1} << step.shape % 4,
                                            .policy = static_cast<AllocPolicy>(step.shape % 3)})) {
          RC_ASSERT(boost::icl::contains(free, to_icl(*got)));
          free.subtract(to_icl(*got));
          taken.add(to_icl(*got));
        }
        break;
      default: {
        const auto entry = tree.find(range.min());
        if (!entry) break;
        const bool was_free = entry->state == NodeState::free;
        if (step.kind % 4 == 2) {
          RC_ASSERT(tree.free(entry->range).has_value() == !was_free);
          free.add(to_icl(entry->range));
        } else {
          RC_ASSERT(tree.erase(entry->range).has_value());
          free.subtract(to_icl(entry->range));
        }
        if (!was_free) taken.subtract(to_icl(entry->range));
      }
    }
    Set tree_free;
    Set tree_taken;
    for (const auto& entry : tree) {
      (entry.state == NodeState::free ? tree_free : tree_taken).add(to_icl(entry.range));
    }
    RC_ASSERT(tree_free == free);
    RC_ASSERT(tree_taken == taken);
  }
}

}  // namespace
}  // namespace vmspace::test::interval_tree_model_test
