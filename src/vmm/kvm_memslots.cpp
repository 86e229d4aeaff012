// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/kvm_memslots.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/stat.h>

#include <cassert>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "os/argument_checks.hpp"
#include "os/descriptor.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"
#include "vmm/kvm_mapping.hpp"
#include "vmm/kvm_memslots_state.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;
using detail::require_multiple;
using Mapping = detail::KvmMapping;
using Shown = Mapping::Shown;

namespace {

/// What KVM says of an extension.
Result<int> ask(const detail::Descriptor& vm, std::uintptr_t extension, Operand which) {
  const int answer =
      kernel().ioctl(vm.value(), KVM_CHECK_EXTENSION, reinterpret_cast<void*>(extension));
  if (answer < 0) return fail_os("KvmMemslots::create", which, "KVM_CHECK_EXTENSION");
  return answer;
}

}  // namespace

KvmMemslots::KvmMemslots(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
KvmMemslots::KvmMemslots(KvmMemslots&&) noexcept = default;

KvmMemslots& KvmMemslots::operator=(KvmMemslots&& other) noexcept {
  if (this == &other) return *this;
  clear_all();
  state_ = std::move(other.state_);
  return *this;
}

KvmMemslots::~KvmMemslots() {
  clear_all();
}

Result<KvmMemslots> KvmMemslots::create(int vm_fd, std::optional<RangePool> slot_numbers,
                                        KvmAddressSpace address_space) {
  constexpr const char* operation = "KvmMemslots::create";
  if (address_space > KvmAddressSpace::smm) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(static_cast<std::uint64_t>(address_space)),
                 .reason = "the address space must be one of the named values"});
  }
  const Operand which = vm_fd < 0 ? Operand{} : Operand::number(static_cast<std::uint64_t>(vm_fd));
  detail::Descriptor vm(kernel().fcntl(vm_fd, F_DUPFD_CLOEXEC, 0));
  if (vm.value() < 0) return fail_os(operation, which, "duplicating vm_fd");
  // /dev/kvm itself answers all that is asked here. A machine is an anonymous inode.
  struct stat kind {};
  if (kernel().fstat(vm.value(), &kind) != 0) return fail_os(operation, which, "fstat");
  if (S_ISCHR(kind.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = which,
                 .reason = "vm_fd must come from KVM_CREATE_VM, not from opening a device"});
  }
  if (address_space != KvmAddressSpace::normal) {
    const int spaces = VMSPACE_TRY(ask(vm, KVM_CAP_MULTI_ADDRESS_SPACE, which));
    if (spaces <= static_cast<int>(address_space)) {
      return fail({.code = Errc::unsupported,
                   .operation = operation,
                   .reason = "this KVM has no address space for system management mode"});
    }
  }
  const int reported = VMSPACE_TRY(ask(vm, KVM_CAP_NR_MEMSLOTS, which));
  // A kernel that does not know the extension answers 0 and holds 32.
  const std::uint32_t limit = reported == 0 ? 32 : static_cast<std::uint32_t>(reported);
  const int read_only = VMSPACE_TRY(ask(vm, KVM_CAP_READONLY_MEM, which));
  if (!slot_numbers) {
    slot_numbers = VMSPACE_TRY_IN(
        operation, RangePool::create("KVM slots", {*Range::from_base_size(0, limit)}));
  }
  return KvmMemslots(std::unique_ptr<State>(
      new State{.vm = std::move(vm),
                .can_read_only = read_only > 0,
                .numbers = {*std::move(slot_numbers), limit, address_space}}));
}

Result<void> KvmMemslots::check_not_moved_from(const char* operation) const {
  if (state_) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .reason = "the object has been moved from"});
}

Result<Mapping*> KvmMemslots::find(const GuestRange& range, const char* operation) const {
  VMSPACE_TRY(check_not_moved_from(operation));
  const auto bounds = range.range();
  if (!bounds || !state_->mappings.get(*bounds)) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "no set() has shown exactly this range"});
  }
  return state_->mappings.find_value(bounds->min());
}

/// What is wrong with a request, whatever else is shown.
Result<void> KvmMemslots::check(const KvmMemory& memory, const char* operation) const {
  const auto host = reinterpret_cast<std::uintptr_t>(memory.host_address);
  const Range range =
      VMSPACE_TRY_IN(operation, Range::from_base_size(memory.base.value(), memory.size));
  if (host == 0) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "the host address is a null pointer"});
  }
  if (memory.size - 1 > std::numeric_limits<std::uint64_t>::max() - host) {
    return fail({.code = Errc::overflow,
                 .operation = operation,
                 .first = Operand::address(host),
                 .second = Operand::size(memory.size),
                 .reason = "host_address + size must not exceed 2^64"});
  }
  const std::uint64_t page = detail::base_page_size();
  VMSPACE_TRY(require_multiple(operation, Operand::address(memory.base.value()), page,
                               "the base must be a multiple of the host's page size"));
  VMSPACE_TRY(require_multiple(operation, Operand::size(memory.size), page,
                               "the size must be a multiple of the host's page size"));
  VMSPACE_TRY(require_multiple(operation, Operand::address(host), page,
                               "the host address must be a multiple of the host's page size"));
  if (memory.read_only && !state_->can_read_only) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "this KVM has no read-only slots"});
  }
  return {};
}

Result<void> KvmMemslots::set(const KvmMemory& memory) {
  return show(memory, nullptr, "KvmMemslots::set");
}

Result<void> KvmMemslots::show(const KvmMemory& memory, MemoryRegionPtr region,
                               const char* operation) {
  VMSPACE_TRY(check_not_moved_from(operation));
  VMSPACE_TRY(check(memory, operation));
  const Range range = VMSPACE_TRY(Range::from_base_size(memory.base.value(), memory.size));
  Mapping made = VMSPACE_TRY(Mapping::make(memory, state_->numbers, operation));
  if (region != nullptr) made.keep(std::move(region));
  const auto inserted = state_->mappings.insert(range, std::move(made));
  if (!inserted) {
    Error error = inserted.error().in(operation);
    if (state_->mappings.get(range)) {
      error.reason =
          "the range is already set: use start_dirty_log() and stop_dirty_log() for its log, and "
          "clear() and set() to change anything else";
    }
    return fail(error);
  }
  Mapping& mapping = **inserted;
  state_->used += static_cast<std::uint32_t>(mapping.size());
  auto done =
      mapping.show(state_->vm.value(), memory.log_dirty ? Shown::logged : Shown::yes, operation);
  if (!done) {
    if (mapping.shown() == Shown::no) {
      forget({memory.base, memory.size});
    } else if (mapping.region() != nullptr) {
      mapping.set_leftover();
    }
  }
  return done;
}

Result<void> KvmMemslots::set(const MemoryRegion& region) {
  VMSPACE_TRY(
      detail::require_readable(region.protection(), region.guest_range(), "KvmMemslots::set"));
  return set(KvmMemory{.base = region.base(),
                       .size = region.size(),
                       .host_address = region.host_base(),
                       .read_only = !allows(region.protection(), Protection::write)});
}

Result<void> KvmMemslots::clear(const GuestRange& range) {
  constexpr const char* operation = "KvmMemslots::clear";
  Mapping* const mapping = VMSPACE_TRY(find(range, operation));
  if (mapping->region() != nullptr) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "the range is a section's: use remove(), which keeps its dirty log",
                 .text = mapping->region()->description().name()});
  }
  VMSPACE_TRY(mapping->show(state_->vm.value(), Shown::no, operation));
  forget(range);
  return {};
}

void KvmMemslots::clear_all() noexcept {
  if (!state_) return;
  // A failure can no longer be reported. KVM keeps such a slot until the machine is gone, and the
  // number stays taken.
  for (const auto& entry : state_->mappings) {
    Mapping& mapping = *state_->mappings.find_value(entry.range.min());
    mapping.take_away(state_->vm.value());
  }
  if (state_->manual_protect) static_cast<void>(state_->set_manual_protect(false));
}

void KvmMemslots::forget(const GuestRange& range) noexcept {
  const auto erased = state_->mappings.erase(*range.range());
  assert(erased && *erased);
  state_->used -= static_cast<std::uint32_t>((*erased)->size());
}

Result<std::vector<KvmSlot>> KvmMemslots::slots(const GuestRange& range) const {
  const Mapping* const mapping = VMSPACE_TRY(find(range, "KvmMemslots::slots"));
  return mapping->slots();
}

std::uint32_t KvmMemslots::limit() const noexcept {
  return state_ ? state_->numbers.limit : 0;
}

std::uint32_t KvmMemslots::used() const noexcept {
  return state_ ? state_->used : 0;
}

Result<void> KvmMemslots::check_invariants() const noexcept {
  const auto broken = [](const char* rule) {
    return fail(
        {.code = Errc::corrupt, .operation = "KvmMemslots::check_invariants", .reason = rule});
  };
  if (!state_) return {};
  std::size_t count = 0;
  for (const auto& entry : state_->mappings) {
    if (entry.value == nullptr) return broken("a known range must have its memory and slots");
    if (const char* rule = entry.value->broken_rule()) return broken(rule);
    count += entry.value->size();
  }
  if (count != state_->used) return broken("used() must be the number of slots of all ranges");
  return {};
}

}  // namespace vmspace
