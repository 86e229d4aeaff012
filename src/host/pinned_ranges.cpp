// SPDX-License-Identifier: Apache-2.0

#include "host/pinned_ranges.hpp"

#include <algorithm>
#include <iterator>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_pin.hpp"

#include "host/fault_owner.hpp"

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

const char* PinnedRanges::pin(std::uint64_t first, std::uint64_t end, std::string_view holder) {
  const auto name = std::make_shared<const std::string>(holder);
  const std::lock_guard lock(mutex_);
  for (auto claim = first_claim(first); claim != claims_.end() && claim->first < end; ++claim) {
    if (!claim->second.owner->allows_pins()) return claim->second.owner->name();
  }
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
  return nullptr;
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

const char* PinnedRanges::claim(std::uint64_t first, std::uint64_t end, FaultOwner& owner) {
  const Unchanged held = unchanged();
  if (const FaultOwner* holder = find_claim(held, first, end)) return holder->name();
  claims_.emplace(first, Claim{end, &owner});
  return nullptr;
}

void PinnedRanges::unclaim(std::uint64_t first) noexcept {
  const std::lock_guard lock(mutex_);
  claims_.erase(first);
}

FaultOwner* PinnedRanges::find_claim(const Unchanged&, std::uint64_t first,
                                     std::uint64_t end) const noexcept {
  const auto claim = first_claim(first);
  return claim != claims_.end() && claim->first < end ? claim->second.owner : nullptr;
}

PinnedRanges::Claims::const_iterator PinnedRanges::first_claim(std::uint64_t first) const noexcept {
  auto claim = claims_.upper_bound(first);
  if (claim != claims_.begin() && std::prev(claim)->second.end > first) --claim;
  return claim;
}

FaultOwner* PinnedRanges::find_hindering_claim(const Unchanged& held, std::uint64_t first,
                                               std::uint64_t end) const noexcept {
  FaultOwner* owner = find_claim(held, first, end);
  for (auto next = claims_.upper_bound(first); owner != nullptr && owner->only_watches(); ++next)
    owner = next != claims_.end() && next->first < end ? next->second.owner : nullptr;
  return owner;
}

Result<void> PinnedRanges::discard_claimed(const Unchanged& held, std::uint64_t first,
                                           std::uint64_t end,
                                           const std::function<Result<void>()>& discard) const {
  const auto claim = first_claim(first);
  if (claim == claims_.end() || claim->first >= end) return discard();
  FaultOwner& owner = *claim->second.owner;
  const std::uint64_t from = std::max(first, claim->first);
  const std::uint64_t to = std::min(end, claim->second.end);
  VMSPACE_TRY(owner.begin_discard(from, to));
  const auto discarded = to == end ? discard() : discard_claimed(held, to, end, discard);
  owner.end_discard(from, to, discarded.has_value());
  return discarded;
}

}  // namespace detail

MemoryPin::~MemoryPin() {
  if (ranges_) ranges_->unpin(first_, end_);
}

}  // namespace vmspace
