// SPDX-License-Identifier: Apache-2.0

#include "host/pinned_ranges.hpp"

#include <iterator>

#include "vmspace/host/memory_pin.hpp"

namespace vmspace {

namespace detail {

/// The piece that begins there, which is made if there is none.
PinnedRanges::Pieces::iterator PinnedRanges::split(std::uint64_t at) {
  const auto next = pieces_.lower_bound(at);
  if (next != pieces_.end() && next->first == at) return next;
  Piece piece;
  if (next != pieces_.begin()) piece = std::prev(next)->second;
  piece.ends = 0;
  return pieces_.emplace_hint(next, at, std::move(piece));
}

/// A boundary at which no pin begins or ends any more has the same pins on either side.
void PinnedRanges::drop_end(Pieces::iterator piece) noexcept {
  if (piece->second.ends == 0) pieces_.erase(piece);
}

void PinnedRanges::pin(std::uint64_t first, std::uint64_t end, std::string_view holder) {
  const auto name = std::make_shared<const std::string>(holder);
  const std::lock_guard lock(mutex_);
  const auto begin = split(first);
  Pieces::iterator last;
  try {
    last = split(end);
  } catch (...) {
    drop_end(begin);
    throw;
  }
  for (auto piece = begin; piece != last; ++piece) {
    if (piece->second.pins++ == 0) piece->second.holder = name;
  }
  ++begin->second.ends;
  ++last->second.ends;
}

void PinnedRanges::unpin(std::uint64_t first, std::uint64_t end) noexcept {
  const std::lock_guard lock(mutex_);
  const auto begin = pieces_.find(first);
  const auto last = pieces_.find(end);
  for (auto piece = begin; piece != last; ++piece) {
    if (--piece->second.pins == 0) piece->second.holder.reset();
  }
  --begin->second.ends;
  --last->second.ends;
  drop_end(last);
  drop_end(begin);
}

const std::string* PinnedRanges::find(const Unchanged&, std::uint64_t first,
                                      std::uint64_t end) const noexcept {
  auto piece = pieces_.upper_bound(first);
  if (piece != pieces_.begin()) --piece;
  // At most one piece without a pin comes before one that has.
  for (; piece != pieces_.end() && piece->first < end; ++piece) {
    if (piece->second.pins != 0) return piece->second.holder.get();
  }
  return nullptr;
}

}  // namespace detail

MemoryPin::~MemoryPin() {
  if (ranges_) ranges_->unpin(first_, end_);
}

}  // namespace vmspace
