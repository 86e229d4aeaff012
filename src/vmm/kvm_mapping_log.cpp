// SPDX-License-Identifier: Apache-2.0
//
// The dirty logs of the pieces as the one log of their range.

#include <linux/kvm.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/base/try.hpp"

#include "os/page_size.hpp"
#include "os/system_calls.hpp"
#include "vmm/kvm_mapping.hpp"

namespace vmspace::detail {

namespace {

constexpr std::uint64_t all_set = ~std::uint64_t{0};

std::uint64_t words_for(std::uint64_t size) noexcept {
  return (size / base_page_size() - 1) / 64 + 1;
}

/// The bits of the last word of a log of `size` bytes.
std::uint64_t last_word(std::uint64_t size) noexcept {
  const std::uint64_t rest = size / base_page_size() % 64;
  return rest == 0 ? all_set : all_set >> (64 - rest);
}

bool is_all_set(std::span<const std::uint64_t> words, std::uint64_t size) noexcept {
  const auto is_full = [](std::uint64_t word) { return word == all_set; };
  return std::ranges::all_of(words.first(words.size() - 1), is_full) &&
         words.back() == last_word(size);
}

}  // namespace

KvmMapping::Words KvmMapping::words_of(std::size_t index) const noexcept {
  // Each piece has words of its own; see KvmPieces.
  const KvmMemory part = cut_[index];
  const std::uint64_t offset = part.base.value() - memory_.base.value();
  return {.first = offset / base_page_size() / 64, .count = words_for(part.size)};
}

Result<KvmDirtyLog> KvmMapping::read_log(int vm_fd, bool manual, const char* operation) {
  KvmDirtyLog log{.base = memory_.base,
                  .unit = base_page_size(),
                  .bits = std::vector<std::uint64_t>(words_for(memory_.size))};
  const auto words = [&](std::size_t index) {
    const auto [first, count] = words_of(index);
    return std::span(log.bits).subspan(first, count);
  };
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    kvm_dirty_log request{};
    request.slot = slot_of(pieces_[i]);
    request.dirty_bitmap = words(i).data();
    if (kernel().ioctl(vm_fd, KVM_GET_DIRTY_LOG, &request) >= 0) continue;
    const int error = errno;
    // KVM has forgotten what it gave, and may have forgotten what it failed to give.
    for (std::size_t given = 0; given <= i && !manual; ++given)
      pieces_[given].log_lost = true;
    return refused(i, error, operation, "KVM_GET_DIRTY_LOG refused this slot");
  }
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (!pieces_[i].log_lost) continue;
    std::ranges::fill(words(i), all_set);
    words(i).back() = last_word(cut_[i].size);
  }
  return log;
}

Result<KvmDirtyLog> KvmMapping::fetch_log(int vm_fd, bool manual, const char* operation) {
  auto log = VMSPACE_TRY(read_log(vm_fd, manual, operation));
  for (std::size_t i = 0; manual && i < pieces_.size(); ++i) {
    if (clear_piece(vm_fd, i, 0, log.bits)) continue;
    const int error = errno;
    // KVM has forgotten these, and may have forgotten some of what it refused.
    for (std::size_t cleared = 0; cleared <= i; ++cleared)
      pieces_[cleared].log_lost = true;
    return refused(i, error, operation, "KVM_CLEAR_DIRTY_LOG refused this slot");
  }
  for (Piece& piece : pieces_)
    piece.log_lost = false;
  return log;
}

Result<void> KvmMapping::clear_log(int vm_fd, std::uint64_t first,
                                   std::span<const std::uint64_t> words, const char* operation) {
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (clear_piece(vm_fd, i, first, words)) continue;
    const int error = errno;
    return refused(i, error, operation, "KVM_CLEAR_DIRTY_LOG refused this slot");
  }
  return {};
}

/// Clears what `words`, from the `first`-th of the range, say of one piece; false, with errno, when
/// KVM refuses.
bool KvmMapping::clear_piece(int vm_fd, std::size_t index, std::uint64_t first,
                             std::span<const std::uint64_t> words) noexcept {
  const auto [own_first, own_count] = words_of(index);
  const std::uint64_t begin = std::max(first, own_first);
  const std::uint64_t end = std::min(first + words.size(), own_first + own_count);
  if (begin >= end) return true;
  const auto part = words.subspan(begin - first, end - begin);
  if (std::ranges::count(part, std::uint64_t{0}) == static_cast<std::ptrdiff_t>(part.size())) {
    return true;
  }
  const std::uint64_t size = cut_[index].size;
  const std::uint64_t pages = size / base_page_size();
  const std::uint64_t first_page = (begin - own_first) * 64;
  kvm_clear_dirty_log request{};
  request.slot = slot_of(pieces_[index]);
  request.first_page = first_page;
  request.num_pages = static_cast<std::uint32_t>(std::min(part.size() * 64, pages - first_page));
  // KVM only reads it.
  request.dirty_bitmap = const_cast<std::uint64_t*>(part.data());
  if (kernel().ioctl(vm_fd, KVM_CLEAR_DIRTY_LOG, &request) < 0) return false;
  if (part.size() == own_count && is_all_set(part, size)) pieces_[index].log_lost = false;
  return true;
}

}  // namespace vmspace::detail
