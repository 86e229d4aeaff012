// SPDX-License-Identifier: Apache-2.0
//
// Nodes that a B+-tree keeps for later, so that a change which needs one can't fail.

#pragma once

#include <cstddef>
#include <new>
#include <utility>

#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// How many nodes a tree of some number of entries has at most. Every node but the root is at least
/// three eighths full; that bounds the leaves, and level by level the nodes above them.
struct NodeCounts {
  std::size_t leaves = 0;
  std::size_t inner = 0;

  static constexpr NodeCounts most_for(std::size_t entries) noexcept {
    constexpr auto parents = [](std::size_t n) { return max_of<std::size_t>(n / node_minimum, 1); };
    NodeCounts counts;
    if (entries == 0) return counts;
    counts.leaves = parents(entries);
    for (std::size_t level = counts.leaves; level > 1;) {
      level = parents(level);
      counts.inner += level;
    }
    return counts;
  }
};

/// Makes the nodes of one tree, and keeps those that it was told to reserve when the tree has no use
/// for them. Nodes in stock are as good as new, but for their links to others.
template <typename T>
class NodeStock {
 public:
  NodeStock() noexcept = default;
  NodeStock(const NodeStock&) = delete;
  NodeStock& operator=(const NodeStock&) = delete;
  ~NodeStock() { clear(); }

  void swap(NodeStock& other) noexcept {
    std::swap(leaves_, other.leaves_);
    std::swap(inner_, other.inner_);
    std::swap(reserved_, other.reserved_);
    std::swap(entries_, other.entries_);
    std::swap(with_lengths_, other.with_lengths_);
  }

  /// Forgets what is reserved and destroys what is in stock. Nodes that are in use do not count any
  /// more.
  void clear() noexcept {
    while (leaves_.spare != 0)
      delete take_leaf();
    while (inner_.spare != 0)
      delete take_inner();
    leaves_ = {};
    inner_ = {};
    reserved_ = {};
    entries_ = 0;
    with_lengths_ = false;
  }

  /// Reserves the nodes of a tree of `entries`, those in use included. What std::bad_alloc has left
  /// in stock stays there.
  void reserve(std::size_t entries) {
    if (entries <= entries_) return;
    const NodeCounts counts = NodeCounts::most_for(entries);
    reserved_ = {max_of(reserved_.leaves, counts.leaves), max_of(reserved_.inner, counts.inner)};
    while (leaves_.total < reserved_.leaves)
      add_leaf();
    while (inner_.total < reserved_.inner)
      add_inner();
    entries_ = entries;
  }

  /// Has these many in stock.
  void prepare(const NodeCounts& counts) {
    while (leaves_.spare < counts.leaves)
      add_leaf();
    while (inner_.spare < counts.inner)
      add_inner();
  }

  /// Whether inner nodes have space for learned lengths.
  [[nodiscard]] bool with_lengths() const noexcept { return with_lengths_; }

  /// Gives inner nodes space for learned lengths: those in stock, and those made from now on. False
  /// when there is no memory for it.
  [[nodiscard]] bool add_lengths() noexcept {
    Inner* inner = inner_.first;
    for (std::size_t left = inner_.spare; left != 0; --left) {
      if (inner->learned == nullptr) inner->learned = new (std::nothrow) LearnedLengths;
      if (inner->learned == nullptr) return false;
      inner = static_cast<Inner*>(inner->child[0]);
    }
    with_lengths_ = true;
    return true;
  }

  /// A node that is in stock.
  [[nodiscard]] Leaf<T>* take_leaf() noexcept {
    --leaves_.spare;
    return std::exchange(leaves_.first, leaves_.first->next);
  }
  [[nodiscard]] Inner* take_inner() noexcept {
    --inner_.spare;
    return std::exchange(inner_.first, static_cast<Inner*>(inner_.first->child[0]));
  }

  /// Takes back an empty node, or destroys it where it is more than what is reserved.
  void put(Leaf<T>* leaf) noexcept {
    if (leaves_.total > reserved_.leaves) {
      --leaves_.total;
      delete leaf;
    } else {
      ++leaves_.spare;
      leaf->next = std::exchange(leaves_.first, leaf);
    }
  }
  void put(Inner* inner) noexcept {
    if (inner_.total > reserved_.inner) {
      --inner_.total;
      delete inner;
    } else {
      ++inner_.spare;
      inner->child[0] = std::exchange(inner_.first, inner);
    }
  }

  /// The tree uses as many nodes as that of `other`, made elsewhere.
  void count_as(const NodeStock& other) noexcept {
    leaves_.total = other.leaves_.total - other.leaves_.spare;
    inner_.total = other.inner_.total - other.inner_.spare;
    with_lengths_ = other.with_lengths_;
  }

 private:
  template <typename N>
  struct Shelf {
    N* first = nullptr;     ///< linked by Leaf::next or the first child
    std::size_t spare = 0;  ///< in stock
    std::size_t total = 0;  ///< in stock and in use
  };

  void add_leaf() {
    Leaf<T>* const leaf = new Leaf<T>;
    leaf->next = std::exchange(leaves_.first, leaf);
    ++leaves_.spare;
    ++leaves_.total;
  }
  void add_inner() {
    Inner* const inner = new Inner(with_lengths_);
    inner->child[0] = std::exchange(inner_.first, inner);
    ++inner_.spare;
    ++inner_.total;
  }

  Shelf<Leaf<T>> leaves_;
  Shelf<Inner> inner_;
  NodeCounts reserved_;
  std::size_t entries_ = 0;  ///< that nodes are reserved for
  bool with_lengths_ = false;
};

}  // namespace vmspace::detail
