// SPDX-License-Identifier: Apache-2.0

#include "host/pinned_ranges.hpp"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_pin.hpp"

#include "host/fault_owner.hpp"

namespace vmspace {

namespace detail {

namespace {

/// Between begin_discard() and end_discard() of one owner, however it is left.
class Discarding {
 public:
  Discarding(FaultOwner& owner, std::uint64_t first, std::uint64_t end) noexcept
      : owner_(owner), first_(first), end_(end) {}
  Discarding(const Discarding&) = delete;
  Discarding& operator=(const Discarding&) = delete;
  ~Discarding() {
    if (has_begun_) owner_.end_discard(first_, end_, has_discarded);
  }
  [[nodiscard]] Result<void> begin() {
    VMSPACE_TRY(owner_.begin_discard(first_, end_));
    has_begun_ = true;
    return {};
  }

  bool has_discarded = false;

 private:
  FaultOwner& owner_;
  std::uint64_t first_;
  std::uint64_t end_;
  bool has_begun_ = false;
};

}  // namespace

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

const FaultOwner* PinnedRanges::claim(std::uint64_t first, std::uint64_t end, FaultOwner& owner) {
  const std::lock_guard lock(mutex_);
  const auto other = first_claim(first);
  if (other != claims_.end() && other->first < end) return other->second.owner;
  claims_.emplace(first, Claim{end, &owner});
  return nullptr;
}

Result<const FaultOwner*> PinnedRanges::share(
    std::uint64_t first, std::uint64_t end, FaultOwner& watcher,
    const std::function<Result<bool>(FaultOwner&)>& admit) {
  const std::lock_guard lock(mutex_);
  const auto other = first_claim(first);
  if (other == claims_.end() || other->first >= end) {
    claims_.emplace(first, Claim{end, &watcher});
    return nullptr;
  }
  if (other->first != first || other->second.end != end || other->second.watcher != nullptr)
    return other->second.owner;
  const bool is_admitted = VMSPACE_TRY(admit(*other->second.owner));
  if (!is_admitted) return other->second.owner;
  claims_.find(first)->second.watcher = &watcher;
  return nullptr;
}

void PinnedRanges::unclaim(std::uint64_t first, FaultOwner& owner) noexcept {
  const std::lock_guard lock(mutex_);
  const auto claim = claims_.find(first);
  FaultOwner* const watcher = std::exchange(claim->second.watcher, nullptr);
  if (watcher == &owner) {
    claim->second.owner->dismiss();
    return;
  }
  owner.end_claim(watcher != nullptr);
  if (watcher == nullptr) {
    claims_.erase(claim);
    return;
  }
  claim->second.owner = watcher;
  watcher->inherit();
}

PinnedRanges::Claims::const_iterator PinnedRanges::first_claim(std::uint64_t first) const noexcept {
  auto claim = claims_.upper_bound(first);
  if (claim != claims_.begin() && std::prev(claim)->second.end > first) --claim;
  return claim;
}

const char* PinnedRanges::claimed_by(std::uint64_t first, std::uint64_t end,
                                     bool (*matters)(const FaultOwner&)) const {
  const std::lock_guard lock(mutex_);
  for (auto claim = first_claim(first); claim != claims_.end() && claim->first < end; ++claim) {
    if (matters(*claim->second.owner)) return claim->second.owner->name();
  }
  return nullptr;
}

Result<void> PinnedRanges::discard_claimed(const Unchanged& held, std::uint64_t first,
                                           std::uint64_t end,
                                           const std::function<Result<void>()>& discard) const {
  const auto claim = first_claim(first);
  if (claim == claims_.end() || claim->first >= end) return discard();
  const auto [claim_end, owner, watcher] = claim->second;
  const std::uint64_t from = std::max(first, claim->first);
  const std::uint64_t to = std::min(end, claim_end);
  Discarding by_owner(*owner, from, to);
  VMSPACE_TRY(by_owner.begin());
  std::optional<Discarding> by_watcher;
  if (watcher != nullptr) VMSPACE_TRY(by_watcher.emplace(*watcher, from, to).begin());
  const auto discarded = to == end ? discard() : discard_claimed(held, to, end, discard);
  by_owner.has_discarded = discarded.has_value();
  if (by_watcher) by_watcher->has_discarded = discarded.has_value();
  return discarded;
}

}  // namespace detail

MemoryPin::~MemoryPin() {
  if (ranges_) ranges_->unpin(first_, end_);
}

}  // namespace vmspace
