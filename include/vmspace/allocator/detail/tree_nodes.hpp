// SPDX-License-Identifier: Apache-2.0
//
// The nodes of a BPlusTree: how they are linked, found by key, split and merged, with the keys and the
// summaries that their ancestors have of them.
//
// A leaf that is full gives entries to a sibling that has space, and is split only where there is none;
// one that is too empty evens out with a sibling, or the two are merged. Only reserve(),
// prepare_split() and add_first_leaf() allocate, and nothing else can fail.

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/learned_alignments.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/detail/node_stock.hpp"
#include "vmspace/allocator/detail/subtree.hpp"
#include "vmspace/allocator/detail/tree_path.hpp"

namespace vmspace::detail {

/// Nodes of a tree, from the root to the leaves. What is in a leaf is changed by others, who then tell
/// its ancestors.
template <typename T>
class TreeNodes {
 public:
  using Path = TreePath<T>;

  TreeNodes() noexcept = default;
  ~TreeNodes() { clear(); }

  /// Copies every node. When copying a value throws, the destructor runs, since the delegated-to
  /// constructor has completed, and destroys what was built.
  TreeNodes(const TreeNodes& other) : TreeNodes() {
    if (other.root_ == nullptr) return;
    height_ = other.height_;
    learned_ = other.learned_;
    stock_.count_as(other.stock_);
    clone_subtree(root_, *other.root_, height_, first_, last_);
  }
  TreeNodes& operator=(const TreeNodes&) = delete;

  void swap(TreeNodes& other) noexcept {
    std::swap(root_, other.root_);
    std::swap(first_, other.first_);
    std::swap(last_, other.last_);
    std::swap(height_, other.height_);
    std::swap(learned_, other.learned_);
    stock_.swap(other.stock_);
  }

  /// Destroys all nodes, and what is reserved.
  void clear() noexcept {
    destroy_subtree<T>(root_, height_);
    root_ = nullptr;
    first_ = last_ = nullptr;
    height_ = 0;
    learned_ = {};
    stock_.clear();
  }

  /// Keeps enough nodes for `n` entries. Throws std::bad_alloc.
  void reserve(std::size_t n) { stock_.reserve(n); }

  [[nodiscard]] Node* root() const noexcept { return root_; }
  /// Levels of inner nodes; 0 when the root is a leaf, or there is none.
  [[nodiscard]] unsigned height() const noexcept { return height_; }
  [[nodiscard]] Leaf<T>* first() const noexcept { return first_; }
  [[nodiscard]] Leaf<T>* last() const noexcept { return last_; }
  [[nodiscard]] const LearnedAlignments& learned() const noexcept { return learned_; }

  // -- looking up ------------------------------------------------------------------------------

  /// An entry's place in the leaves; no leaf means none.
  struct Position {
    Leaf<T>* leaf = nullptr;
    unsigned pos = 0;
  };

  /// The position after the last entry that begins at or below `point`, in the leaf of that entry;
  /// 0 in the first leaf when there is no such entry.
  [[nodiscard]] Position upper_bound(std::uint64_t point) const noexcept {
    Node* node = root_;
    if (node == nullptr) return {};
    for (unsigned level = height_; level > 0; --level) {
      Inner& inner = *static_cast<Inner*>(node);
      node = inner.child[inner.child_for(point)];
    }
    Leaf<T>* leaf = static_cast<Leaf<T>*>(node);
    return {leaf, leaf->min.count_up_to(point, leaf->count)};
  }

  /// The path to what upper_bound() finds; the tree must not be empty.
  [[gnu::always_inline]] void upper_bound(std::uint64_t point, Path& path) const noexcept {
    Node* node = root_;
    for (unsigned level = height_; level-- > 0;) {
      Inner& inner = *static_cast<Inner*>(node);
      const unsigned slot = inner.child_for(point);
      path.ancestors[level] = {&inner, slot};
      node = inner.child[slot];
    }
    path.leaf = static_cast<Leaf<T>*>(node);
    if (leaves_are_far(height_)) path.leaf->prefetch();
    path.pos = path.leaf->min.count_up_to(point, path.leaf->count);
  }

  /// The path to the entry that begins at `key`, which there is.
  void locate_key(std::uint64_t key, Path& path) const noexcept {
    upper_bound(key, path);
    --path.pos;
  }

  /// The row of lengths that decides most about a request with these bits below its alignment.
  [[nodiscard]] unsigned row_for(std::uint64_t low_bits) const noexcept {
    return height_ == 0 ? 0 : learned_.row_for(low_bits);
  }

  // -- changing --------------------------------------------------------------------------------

  /// Makes the empty root of a tree that has no nodes. Throws std::bad_alloc.
  [[nodiscard]] Leaf<T>* add_first_leaf() {
    stock_.prepare({.leaves = 1});
    root_ = first_ = last_ = stock_.take_leaf();
    first_->prev = first_->next = nullptr;
    return first_;
  }

  /// Removes the root, an empty leaf.
  void remove_last_leaf() noexcept {
    stock_.put(last_);
    root_ = first_ = last_ = nullptr;
  }

  /// The leaf's first key has changed: updates it in the ancestors that hold it.
  void propagate_key(const Path& path) noexcept {
    for (unsigned level = 0; level < height_; ++level) {
      path.ancestors[level].node->key[path.ancestors[level].slot] = path.leaf->min[0];
      if (path.ancestors[level].slot != 0) return;
    }
  }

  /// Whether the leaf must be split, or give entries to a sibling, to take `n` more (1 or 2); if so,
  /// has the nodes for it in stock. Throws std::bad_alloc.
  [[nodiscard]] bool prepare_split(const Path& path, unsigned n) {
    if (path.leaf->count + n <= node_capacity) return false;
    prepare_split_nodes(path);
    return true;
  }

  /// Makes space in the full leaf, as prepared: gives entries to a sibling, or else splits it. The path
  /// stays at its entry.
  [[gnu::noinline]] void make_space(Path& path) noexcept {
    const unsigned slot = left_of_roomy_pair(path);
    if (slot == node_capacity) {
      split_leaf(path);
    } else {
      share_with_sibling(path, slot);
    }
  }

  /// Whether the leaf has fewer entries than it must have.
  [[nodiscard]] bool is_too_empty(const Leaf<T>& leaf) const noexcept {
    return height_ != 0 && leaf.count < node_minimum;
  }

  /// Restores the minimum fill of the leaf. The path is of no use then.
  void fill_up(const Path& path) noexcept {
    if (merge_or_redistribute<Leaf<T>>(path.ancestors[0])) rebalance_inner(path, 0);
  }

  // -- learning --------------------------------------------------------------------------------

  /// Learns the alignment of a search that has tried `wasted` leaves in vain, in a tree of so many
  /// entries, if it is worth it. O(n) where it is, which searches have cost already. Paths stay good.
  /// Without the memory that the first one takes, nothing is learned.
  void learn(const Constraint& constraint, std::size_t wasted, std::size_t entries) noexcept {
    if (learned_.is_of_interest(wasted)) [[unlikely]]
      learn_if_worth_it(constraint, wasted, entries);
  }

 private:
  [[gnu::noinline]] void learn_if_worth_it(const Constraint& constraint, std::size_t wasted,
                                           std::size_t entries) noexcept {
    if (height_ == 0) return;
    LearnedAlignments learned = learned_;
    const unsigned row = learned.learn(Request(constraint).low_bits(), wasted, entries);
    if (row != 0 && !add_lengths()) return;
    learned_ = learned;
    if (row != 0) fill_lengths<T>(*static_cast<Inner*>(root_), height_, row, learned_);
  }

  /// Has space for learned lengths in all inner nodes. False when there is no memory for it.
  [[nodiscard]] bool add_lengths() noexcept {
    return stock_.with_lengths() ||
           (detail::add_lengths(*static_cast<Inner*>(root_), height_) && stock_.add_lengths());
  }

  // -- splitting -------------------------------------------------------------------------------

  /// Has the nodes in stock to split the leaf, each ancestor that is full in turn, and the root if it
  /// is one.
  [[gnu::noinline]] void prepare_split_nodes(const Path& path) {
    if (left_of_roomy_pair(path) != node_capacity) return;
    unsigned level = 0;
    while (level < height_ && path.ancestors[level].node->count == node_capacity)
      ++level;
    stock_.prepare({.leaves = 1, .inner = level + (level == height_)});
  }

  /// The leaf is full: which slot of its parent has the left one of the leaf and a sibling that has
  /// space; 32 when neither sibling has. One that is nearly full does not count, as it would soon have to
  /// give what it got to the next.
  [[nodiscard]] unsigned left_of_roomy_pair(const Path& path) const noexcept {
    if (height_ == 0) return node_capacity;
    const PathStep& step = path.ancestors[0];
    const auto is_roomy = [&step](unsigned slot) {
      return step.node->child[slot]->count <= node_roomy;
    };
    if (step.slot > 0 && is_roomy(step.slot - 1)) return step.slot - 1;
    if (step.slot + 1 < step.node->count && is_roomy(step.slot + 1)) return step.slot;
    return node_capacity;
  }

  /// Evens out the leaf and its sibling, of which the left one is in this slot of their parent. What has
  /// been filled in one direction goes on like that: there the sibling is filled up.
  void share_with_sibling(Path& path, unsigned slot) noexcept {
    PathStep& step = path.ancestors[0];
    Inner& parent = *step.node;
    Leaf<T>* const left = static_cast<Leaf<T>*>(parent.child[slot]);
    Leaf<T>* const right = static_cast<Leaf<T>*>(parent.child[slot + 1]);
    const unsigned total = left->count + right->count;
    const unsigned pos = path.pos + (path.leaf == right ? left->count : 0);
    unsigned in_left = total / 2;
    if (right == last_ && pos + 1 >= total) in_left = node_capacity;
    if (left == first_ && pos == 0) in_left = total - node_capacity;
    Leaf<T>::redistribute(*left, *right, in_left);
    parent.summarise(slot, *left, learned_);
    parent.summarise(slot + 1, *right, learned_);
    parent.key[slot + 1] = right->min[0];
    const bool in_right = pos >= in_left;
    step.slot = slot + in_right;
    path.leaf = in_right ? right : left;
    path.pos = pos - (in_right ? in_left : 0);
  }

  /// Splits the leaf, and every ancestor that is full in turn.
  void split_leaf(Path& path) noexcept {
    Leaf<T>* const left = path.leaf;
    Leaf<T>* const right = stock_.take_leaf();
    right->prev = left;
    right->next = left->next;
    (left->next != nullptr ? left->next->prev : last_) = right;
    left->next = right;
    // Filling a space in ascending order only ever appends to the last leaf: the left half stays as
    // it is, so it is left well filled.
    Leaf<T>::redistribute(*left, *right,
                          right == last_ ? left->count - node_minimum : left->count / 2);

    if (height_ == 0) {
      grow_root(path, left);
    } else {
      path.ancestors[0].node->summarise(path.ancestors[0].slot, *left, learned_);
    }
    insert_child_after(path, 0, right);
    if (path.pos >= left->count) {
      path.pos -= left->count;
      path.leaf = right;
      ++path.ancestors[0].slot;
    }
  }

  /// Inserts `node` right after the path's child at this level. The path keeps its child.
  template <typename N>
  void insert_child_after(Path& path, unsigned level, N* node) noexcept {
    PathStep& step = path.ancestors[level];
    const bool full = step.node->count == node_capacity;
    if (full) {
      Inner* const left = step.node;
      Inner* const right = stock_.take_inner();
      Inner::redistribute(*left, *right, node_capacity / 2);
      if (level + 1 == height_) {
        grow_root(path, left);
      } else {
        path.ancestors[level + 1].node->summarise(path.ancestors[level + 1].slot, *left, learned_);
      }
      insert_child_after(path, level + 1, right);
      if (step.slot >= left->count) {
        step = {right, step.slot - left->count};
        ++path.ancestors[level + 1].slot;
      }
    }
    step.node->insert(step.slot + 1, node, learned_);
    if (!full) return;
    // The split has updated the ancestors' summaries, but without this child.
    for (; level + 1 < height_; ++level) {
      const PathStep& above_step = path.ancestors[level + 1];
      above_step.node->summarise(above_step.slot, *path.ancestors[level].node, learned_);
    }
  }

  /// Makes the root the only child of a new root.
  template <typename N>
  void grow_root(Path& path, N* old_root) noexcept {
    Inner* const root = stock_.take_inner();
    root->insert(0, old_root, learned_);
    root_ = root;
    path.ancestors[height_++] = {root, 0};
  }

  // -- merging ---------------------------------------------------------------------------------

  /// Restores the minimum fill of the inner node at this level, which has lost a child; a root with
  /// one child is replaced by it.
  void rebalance_inner(const Path& path, unsigned level) noexcept {
    Inner* node = path.ancestors[level].node;
    if (level + 1 == height_) {
      if (node->count > 1) return;
      root_ = node->child[0];
      --height_;
      node->close_gap(0, 1);
      stock_.put(node);
    } else if (node->count < node_minimum) {
      if (merge_or_redistribute<Inner>(path.ancestors[level + 1])) rebalance_inner(path, level + 1);
    }
  }

  /// Evens out the child with a sibling, or merges the two; returns whether they were merged.
  template <typename N>
  bool merge_or_redistribute(const PathStep& step) noexcept {
    Inner& parent = *step.node;
    const unsigned slot = step.slot == 0 ? 0 : step.slot - 1;
    N* const left_node = static_cast<N*>(parent.child[slot]);
    N* const right_node = static_cast<N*>(parent.child[slot + 1]);
    N& left = *left_node;
    N& right = *right_node;
    const unsigned total = left.count + right.count;
    if (total > node_roomy) {
      N::redistribute(left, right, total / 2);
      parent.summarise(slot, left, learned_);
      parent.summarise(slot + 1, right, learned_);
      parent.key[slot + 1] = right.first_key();
      return false;
    }
    N::redistribute(left, right, total);
    parent.summarise(slot, left, learned_);
    parent.close_gap(slot + 1, 1);
    if constexpr (std::is_same_v<N, Leaf<T>>) {
      left.next = right.next;
      (right.next != nullptr ? right.next->prev : last_) = left_node;
    }
    stock_.put(right_node);
    return true;
  }

  Node* root_ = nullptr;
  Leaf<T>* first_ = nullptr;
  Leaf<T>* last_ = nullptr;
  unsigned height_ = 0;
  LearnedAlignments learned_;
  NodeStock<T> stock_;
};

}  // namespace vmspace::detail
