// SPDX-License-Identifier: Apache-2.0
//
// The pinned ranges of a file, or of a mapping of anonymous memory.
//
// Pins may overlap, so they are kept as pieces that are covered by so many of them:
//
//   pins        |---- a ----|               |- c -|
//                     |---- b ----|
//   pieces      |  1  |  2  |  1  |    0    |  1  |  0     covered by
//   ends        1     1     1     1         1     1        pins that begin or end there
//
// A boundary goes when no pin begins or ends there: to unpin, nothing need ever be split.
//
// The claims of those who handle page faults (fault_owner.hpp) are kept here as well, since a discard
// has to know both, and nothing may be pinned or claimed while it runs. Claims don't overlap.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

class FaultOwner;

/// Invariant: a piece begins at each boundary, and no two pieces without a pin are neighbours.
///
/// Threads: every call may be made from any thread.
class PinnedRanges {
 public:
  /// Held while memory is discarded: nothing is pinned or unpinned meanwhile.
  using Unchanged = std::unique_lock<std::mutex>;

  /// Pins [first, end), which is not empty, unless it is claimed by an owner who does not allow that:
  /// then gives its name, else null. Allocates, strongly exception-safe. O(log n) and the boundaries
  /// and claims within the range.
  [[nodiscard]] const char* pin(std::uint64_t first, std::uint64_t end, std::string_view holder);
  /// Undoes a pin().
  void unpin(std::uint64_t first, std::uint64_t end) noexcept;

  [[nodiscard]] Unchanged unchanged() const { return Unchanged(mutex_); }
  /// The holder of a pin in [first, end), or null. Valid while `held` is. O(log n).
  [[nodiscard]] const std::string* find(const Unchanged& held, std::uint64_t first,
                                        std::uint64_t end) const noexcept;

  /// Claims [first, end), which is not empty, unless another claim overlaps it: then gives its owner,
  /// else null. Allocates, strongly exception-safe. O(log n).
  [[nodiscard]] const FaultOwner* claim(std::uint64_t first, std::uint64_t end, FaultOwner& owner);
  /// As claim(); but where exactly this is claimed already, and nobody shares it yet, `watcher` does,
  /// if `admit(owner)` says so. Errors: those of admit().
  [[nodiscard]] Result<const FaultOwner*> share(
      std::uint64_t first, std::uint64_t end, FaultOwner& watcher,
      const std::function<Result<bool>(FaultOwner&)>& admit);
  /// Undoes the claim of `owner` that begins there, or its share of one.
  void unclaim(std::uint64_t first, FaultOwner& owner) noexcept;
  /// The name of an owner for whom `matters` is true and whose claim overlaps [first, end), or null.
  /// O(log n), and the claims within the range.
  [[nodiscard]] const char* claimed_by(std::uint64_t first, std::uint64_t end,
                                       bool (*matters)(const FaultOwner&)) const;
  /// Calls `discard()` between begin_discard() and end_discard() of all whose claims overlap
  /// [first, end); gives its error or theirs.
  [[nodiscard]] Result<void> discard_claimed(const Unchanged& held, std::uint64_t first,
                                             std::uint64_t end,
                                             const std::function<Result<void>()>& discard) const;

 private:
  struct Claim {
    std::uint64_t end;
    FaultOwner* owner;
    FaultOwner* watcher = nullptr;  ///< who shares it, or null
  };
  struct Piece {
    std::size_t pins = 0;  ///< that cover it
    std::size_t ends = 0;  ///< of pins, at its beginning
    /// Who pinned it first; kept as long as anybody pins it.
    std::shared_ptr<const std::string> holder = {};
  };
  using Pieces = std::map<std::uint64_t, Piece>;
  using Claims = std::map<std::uint64_t, Claim>;

  [[nodiscard]] Pieces::iterator split(std::uint64_t at);
  void drop_end(Pieces::iterator piece) noexcept;
  /// The first claim that ends behind `first`.
  [[nodiscard]] Claims::const_iterator first_claim(std::uint64_t first) const noexcept;

  mutable std::mutex mutex_;
  Pieces pieces_;
  Claims claims_;
};

}  // namespace vmspace::detail
