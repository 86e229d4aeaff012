// SPDX-License-Identifier: Apache-2.0
//
// The B+-tree of an IntervalTree: how nodes hang together, split, merge, and are searched.
//
// Invariant (each a rule of the Checker):
//   - all leaves have the same depth, and link to each other in address order;
//   - every node but the root is at least a quarter full; an inner root has two children;
//   - entries do not overlap and ascend; keys in inner nodes are the lowest address below a child;
//   - the rooms in an inner node are exact for the subtree of each child.
//
// Whoever changes the tree holds a Path: the entry, and the way to it from the root. A change is
// made in the leaf, then its room is passed up until a node's room stays as it was, which is
// nearly always the first or the second.
//
// Only spares_for() and insert_first() allocate, and nothing else can fail: whoever adds an entry
// gets the nodes first, then moves what must not be lost, then changes the tree. Removal merges or
// evens out neighbours that are there, so it needs no memory.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "vmspace/allocator/detail/checker.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/range.hpp"

namespace vmspace::detail {

/// What an entry becomes when it is made or changed.
enum class Fill : std::uint8_t { free, taken };

template <typename T>
class Store {
 public:
  /// Nodes are a quarter full at least, so 16 levels are more than 64 bits of memory can hold.
  static constexpr unsigned max_height = 16;

  struct Step {
    Inner* node;
    unsigned slot;
  };

  /// An entry, and for each level the inner node and the child taken there. up[0] is the parent of
  /// the leaf, up[height - 1] the root.
  struct Path {
    Leaf<T>* leaf = nullptr;
    unsigned pos = 0;
    Step up[max_height];

    // The steps are written by whoever descends; to clear all of them would cost more than to use
    // the one or two that most trees have. No copies, which would read what was never written: who
    // needs a second path descends again.
    Path() noexcept {}
    Path(const Path&) = delete;
    Path& operator=(const Path&) = delete;
  };

  /// Nodes allocated before a split, so that the split cannot fail.
  struct Spares {
    std::unique_ptr<Leaf<T>> leaf;
    std::unique_ptr<Inner> inner[max_height];
    std::unique_ptr<Inner> root;
  };

  Store() noexcept = default;
  ~Store() { clear(); }

  /// A copy of every node. When copying a value throws, the part built is destroyed, since the
  /// delegated constructor has completed.
  Store(const Store& other) : Store() {
    if (other.root_ == nullptr) return;
    height_ = other.height_;
    size_ = other.size_;
    clone(root_, *other.root_, height_);
  }
  Store(Store&& other) noexcept : Store() { swap(other); }
  Store& operator=(const Store&) = delete;

  void swap(Store& other) noexcept {
    std::swap(root_, other.root_);
    std::swap(first_, other.first_);
    std::swap(last_, other.last_);
    std::swap(height_, other.height_);
    std::swap(size_, other.size_);
  }

  void clear() noexcept {
    if (root_ != nullptr) destroy(root_, height_);
    root_ = nullptr;
    first_ = last_ = nullptr;
    height_ = 0;
    size_ = 0;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] Leaf<T>* first() const noexcept { return first_; }
  [[nodiscard]] Leaf<T>* last() const noexcept { return last_; }

  // -- looking up ------------------------------------------------------------------------------

  struct Place {
    Leaf<T>* leaf = nullptr;
    unsigned pos = 0;
  };

  /// How many entries of the leaf where `point` belongs begin at or below it. 0 only when no entry
  /// of the tree does.
  [[nodiscard]] Place upper_bound(std::uint64_t point) const noexcept {
    Node* node = root_;
    if (node == nullptr) return {};
    for (unsigned level = height_; level > 0; --level) {
      Inner& inner = *static_cast<Inner*>(node);
      node = inner.child[inner.child_for(point)];
    }
    Leaf<T>* leaf = static_cast<Leaf<T>*>(node);
    return {leaf, leaf->min.count_up_to(point, leaf->count)};
  }

  /// The path to what upper_bound() finds; the tree is not empty.
  void upper_bound(std::uint64_t point, Path& path) const noexcept {
    Node* node = root_;
    for (unsigned level = height_; level-- > 0;) {
      Inner& inner = *static_cast<Inner*>(node);
      const unsigned slot = inner.child_for(point);
      path.up[level] = {&inner, slot};
      node = inner.child[slot];
    }
    path.leaf = static_cast<Leaf<T>*>(node);
    path.pos = path.leaf->min.count_up_to(point, path.leaf->count);
  }

  /// The path to the entry that is exactly [min, max]; false when there is none.
  [[nodiscard]] bool locate(const Range& range, Path& path) const noexcept {
    if (root_ == nullptr) return false;
    upper_bound(range.min(), path);
    if (path.pos == 0) return false;
    --path.pos;
    return path.leaf->min[path.pos] == range.min() && path.leaf->max[path.pos] == range.max();
  }

  // -- looking for room ------------------------------------------------------------------------

  /// Calls `visit(path, place)` for each free entry that satisfies the request, in ascending order
  /// with its lowest place or in descending order with its highest, until one returns true.
  template <bool ascending, typename Visit>
  bool for_each_fit(const Request& request, Path& path, Visit&& visit) const {
    return root_ != nullptr && search<ascending>(request, root_, height_, path, visit);
  }

  // -- changing --------------------------------------------------------------------------------

  /// The nodes that it takes to open `n` entries (1 or 2) in the leaf; none when it has the room.
  /// Throws std::bad_alloc.
  [[nodiscard]] std::optional<Spares> spares_for(const Path& path, unsigned n) const {
    if (path.leaf->count + n <= node_capacity) return std::nullopt;
    return make_spares(path);
  }

  /// Splits what is full, if spares_for() found that it must be. The path stays at the same entry.
  void make_room(Path& path, std::optional<Spares>& spares) noexcept {
    if (spares) split_leaf(path, *spares);
  }

  /// The first entry of an empty tree.
  void insert_first(const Range& range, Fill fill, Path& path) {
    root_ = first_ = last_ = path.leaf = new Leaf<T>;
    path.pos = 0;
    open(path, range, fill);
  }

  /// Puts an entry before the one at the path, or at the end of the leaf. There must be room.
  void insert(Path& path, const Range& range, Fill fill) noexcept {
    open(path, range, fill);
    if (path.pos == 0) rename(path);
    if (fill == Fill::free) grow(path, Room::of(range.min(), range.max()));
  }

  /// Takes `piece` out of the free entry at the path, whose ends stay free. There must be room for
  /// an end on each side where there is one. The path is then at the piece.
  void cut(Path& path, const Range& piece) noexcept {
    Leaf<T>& leaf = *path.leaf;
    const unsigned pos = path.pos;
    const std::uint64_t lo = leaf.min[pos];
    const std::uint64_t hi = leaf.max[pos];
    const unsigned head = piece.min() != lo;
    const unsigned tail = piece.max() != hi;
    leaf.open(pos + 1, head + tail);
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
    pass_up(path, leaf);
  }

  /// Makes the taken entry at the path, whose value is gone already, free, and one with the free
  /// entries that touch it.
  void release(Path& path) noexcept {
    Leaf<T>& leaf = *path.leaf;
    const unsigned pos = path.pos;
    Leaf<T>* const left = pos > 0 ? path.leaf : leaf.prev;
    Leaf<T>* const right = pos + 1 < leaf.count ? path.leaf : leaf.next;
    const unsigned left_pos = pos > 0 ? pos - 1 : left != nullptr ? left->count - 1 : 0;
    const unsigned right_pos = pos + 1 < leaf.count ? pos + 1 : 0;
    const bool join_left =
        left != nullptr && left->free.test(left_pos) && left->max[left_pos] + 1 == leaf.min[pos];
    const bool join_right = right != nullptr && right->free.test(right_pos) &&
                            right->min[right_pos] - 1 == leaf.max[pos];
    const std::uint64_t hi = join_right ? right->max[right_pos] : leaf.max[pos];

    // The leftmost of the joined entries grows to the right, so that no entry's key goes down. The
    // others go; what lies in another leaf goes after, by a path of its own.
    const bool right_elsewhere = join_right && right != path.leaf;
    const std::uint64_t right_key = right_elsewhere ? right->min[0] : 0;
    const unsigned right_here = join_right && !right_elsewhere;
    if (join_left && left != path.leaf) {
      Path before;
      upper_bound(left->min[left_pos], before);
      --before.pos;
      left->max[left_pos] = hi;
      grow(before, Room::of(left->min[left_pos], hi));
      remove(path, 1 + right_here);
    } else {
      path.pos = pos - join_left;
      leaf.max[path.pos] = hi;
      leaf.free.set(path.pos);
      const unsigned gone = join_left + right_here;
      if (gone != 0) leaf.close(path.pos + 1, gone);
      size_ -= gone;
      grow(path, Room::of(leaf.min[path.pos], hi));
      if (gone != 0) fill_up(path);
    }
    if (right_elsewhere) {
      upper_bound(right_key, path);
      --path.pos;
      remove(path, 1);
    }
  }

  /// Removes `n` entries at the path, whose values are gone already.
  void remove(Path& path, unsigned n) noexcept {
    Leaf<T>& leaf = *path.leaf;
    leaf.close(path.pos, n);
    size_ -= n;
    if (leaf.count == 0) {
      clear();
      return;
    }
    if (path.pos == 0) rename(path);
    pass_up(path, leaf);
    fill_up(path);
  }

  // -- checking --------------------------------------------------------------------------------

  /// The first rule that the structure breaks, as a text; null when there is none. O(n).
  [[nodiscard]] const char* check() const noexcept {
    return Checker<T>{root_, first_, last_, size_, height_}.first_broken_rule();
  }

 private:
  template <bool ascending, typename Visit>
  bool search(const Request& request, Node* node, unsigned level, Path& path, Visit& visit) const {
    if (level == 0)
      return search_leaf<ascending>(request, static_cast<Leaf<T>*>(node), path, visit);
    Inner& inner = *static_cast<Inner*>(node);
    const auto enter = [&](unsigned slot) {
      path.up[level - 1] = {&inner, slot};
      return search<ascending>(request, inner.child[slot], level - 1, path, visit);
    };
    if constexpr (ascending) {
      const unsigned start = request.min() == 0 ? 0 : inner.child_for(request.min());
      for (unsigned slot = start; (slot = inner.next_fit(request, slot)) < inner.count; ++slot) {
        if (slot != start && inner.key[slot] > request.max()) return false;
        if (enter(slot)) return true;
      }
    } else {
      for (unsigned slot = inner.child_for(request.max());; --slot) {
        if (request.may_fit(inner.room_of(slot)) && enter(slot)) return true;
        if (slot == 0 || inner.key[slot] <= request.min()) return false;
      }
    }
    return false;
  }

  template <bool ascending, typename Visit>
  bool search_leaf(const Request& request, Leaf<T>* leaf, Path& path, Visit& visit) const {
    path.leaf = leaf;
    for (Bits left = leaf->free; left.any(); left.reset(path.pos)) {
      path.pos = ascending ? left.lowest() : left.highest();
      const std::uint64_t lo = leaf->min[path.pos];
      const std::uint64_t hi = leaf->max[path.pos];
      const std::optional<std::uint64_t> place =
          ascending ? request.lowest_in(lo, hi) : request.highest_in(lo, hi);
      if (place && visit(path, *place)) return true;
    }
    return false;
  }

  void open(Path& path, const Range& range, Fill fill) noexcept {
    Leaf<T>& leaf = *path.leaf;
    leaf.open(path.pos, 1);
    leaf.min[path.pos] = range.min();
    leaf.max[path.pos] = range.max();
    if (fill == Fill::free) leaf.free.set(path.pos);
    ++size_;
  }

  // -- rooms and keys --------------------------------------------------------------------------

  /// Free entries of the leaf have shrunk or gone: tells its ancestors what room there is, as far
  /// up as it makes a difference.
  void pass_up(const Path& path, const Leaf<T>& leaf) noexcept {
    if (height_ == 0) return;
    Room room = leaf.room();
    for (unsigned level = 0; level < height_; ++level) {
      Inner& node = *path.up[level].node;
      const unsigned slot = path.up[level].slot;
      const Room before = node.room_of(slot);
      if (before == room) return;
      node.set_room(slot, room);
      if (level + 1 == height_) return;
      const Step& above = path.up[level + 1];
      if (above.node->room_of(above.slot).outlasts(before, room)) return;
      room = node.room();
    }
  }

  /// The leaf has a free entry with this room in addition to what it had.
  void grow(const Path& path, const Room& added) noexcept {
    for (unsigned level = 0; level < height_; ++level) {
      Inner& node = *path.up[level].node;
      const unsigned slot = path.up[level].slot;
      Room room = node.room_of(slot);
      room.join(added);
      if (room == node.room_of(slot)) return;
      node.set_room(slot, room);
    }
  }

  /// The leaf's first entry has a new key: tells the ancestors that keep it.
  void rename(const Path& path) noexcept {
    for (unsigned level = 0; level < height_; ++level) {
      path.up[level].node->key[path.up[level].slot] = path.leaf->min[0];
      if (path.up[level].slot != 0) return;
    }
  }

  // -- splitting -------------------------------------------------------------------------------

  [[nodiscard, gnu::noinline]] std::optional<Spares> make_spares(const Path& path) const {
    std::optional<Spares> made(std::in_place);
    Spares& spares = *made;
    spares.leaf = std::make_unique<Leaf<T>>();
    unsigned level = 0;
    while (level < height_ && path.up[level].node->count == node_capacity) {
      spares.inner[level++] = std::make_unique<Inner>();
    }
    if (level == height_) spares.root = std::make_unique<Inner>();
    return made;
  }

  /// Splits the leaf, and above it what is full.
  [[gnu::noinline]] void split_leaf(Path& path, Spares& spares) noexcept {
    Leaf<T>* const left = path.leaf;
    Leaf<T>* const right = spares.leaf.release();
    right->prev = left;
    right->next = left->next;
    (left->next != nullptr ? left->next->prev : last_) = right;
    left->next = right;
    // Filling a range from below makes entries at the end of the last leaf only: what is left
    // behind there stays as it is, so it is left well filled.
    Leaf<T>::divide(*left, *right, right == last_ ? left->count - node_minimum : left->count / 2);

    if (height_ == 0) {
      raise_root(path, left->min[0], left->room(), spares);
    } else {
      path.up[0].node->set_room(path.up[0].slot, left->room());
    }
    add_beside(path, 0, right, right->min[0], right->room(), spares);
    if (path.pos >= left->count) {
      path.pos -= left->count;
      path.leaf = right;
      ++path.up[0].slot;
    }
  }

  /// Puts `node` right after the child that the path takes at this level, which it goes on taking.
  void add_beside(Path& path, unsigned level, Node* node, std::uint64_t key, const Room& room,
                  Spares& spares) noexcept {
    Step& step = path.up[level];
    const bool full = step.node->count == node_capacity;
    if (full) {
      Inner* const left = step.node;
      Inner* const right = spares.inner[level].release();
      Inner::divide(*left, *right, node_capacity / 2);
      if (level + 1 == height_) {
        raise_root(path, left->key[0], left->room(), spares);
      } else {
        path.up[level + 1].node->set_room(path.up[level + 1].slot, left->room());
      }
      add_beside(path, level + 1, right, right->key[0], right->room(), spares);
      if (step.slot >= left->count) {
        step = {right, step.slot - left->count};
        ++path.up[level + 1].slot;
      }
    }
    step.node->insert(step.slot + 1, node, key, room);
    if (!full) return;
    // The split has told the ancestors what room there was without this child.
    while (++level < height_) {
      Room total = path.up[level].node->room_of(path.up[level].slot);
      total.join(room);
      path.up[level].node->set_room(path.up[level].slot, total);
    }
  }

  /// Puts a root with one child above the root.
  void raise_root(Path& path, std::uint64_t key, const Room& room, Spares& spares) noexcept {
    Inner* const root = spares.root.release();
    root->insert(0, root_, key, room);
    root_ = root;
    path.up[height_++] = {root, 0};
  }

  // -- merging ---------------------------------------------------------------------------------

  /// Restores the quarter that the leaf must hold, after entries have gone.
  void fill_up(Path& path) noexcept {
    if (height_ == 0 || path.leaf->count >= node_minimum) return;
    if (fill_up<Leaf<T>>(path.up[0])) child_gone(path, 0);
  }

  /// An inner node at this level has lost a child: restores its quarter too, or lowers the root.
  void child_gone(Path& path, unsigned level) noexcept {
    Inner* node = path.up[level].node;
    if (level + 1 == height_) {
      if (node->count > 1) return;
      root_ = node->child[0];
      --height_;
      delete node;
    } else if (node->count < node_minimum) {
      if (fill_up<Inner>(path.up[level + 1])) child_gone(path, level + 1);
    }
  }

  /// Fills up a child from the sibling beside it, or makes the two one; then it returns true.
  template <typename N>
  bool fill_up(const Step& step) noexcept {
    Inner& parent = *step.node;
    const unsigned slot = step.slot == 0 ? 0 : step.slot - 1;
    N* const left_node = static_cast<N*>(parent.child[slot]);
    N* const right_node = static_cast<N*>(parent.child[slot + 1]);
    N& left = *left_node;
    N& right = *right_node;
    const unsigned total = left.count + right.count;
    if (total > node_merged) {
      N::divide(left, right, total / 2);
      parent.set_room(slot, left.room());
      parent.set_room(slot + 1, right.room());
      parent.key[slot + 1] = right.first_key();
      return false;
    }
    N::divide(left, right, total);
    parent.set_room(slot, left.room());
    parent.close(slot + 1, 1);
    if constexpr (std::is_same_v<N, Leaf<T>>) {
      left.next = right.next;
      (right.next != nullptr ? right.next->prev : last_) = left_node;
    }
    delete right_node;
    return true;
  }

  // -- whole trees -----------------------------------------------------------------------------

  /// Copies the subtree `from`; what is built hangs in the tree at once, where the destructor finds
  /// it.
  void clone(Node*& place, const Node& from, unsigned level) {
    if (level == 0) {
      const Leaf<T>& source = static_cast<const Leaf<T>&>(from);
      Leaf<T>* const leaf = new Leaf<T>;
      place = leaf;
      leaf->prev = last_;
      (last_ != nullptr ? last_->next : first_) = leaf;
      last_ = leaf;
      leaf->min = source.min;
      std::copy_n(source.max, source.count, leaf->max);
      leaf->free = source.free;
      leaf->count = source.count;
      for (Bits left = source.valued; left.any(); left.reset_lowest()) {
        leaf->values.construct(left.lowest(), *source.values.at(left.lowest()));
        leaf->valued.set(left.lowest());
      }
    } else {
      const Inner& source = static_cast<const Inner&>(from);
      Inner* const inner = new Inner;
      source.copy_entries(*inner, 0, 0, source.count);
      std::fill_n(inner->child, source.count, nullptr);
      inner->count = source.count;
      place = inner;
      for (unsigned i = 0; i < source.count; ++i) {
        clone(inner->child[i], *source.child[i], level - 1);
      }
    }
  }

  static void destroy(Node* node, unsigned level) noexcept {
    if (node == nullptr) return;
    if (level == 0) {
      delete static_cast<Leaf<T>*>(node);
      return;
    }
    Inner* const inner = static_cast<Inner*>(node);
    for (unsigned i = 0; i < inner->count; ++i)
      destroy(inner->child[i], level - 1);
    delete inner;
  }

  Node* root_ = nullptr;
  Leaf<T>* first_ = nullptr;
  Leaf<T>* last_ = nullptr;
  std::size_t size_ = 0;
  unsigned height_ = 0;  ///< levels of inner nodes; 0 when the root is a leaf
};

}  // namespace vmspace::detail
