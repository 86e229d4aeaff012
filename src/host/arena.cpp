// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/arena.hpp"

#include <sys/mman.h>

#include <atomic>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "os/page_size.hpp"
#include "os/reserved_addresses.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::base_page_size;
using detail::fail_os;
using detail::kernel;
using detail::require_multiple;
using detail::require_nonzero;
using detail::require_power_of_two;

struct VMSPACE_HIDDEN HostArena::State {
  explicit State(const RangePool& offsets) noexcept : parts(offsets) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (reserved != nullptr && !are_addresses_left) kernel().munmap(reserved, reserved_size);
  }

  std::byte* data = nullptr;
  std::uint64_t size = 0;
  std::uint64_t guest_base = 0;
  void* reserved = nullptr;
  std::uint64_t reserved_size = 0;
  std::atomic<bool> are_addresses_left = false;
  RangePool parts;
};

Result<HostArena> HostArena::reserve(const ArenaOptions& options) {
  constexpr const char* operation = "HostArena::reserve";
  const std::uint64_t base = options.guest_base;
  const std::uint64_t page = base_page_size();
  const std::uint64_t align = options.align == 0 ? detail::huge_page_size() : options.align;
  VMSPACE_TRY(require_nonzero(operation, options.size, Operand::address(base)));
  VMSPACE_TRY(require_multiple(operation, Operand::size(options.size), page,
                               "the size must be a multiple of the page size"));
  VMSPACE_TRY(require_multiple(operation, Operand::address(base), page,
                               "the guest base must be a multiple of the page size"));
  VMSPACE_TRY(require_power_of_two(operation, align));
  VMSPACE_TRY(detail::check_reservation(operation, options.size, align));
  const Range offsets = *Range::from_base_size(0, options.size);
  const RangePool parts = VMSPACE_TRY_IN(operation, RangePool::create("arena", {offsets}));
  auto state = std::make_shared<State>(parts);
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

const RangePool& HostArena::parts() const noexcept {
  return state_->parts;
}

void HostArena::leave_addresses() const noexcept {
  state_->are_addresses_left = true;
}

}  // namespace vmspace
