// SPDX-License-Identifier: Apache-2.0
//
// The B+-tree of an IntervalTree: how entries change, and what of it their ancestors are told. Splitting
// and merging nodes is in tree_nodes.hpp, searching for free space in free_search.hpp.
//
// Invariants (each a rule of the Checker):
//   - all leaves have the same depth, and are linked in address order;
//   - every node but the root is at least three eighths full; an inner root has at least two children;
//   - entries ascend and do not overlap; a key in an inner node is the lowest address below a child;
//   - the summary and aligned lengths that an inner node has for a child are the maxima of those in
//     the child; for a leaf, those of its free entries, and for the one leaf that is behind, no less;
//   - before the leaf that is behind, there is no place for the constraint that was noted with it.
//
// A change works on a Path: an entry, and the way to it from the root. The leaf is changed first;
// then its ancestors are told (ancestor_summaries.hpp). Telling them is half the work where one piece
// after the other is cut from a long free range, and of no use: it makes searches skip the leaf, and
// the next piece is there again. So then they are not told: the leaf is `behind` until another leaf
// is, until it is split or merged, or until a search tries leaves in vain, which it may be the cause
// of. Only one leaf is behind at a time, so that what a search loses by it is one descent.
//
// Whoever cuts one piece after the other asks for the same each time. Where that was the first place for
// a constraint, no leaf before the one that is behind has another, and none gets one until a free entry
// grows. Until then the same request is met in that leaf without a descent, while it has both a place and
// space for the entries (find_again).
//
// Only reserve(), prepare_split() and insert_first() allocate, and nothing else can fail. Adding an
// entry allocates first, then moves the value, then changes the tree. Removal merges or evens out
// existing siblings, so it needs no memory. Nodes come from a stock (detail/node_stock.hpp).
//
// What allocate() and free() always go through is always_inline, here and in what is below: the larger a
// source, the less g++ inlines by itself, and such a pair then takes 7 % longer.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/ancestor_summaries.hpp"
#include "vmspace/allocator/detail/checker.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/detail/tree_nodes.hpp"
#include "vmspace/allocator/detail/tree_path.hpp"
#include "vmspace/allocator/interval_entry.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// A B+-tree of ranges and their states. Values of entries are put in and taken out by the caller;
/// the tree moves them along with their entries, and destroys those that are left.
template <typename T>
class BPlusTree : private TreeNodes<T> {
  using Nodes = TreeNodes<T>;

 public:
  using Path = TreePath<T>;
  using typename Nodes::Position;

  BPlusTree() noexcept = default;
  BPlusTree(const BPlusTree& other) : Nodes(other), size_(other.size_) {
    if (other.behind_ != nullptr) behind_ = upper_bound(other.behind_->min[0]).leaf;
  }
  BPlusTree(BPlusTree&& other) noexcept : BPlusTree() { swap(other); }
  BPlusTree& operator=(const BPlusTree&) = delete;
  ~BPlusTree() = default;

  void swap(BPlusTree& other) noexcept {
    Nodes::swap(other);
    std::swap(size_, other.size_);
    std::swap(behind_, other.behind_);
    may_repeat_ = other.may_repeat_ = false;
  }

  /// Destroys all entries, and what is reserved.
  void clear() noexcept {
    Nodes::clear();
    size_ = 0;
    behind_ = nullptr;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  using Nodes::first;
  using Nodes::height;
  using Nodes::last;
  using Nodes::prepare_split;
  using Nodes::reserve;
  using Nodes::root;
  using Nodes::row_for;
  using Nodes::upper_bound;

  // -- looking up ------------------------------------------------------------------------------

  /// Which sides of a range have a free entry that touches it.
  struct FreeNeighbours {
    bool left;
    bool right;
  };

  /// The path to the entry that is exactly [min, max]; false when there is none.
  [[nodiscard]] bool locate(const Range& range, Path& path) const noexcept {
    if (root() == nullptr) return false;
    upper_bound(range.min(), path);
    if (path.pos == 0) return false;
    --path.pos;
    return path.leaf->min[path.pos] == range.min() && path.leaf->max[path.pos] == range.max();
  }

  /// The entry at the path's position, which may be the end of its leaf; no leaf when there is none.
  [[nodiscard]] Position entry_after(const Path& path) const noexcept {
    if (path.pos < path.leaf->count) return {path.leaf, path.pos};
    return {path.leaf->next, 0};
  }

  // -- changing --------------------------------------------------------------------------------

  /// On how many sides of `piece` something is left of the entry at the path, which contains it.
  [[nodiscard]] static unsigned sides_left(const Path& path, const Range& piece) noexcept {
    return static_cast<unsigned>(piece.min() != path.leaf->min[path.pos]) +
           static_cast<unsigned>(piece.max() != path.leaf->max[path.pos]);
  }

  /// Splits the leaf, or gives entries to a sibling, as prepared. The path stays at its entry.
  void split_if(bool prepared, Path& path) noexcept {
    if (!prepared) return;
    settle();  // it may be this leaf or the sibling
    make_space(path);
  }

  /// Inserts the first entry of an empty tree. Throws std::bad_alloc.
  void insert_first(const Range& range, NodeState state, Path& path) {
    path.leaf = Nodes::add_first_leaf();
    path.pos = 0;
    add_entry(path, range, state);
  }

  /// Inserts an entry before the one at the path, or at the end of the leaf, which must have space.
  /// Its state is free or allocated; what gives it a value makes it valued.
  void insert(Path& path, const Range& range, NodeState state) noexcept {
    add_entry(path, range, state);
    if (path.pos == 0) propagate_key(path);
    if (state == NodeState::free) tell_of_gain(path, range.min(), range.max());
  }

  /// Whether the range lies above all entries, and the last leaf has space for it.
  [[nodiscard]] bool is_appendable(const Range& range) const noexcept {
    return last() != nullptr && last()->count < node_capacity &&
           last()->max[last()->count - 1] < range.min();
  }

  /// Adds a taken entry that is_appendable(). The ancestors know nothing of what is taken, so the path
  /// has none, and there is no descent.
  void append(const Range& range, Path& path) noexcept {
    path.leaf = last();
    path.pos = path.leaf->count;
    add_entry(path, range, NodeState::allocated);
  }

  /// Takes `piece` out of the free entry at the path; what is left on either side stays free, and
  /// the leaf must have space for it. The path is then at the piece.
  void split_entry(Path& path, const Range& piece) noexcept {
    const std::uint64_t lo = path.leaf->min[path.pos];
    const std::uint64_t hi = path.leaf->max[path.pos];
    split_entry_in_leaf(path, piece);
    tell_of_cut(path, lo, hi, piece);
  }

  /// As split_entry(), for a piece that find_again() has found: nothing outside the leaf changes.
  [[gnu::always_inline]] void split_entry_in_leaf(Path& path, const Range& piece) noexcept {
    Leaf<T>& leaf = *path.leaf;
    const unsigned pos = path.pos;
    const std::uint64_t lo = leaf.min[pos];
    const std::uint64_t hi = leaf.max[pos];
    const unsigned head = piece.min() != lo;
    const unsigned tail = piece.max() != hi;
    if (head + tail != 0) leaf.open_gap(pos + 1, head + tail);
    size_ += head + tail;
    leaf.free.reset(pos);
    if (head != 0) {
      leaf.max[pos] = piece.min() - 1;
      leaf.free.set(pos);
    }
    path.pos = pos + head;
    leaf.min[path.pos] = piece.min();
    leaf.max[path.pos] = piece.max();
    if (tail != 0) {
      leaf.min[path.pos + 1] = piece.max() + 1;
      leaf.max[path.pos + 1] = hi;
      leaf.free.set(path.pos + 1);
    }
  }

  /// Takes `piece` out of the free entry at the path and out of the tree; what is left on either side
  /// stays free. The leaf must have space for one more entry where both sides are left.
  void extract(Path& path, const Range& piece) noexcept {
    Leaf<T>& leaf = *path.leaf;
    const unsigned pos = path.pos;
    const std::uint64_t lo = leaf.min[pos];
    const std::uint64_t hi = leaf.max[pos];
    const bool head = piece.min() != lo;
    const bool tail = piece.max() != hi;
    if (!head && !tail) {
      if (!drop_entries(path, 1)) return;
      tell_of_cut(path, lo, hi, piece);
      rebalance(path);
      return;
    }
    if (head) leaf.max[pos] = piece.min() - 1;
    if (head && tail) {
      leaf.open_gap(pos + 1, 1);
      ++size_;
      leaf.min[pos + 1] = piece.max() + 1;
      leaf.max[pos + 1] = hi;
      leaf.free.set(pos + 1);
    } else if (tail) {
      leaf.min[pos] = piece.max() + 1;
      if (pos == 0) propagate_key(path);
    }
    tell_of_cut(path, lo, hi, piece);
  }

  /// Which free entries touch a range that is not in the tree. The path is where upper_bound() finds
  /// its first member, and what is before it is therefore in the same leaf.
  [[nodiscard]] FreeNeighbours free_neighbours(const Path& path,
                                               const Range& range) const noexcept {
    const Leaf<T>& leaf = *path.leaf;
    const Position after = entry_after(path);
    return {.left = path.pos > 0 && leaf.free.test(path.pos - 1) &&
                    leaf.max[path.pos - 1] + 1 == range.min(),
            .right = after.leaf != nullptr && after.leaf->free.test(after.pos) &&
                     after.leaf->min[after.pos] - 1 == range.max()};
  }

  /// Adds a range that is not in the tree to the free entries that touch it, of which there is one
  /// or two. The path is as for free_neighbours().
  void join(Path& path, const Range& range, FreeNeighbours touching) noexcept {
    const Position after = entry_after(path);
    const bool right_elsewhere = touching.right && after.leaf != path.leaf;
    const std::uint64_t right_key = right_elsewhere ? after.leaf->min[0] : 0;
    if (!touching.left) {
      if (right_elsewhere) locate_key(right_key, path);
      path.leaf->min[path.pos] = range.min();
      if (path.pos == 0) propagate_key(path);
    } else {
      --path.pos;
      path.leaf->max[path.pos] = touching.right ? after.leaf->max[after.pos] : range.max();
    }
    tell_of_gain(path, path.leaf->min[path.pos], path.leaf->max[path.pos]);
    if (!touching.left || !touching.right) return;
    // The entry on the left has grown over the one on the right, which goes.
    if (right_elsewhere) {
      locate_key(right_key, path);
      remove(path, 1);
    } else {
      path.leaf->close_gap(path.pos + 1, 1);
      --size_;
      rebalance(path);
    }
  }

  /// Frees the taken entry at the path, whose value has been destroyed, and merges it with the free
  /// entries that touch it.
  [[gnu::always_inline]] void free_and_coalesce(Path& path) noexcept {
    Leaf<T>& leaf = *path.leaf;
    const unsigned pos = path.pos;
    Leaf<T>* const left = pos > 0 ? path.leaf : leaf.prev;
    Leaf<T>* const right = pos + 1 < leaf.count ? path.leaf : leaf.next;
    const unsigned left_pos = pos > 0 ? pos - 1 : left != nullptr ? left->count - 1 : 0;
    const unsigned right_pos = pos + 1 < leaf.count ? pos + 1 : 0;
    const bool merge_left =
        left != nullptr && left->free.test(left_pos) && left->max[left_pos] + 1 == leaf.min[pos];
    const bool merge_right = right != nullptr && right->free.test(right_pos) &&
                             right->min[right_pos] - 1 == leaf.max[pos];
    const std::uint64_t hi = merge_right ? right->max[right_pos] : leaf.max[pos];

    // The leftmost of the merged entries grows to the right, so that no entry's key decreases. The
    // others are removed; the one in another leaf last, by a path of its own.
    const bool right_elsewhere = merge_right && right != path.leaf;
    const std::uint64_t right_key = right_elsewhere ? right->min[0] : 0;
    const unsigned right_here = merge_right && !right_elsewhere;
    if (merge_left && left != path.leaf) {
      Path before;
      locate_key(left->min[left_pos], before);
      left->max[left_pos] = hi;
      tell_of_gain(before, left->min[left_pos], hi);
      remove(path, 1 + right_here);
    } else {
      path.pos = pos - merge_left;
      leaf.max[path.pos] = hi;
      leaf.free.set(path.pos);
      const unsigned gone = merge_left + right_here;
      if (gone != 0) leaf.close_gap(path.pos + 1, gone);
      size_ -= gone;
      tell_of_gain(path, leaf.min[path.pos], hi);
      if (gone != 0) rebalance(path);
    }
    if (right_elsewhere) {
      locate_key(right_key, path);
      remove(path, 1);
    }
  }

  /// Removes `n` entries at the path, whose values have been destroyed.
  void remove(Path& path, unsigned n) noexcept {
    if (!drop_entries(path, n)) return;
    tell_of_loss(path);
    rebalance(path);
  }

  /// Tells the ancestors of the leaf that is behind, if there is one, what they have not been told.
  void settle() noexcept {
    if (behind_ != nullptr) tell_of_behind();
  }

  // -- repeating -------------------------------------------------------------------------------

  /// Notes that a piece for the constraint was split off at the path, which was the first place for it.
  void note_first_match(const Constraint& constraint, const Path& path) noexcept {
    if (path.leaf != behind_) return;
    repeated_ = constraint;
    may_repeat_ = true;
  }

  /// The first place for the constraint, if it is the one that was noted, and the leaf has both the place
  /// and space to split it off. The path then has the entry, but no ancestors.
  [[nodiscard]] std::optional<Range> find_again(const Constraint& constraint,
                                                Path& path) const noexcept {
    // In this order: after a free entry has grown, nothing is noted, whatever is behind.
    if (!may_repeat_ || behind_ == nullptr || repeated_ != constraint) return std::nullopt;
    const Leaf<T>& leaf = *behind_;
    const Request request(constraint);
    for (Bits left = leaf.free; left.any(); left.reset_lowest()) {
      const unsigned pos = left.lowest();
      const auto place = request.lowest_in(leaf.min[pos], leaf.max[pos]);
      if (!place) continue;
      const Range piece = unchecked_range(*place, *place + request.extent());
      path.leaf = behind_;
      path.pos = pos;
      if (leaf.count + sides_left(path, piece) > node_capacity) break;
      return piece;
    }
    return std::nullopt;
  }

  // -- learning --------------------------------------------------------------------------------

  /// As in TreeNodes, which does not know how many entries there are.
  void learn(const Constraint& constraint, std::size_t wasted) noexcept {
    Nodes::learn(constraint, wasted, size_);
  }

  /// The first rule that the structure breaks, as text; null when it breaks none. O(n).
  [[nodiscard]] const char* check() const noexcept {
    return Checker<T>(root(), first(), last(), behind_, may_repeat_ ? &repeated_ : nullptr, size_,
                      height(), learned())
        .first_broken_rule();
  }

 private:
  /// Adds an entry at the path, without telling the ancestors.
  void add_entry(Path& path, const Range& range, NodeState state) noexcept {
    Leaf<T>& leaf = *path.leaf;
    leaf.open_gap(path.pos, 1);
    leaf.min[path.pos] = range.min();
    leaf.max[path.pos] = range.max();
    if (state == NodeState::free) leaf.free.set(path.pos);
    ++size_;
  }

  /// Removes entries at the path, without telling the ancestors what is free no longer. False when
  /// the tree is empty then, and has no leaf.
  [[nodiscard]] bool drop_entries(Path& path, unsigned n) noexcept {
    Leaf<T>& leaf = *path.leaf;
    leaf.close_gap(path.pos, n);
    size_ -= n;
    if (leaf.count == 0) {  // the root, as other leaves never get as empty
      behind_ = nullptr;
      Nodes::remove_last_leaf();
      return false;
    }
    if (path.pos == 0) propagate_key(path);
    return true;
  }

  /// Restores the minimum fill of the leaf after a removal.
  void rebalance(const Path& path) noexcept {
    if (!Nodes::is_too_empty(*path.leaf)) return;
    settle();  // it may be this leaf or the sibling
    Nodes::fill_up(path);
  }

  // -- telling the ancestors -------------------------------------------------------------------

  /// The summaries of the path's leaf, to be told what has changed in it.
  [[nodiscard]] AncestorSummaries<T> above(const Path& path) const noexcept {
    return {path, height(), learned()};
  }

  [[gnu::noinline]] void tell_of_behind() noexcept {
    Path path;
    upper_bound(behind_->min[0], path);
    tell_of_loss(path);
  }

  /// Tells the ancestors that free entries of the leaf have shrunk or gone.
  void tell_of_loss(const Path& path) noexcept {
    if (behind_ == path.leaf) behind_ = nullptr;
    above(path).shrink();
  }

  /// Tells the ancestors that the leaf has gained the free entry [lo, hi].
  [[gnu::always_inline]] void tell_of_gain(const Path& path, std::uint64_t lo,
                                           std::uint64_t hi) noexcept {
    may_repeat_ = false;
    above(path).grow(lo, hi);
  }

  /// Tells the ancestors that the free entry [lo, hi] has shrunk to what is left of it around `piece`;
  /// or leaves the leaf behind, where it has space for such a piece again.
  [[gnu::always_inline]] void tell_of_cut(const Path& path, std::uint64_t lo, std::uint64_t hi,
                                          const Range& piece) noexcept {
    const std::uint64_t left = max_of(piece.min() - lo, hi - piece.max());
    const bool again = left > piece.max() - piece.min();
    if (behind_ == path.leaf) {
      if (!again) tell_of_loss(path);
    } else if (!again) {
      above(path).cut(lo, hi, piece);
    } else if (height() == 0 || above(path).is_affected_by_cut(lo, hi, piece)) {
      settle();
      behind_ = path.leaf;
      may_repeat_ = false;
    }
  }

  using Nodes::learned;
  using Nodes::locate_key;
  using Nodes::make_space;
  using Nodes::propagate_key;

  std::size_t size_ = 0;
  Leaf<T>* behind_ = nullptr;  ///< whose ancestors believe that more is free in it than there is
  Constraint repeated_ = {};   ///< has no place before the leaf that is behind
  bool may_repeat_ = false;    ///< and no std::optional, whose reset is an unpredictable branch
};

}  // namespace vmspace::detail
