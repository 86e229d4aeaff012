// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <utility>

#include "vmspace/allocator/interval_tree.hpp"

#include "os/page_size.hpp"
#include "os/reserved_addresses.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::base_page_size;
using detail::fail_os;
using detail::kernel;

struct VMSPACE_HIDDEN HostArena::State {
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (reserved != nullptr) kernel().munmap(reserved, reserved_size);
  }

  std::byte* data = nullptr;
  std::uint64_t size = 0;
  std::uint64_t guest_base = 0;
  void* reserved = nullptr;
  std::uint64_t reserved_size = 0;
  std::mutex mutex;
  IntervalTree<> taken;  ///< the offsets that mappings have
};

Result<HostArena> HostArena::reserve(const ArenaOptions& options) {
  constexpr const char* operation = "HostArena::reserve";
  const std::uint64_t base = options.guest_base;
  if (options.size == 0) {
    return fail(
        {.code = Errc::zero_size, .operation = operation, .second = Operand::address(base)});
  }
  for (const std::uint64_t value : {options.size, base}) {
    if (value % base_page_size() != 0) {
      return fail({.code = Errc::misaligned,
                   .operation = operation,
                   .first = Operand::size(value),
                   .second = Operand::size(base_page_size()),
                   .reason = "size, guest base and the page size"});
    }
  }
  const std::uint64_t align = options.align == 0 ? detail::huge_page_size() : options.align;
  if (!std::has_single_bit(align)) {
    return fail(
        {.code = Errc::bad_alignment, .operation = operation, .first = Operand::size(align)});
  }
  if (options.size > detail::size_limit || align > detail::size_limit) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::size(std::max(options.size, align)),
                 .second = Operand::size(detail::size_limit)});
  }
  auto state = std::make_shared<State>();
  const std::uint64_t outer = options.size + align;
  void* const address = detail::reserve_addresses(nullptr, outer, 0);
  if (address == MAP_FAILED) return fail_os(operation, Operand::size(outer), "mmap");
  state->reserved = address;
  state->reserved_size = outer;
  const std::uint64_t skip = (base - reinterpret_cast<std::uintptr_t>(address)) & (align - 1);
  state->data = static_cast<std::byte*>(address) + skip;
  state->size = options.size;
  state->guest_base = options.guest_base;
  return HostArena(std::move(state));
}

std::byte* HostArena::data() const noexcept {
  return state_->data;
}
std::uint64_t HostArena::size() const noexcept {
  return state_->size;
}
std::uint64_t HostArena::guest_base() const noexcept {
  return state_->guest_base;
}

Result<void> HostArena::claim(std::uint64_t offset, std::uint64_t size) const {
  constexpr const char* operation = "HostArena::claim";
  const auto place = Range::from_base_size(offset, size);
  if (!place || place->max() >= state_->size) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::span(offset, size),
                 .second = Operand::span(0, state_->size),
                 .reason = "offsets in the arena"});
  }
  const std::lock_guard lock(state_->mutex);
  if (auto ok = state_->taken.insert(*place); !ok) {
    return fail({.code = Errc::overlap,
                 .operation = operation,
                 .first = ok.error().first,
                 .second = ok.error().second,
                 .reason = "offsets in the arena"});
  }
  return {};
}

void HostArena::release(std::uint64_t offset, std::uint64_t size) const noexcept {
  const std::lock_guard lock(state_->mutex);
  static_cast<void>(state_->taken.erase(*Range::from_base_size(offset, size)));
}

}  // namespace vmspace
