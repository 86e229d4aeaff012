// SPDX-License-Identifier: Apache-2.0
//
// A range of guest memory in the slots of KVM: a slot for each piece, and what KVM has of it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "vmm/kvm_pieces.hpp"

namespace vmspace::detail {

/// The numbers that slots may have.
struct KvmSlotNumbers {
  RangePool pool;
  std::uint32_t limit;  ///< KVM has those below
  KvmAddressSpace address_space;
};

/// The pieces of a known range. Each leases its slot number for as long as KVM may have the slot:
/// of a slot that KVM still has when the mapping is destroyed, the number stays taken.
class KvmMapping {
 public:
  /// What KVM has of a piece.
  enum class Shown : std::uint8_t { no, yes, logged };

  /// Leases as many numbers as the memory has pieces; nothing is shown yet. `limit_exceeded` when
  /// there are too few.
  [[nodiscard]] static Result<KvmMapping> make(const KvmMemory& memory,
                                               const KvmSlotNumbers& numbers,
                                               const char* operation);

  KvmMapping(KvmMapping&&) noexcept = default;
  KvmMapping& operator=(KvmMapping&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(cut_, other.cut_);
    std::swap(pieces_, other.pieces_);
    std::swap(kept_, other.kept_);
    std::swap(is_leftover_, other.is_leftover_);
    std::swap(address_space_, other.address_space_);
    return *this;
  }
  ~KvmMapping();

  /// Keeps a region mapped for as long as this mapping lives; for ever, if KVM has any of it then.
  void keep(MemoryRegionPtr region) {
    kept_ = std::make_unique<Kept>(Kept{.region = std::move(region)});
  }
  /// The region that it keeps; null for memory that the user keeps.
  [[nodiscard]] const MemoryRegion* region() const noexcept {
    return kept_ == nullptr ? nullptr : kept_->region.get();
  }
  /// It is shown in part, and whoever asked for it was told that it is not shown at all.
  void set_leftover() noexcept { is_leftover_ = true; }
  [[nodiscard]] bool is_leftover() const noexcept { return is_leftover_; }

  /// How many slots it has.
  [[nodiscard]] std::size_t size() const noexcept { return pieces_.size(); }
  /// The slots that KVM has.
  [[nodiscard]] std::vector<KvmSlot> slots() const;
  /// How all of it is shown; nothing when an earlier failure has left it in part.
  [[nodiscard]] std::optional<Shown> shown() const noexcept;
  /// Whether KVM logs any piece.
  [[nodiscard]] bool is_logged() const noexcept;
  /// Whether KVM has every piece, with or without its log.
  [[nodiscard]] bool is_whole() const noexcept;

  /// Has KVM show all pieces in this way. When KVM refuses one (`os`), those before it are put
  /// back, unless an earlier failure had left the range in part: then this call goes as far as it
  /// can.
  [[nodiscard]] Result<void> show(int vm_fd, Shown to, const char* operation) noexcept;
  /// Deletes every slot that KVM lets go, whatever it says of the others.
  void take_away(int vm_fd) noexcept;
  /// What KVM has logged; it forgets it unless it clears logs only when it is told to (`manual`).
  /// See KvmMemslots::read_dirty_log().
  [[nodiscard]] Result<KvmDirtyLog> read_log(int vm_fd, bool manual, const char* operation);
  /// What KVM has logged, and is told to forget; see KvmMemslots::fetch_dirty_log().
  [[nodiscard]] Result<KvmDirtyLog> fetch_log(int vm_fd, bool manual, const char* operation);
  /// Has KVM forget the pages whose bits are set, from the `first`-th word of the range's log; see
  /// KvmMemslots::clear_dirty_log().
  [[nodiscard]] Result<void> clear_log(int vm_fd, std::uint64_t first,
                                       std::span<const std::uint64_t> words, const char* operation);

  /// The first broken rule, or null.
  [[nodiscard]] const char* broken_rule() const noexcept;

 private:
  struct Piece {
    Lease number;
    Shown shown = Shown::no;
    bool log_lost = false;  ///< KVM forgot what it had logged: all of it counts as dirty
  };

  /// Made beforehand, since a destructor must not allocate.
  struct Kept {
    MemoryRegionPtr region;
    Kept* before = nullptr;  ///< for keep_for_ever()
  };

  KvmMapping(const KvmMemory& memory, KvmAddressSpace address_space) noexcept
      : memory_(memory), cut_(memory), address_space_(address_space) {}

  /// What KVM calls the slot of a piece.
  [[nodiscard]] std::uint32_t slot_of(const Piece& piece) const noexcept {
    return static_cast<std::uint32_t>(address_space_) << 16 |
           static_cast<std::uint32_t>(piece.number.range().min());
  }

  /// The words that the piece has in the log of the range.
  struct Words {
    std::uint64_t first;
    std::uint64_t count;
  };
  [[nodiscard]] Words words_of(std::size_t index) const noexcept;
  [[nodiscard]] bool clear_piece(int vm_fd, std::size_t index, std::uint64_t first,
                                 std::span<const std::uint64_t> words) noexcept;
  [[nodiscard]] bool show_piece(int vm_fd, std::size_t index, Shown to, bool log_lost) noexcept;
  [[nodiscard]] tl::unexpected<Error> refused(std::size_t index, int error, const char* operation,
                                              const char* reason) const noexcept;

  KvmMemory memory_;
  KvmPieces cut_;
  std::vector<Piece> pieces_;
  std::unique_ptr<Kept> kept_;
  bool is_leftover_ = false;
  KvmAddressSpace address_space_;
};

}  // namespace vmspace::detail
