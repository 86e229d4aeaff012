// SPDX-License-Identifier: Apache-2.0

#include "vmm/kvm_mapping.hpp"

#include <linux/kvm.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "os/system_calls.hpp"
#include "vmm/keep_for_ever.hpp"

namespace vmspace::detail {

Result<KvmMapping> KvmMapping::make(const KvmMemory& memory, const KvmSlotNumbers& numbers,
                                    const char* operation) {
  KvmMapping mapping(memory, numbers.address_space);
  const std::uint64_t count = mapping.cut_.count();
  const std::string owner =
      "guest memory " + operand_text(Operand::span(memory.base.value(), memory.size));
  mapping.pieces_.reserve(std::min<std::uint64_t>(count, numbers.limit));
  while (mapping.pieces_.size() < count) {
    auto number = numbers.pool.acquire({.size = 1, .max = numbers.limit - 1}, owner);
    if (!number) {
      return fail({.code = Errc::limit_exceeded,
                   .operation = operation,
                   .first = Operand::number(count),
                   .second = Operand::number(mapping.pieces_.size()),
                   .reason = "the range needs more slots than there are slot numbers left"});
    }
    mapping.pieces_.push_back({.number = std::move(*number)});
  }
  return mapping;
}

KvmMapping::~KvmMapping() {
  bool is_shown = false;
  for (Piece& piece : pieces_) {
    if (piece.shown == Shown::no) continue;
    piece.number.abandon();
    is_shown = true;
  }
  if (is_shown && kept_ != nullptr) keep_for_ever(std::move(kept_));
}

std::vector<KvmSlot> KvmMapping::slots() const {
  std::vector<KvmSlot> found;
  found.reserve(pieces_.size());
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (pieces_[i].shown == Shown::no) continue;
    const KvmMemory part = cut_[i];
    found.push_back({.number = slot_of(pieces_[i]), .range = {part.base, part.size}});
  }
  return found;
}

std::optional<KvmMapping::Shown> KvmMapping::shown() const noexcept {
  const Shown first = pieces_.front().shown;
  const auto differs = [first](const Piece& piece) { return piece.shown != first; };
  if (std::ranges::any_of(pieces_, differs)) return std::nullopt;
  return first;
}

bool KvmMapping::is_logged() const noexcept {
  return std::ranges::count(pieces_, Shown::logged, &Piece::shown) != 0;
}

bool KvmMapping::is_whole() const noexcept {
  return std::ranges::count(pieces_, Shown::no, &Piece::shown) == 0;
}

tl::unexpected<Error> KvmMapping::refused(std::size_t index, int error, const char* operation,
                                          const char* reason) const noexcept {
  // The text is short enough for std::string to hold it without allocating.
  const KvmMemory part = cut_[index];
  return fail({.code = Errc::os,
               .operation = operation,
               .first = Operand::span(part.base.value(), part.size),
               .reason = reason,
               .os_errno = error,
               .text = "slot " + std::to_string(slot_of(pieces_[index]))});
}

Result<void> KvmMapping::show(int vm_fd, Shown to, const char* operation) noexcept {
  const std::optional<Shown> from = shown();
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    // A log begins empty. Where it goes on after having been off, that would be a lie.
    if (show_piece(vm_fd, i, to, !from)) continue;
    const int error = errno;
    bool put_back = from.has_value();
    for (std::size_t before = i; from && before-- > 0;)
      put_back &= show_piece(vm_fd, before, *from, true);
    if (put_back)
      return refused(i, error, operation, "KVM_SET_USER_MEMORY_REGION refused this slot");
    return refused(i, error, operation,
                   is_whole() ? "KVM_SET_USER_MEMORY_REGION refused this slot; the log is now on "
                                "only in part: start or stop it again"
                              : "KVM_SET_USER_MEMORY_REGION refused this slot; the range is now "
                                "shown only in part: clear() it");
  }
  return {};
}

void KvmMapping::take_away(int vm_fd) noexcept {
  for (std::size_t i = 0; i < pieces_.size(); ++i)
    static_cast<void>(show_piece(vm_fd, i, Shown::no, false));
}

/// Shows one piece, unless it is shown in this way; false, with errno, when KVM refuses.
/// `log_lost`: a log that begins here continues one that KVM has forgotten.
bool KvmMapping::show_piece(int vm_fd, std::size_t index, Shown to, bool log_lost) noexcept {
  Piece& piece = pieces_[index];
  if (piece.shown == to) return true;
  const KvmMemory part = cut_[index];
  kvm_userspace_memory_region region{};
  region.slot = slot_of(piece);
  region.flags = (part.read_only ? KVM_MEM_READONLY : 0u) |
                 (to == Shown::logged ? KVM_MEM_LOG_DIRTY_PAGES : 0u);
  region.guest_phys_addr = part.base.value();
  region.memory_size = to == Shown::no ? 0 : part.size;  // size 0 deletes the slot
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(part.host_address);
  if (kernel().ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0) return false;
  piece.shown = to;
  piece.log_lost = to == Shown::logged && log_lost;
  return true;
}

const char* KvmMapping::broken_rule() const noexcept {
  if (pieces_.empty()) return "a known range must have at least one slot";
  const auto has_number = [](const Piece& piece) {
    return piece.number.is_held() && piece.number.range().min() == piece.number.range().max();
  };
  if (!std::ranges::all_of(pieces_, has_number))
    return "every slot must hold the lease of one number";
  return nullptr;
}

}  // namespace vmspace::detail
