// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/kvm_memslots.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/stat.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/kvm_mapping.hpp"

namespace vmspace {

using detail::host_page_size;
using Mapping = detail::KvmMapping;
using Piece = Mapping::Piece;
using Shown = Mapping::Shown;

namespace {

/// Errors of a request by itself, or its range.
Result<Range> check(const KvmMemory& memory, const char* operation) {
  const Operand where = Operand::span(memory.base.value(), memory.size);
  const auto host = reinterpret_cast<std::uintptr_t>(memory.host_address);
  auto range = Range::from_base_size(memory.base.value(), memory.size);
  if (!range) {
    Error error = range.error();
    error.operation = operation;
    return fail(error);
  }
  if (host == 0) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = where,
                 .reason = "the host address is null"});
  }
  if (memory.size - 1 > std::numeric_limits<std::uint64_t>::max() - host) {
    return fail({.code = Errc::overflow,
                 .operation = operation,
                 .first = Operand::address(host),
                 .second = Operand::size(memory.size),
                 .reason = "the host address and the size"});
  }
  const std::uint64_t page = host_page_size();
  const auto misaligned = [&](Operand value, const char* reason) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = value,
                 .second = Operand::size(page),
                 .reason = reason});
  };
  if (!memory.base.is_aligned(page)) {
    return misaligned(Operand::address(memory.base.value()), "the base and the page size");
  }
  if (memory.size % page != 0) {
    return misaligned(Operand::size(memory.size), "the size and the page size");
  }
  if (host % page != 0) {
    return misaligned(Operand::address(host), "the host address and the page size");
  }
  return range;
}

tl::unexpected<Error> moved_from(const char* operation) {
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .reason = "the object has been moved from"});
}

/// What to say of a range whose pieces can't be brought back to one state.
const char* left_in_part(const std::vector<Piece>& pieces) {
  return std::ranges::count(pieces, Shown::no, &Piece::shown) != 0
             ? "KVM_SET_USER_MEMORY_REGION of this slot; the range is left in part: clear it"
             : "KVM_SET_USER_MEMORY_REGION of this slot; the log is left on in part: start or stop "
               "it again";
}

}  // namespace

class VMSPACE_HIDDEN KvmMemslots::State {
 public:
  static Result<std::unique_ptr<State>> create(int vm_descriptor);
  ~State();

  Result<void> set(const KvmMemory& memory);
  Result<void> clear(const Range& range);
  Result<void> switch_log(const Range& range, bool on, const char* operation);
  Result<KvmDirtyLog> fetch_log(const Range& range);

  /// The mapping of exactly this range, or null.
  [[nodiscard]] const Mapping* find(const Range& range) const noexcept {
    const auto entry = mappings_.get(range);
    return entry ? entry->value : nullptr;
  }
  [[nodiscard]] std::uint32_t limit() const noexcept { return limit_; }
  [[nodiscard]] std::uint32_t used() const noexcept { return used_; }
  /// The first broken rule, or null.
  [[nodiscard]] const char* broken_rule() const noexcept;

 private:
  State(detail::Descriptor vm, std::uint32_t limit, bool can_read_only)
      : vm_(std::move(vm)), limit_(limit), can_read_only_(can_read_only) {}

  Result<Mapping*> require(const Range& range, const char* operation);
  Result<void> switch_all(Mapping& mapping, Shown to, const char* operation) noexcept;
  bool switch_piece(Mapping& mapping, std::size_t index, Shown to, bool log_lost) noexcept;
  void forget(const Range& range) noexcept;

  detail::Descriptor vm_;
  std::uint32_t limit_;
  std::uint32_t used_ = 0;
  bool can_read_only_;
  IntervalTree<> numbers_;          // declared before the mappings, which give back to it
  IntervalTree<Mapping> mappings_;  // by guest physical addresses
};

Result<std::unique_ptr<KvmMemslots::State>> KvmMemslots::State::create(int vm_descriptor) {
  constexpr const char* operation = "KvmMemslots::create";
  const Operand which =
      vm_descriptor < 0 ? Operand{} : Operand::number(static_cast<std::uint64_t>(vm_descriptor));
  detail::Descriptor vm(detail::kernel().fcntl(vm_descriptor, F_DUPFD_CLOEXEC, 0));
  if (vm.value() < 0) return detail::fail_os(operation, which, "duplicating the VM's descriptor");
  // /dev/kvm itself answers all that is asked here. A machine is an anonymous inode.
  struct stat kind {};
  if (detail::kernel().fstat(vm.value(), &kind) != 0) {
    return detail::fail_os(operation, which, "fstat");
  }
  if (S_ISCHR(kind.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = which,
                 .reason = "the descriptor is a device's, not one that KVM_CREATE_VM gave"});
  }
  const auto extension = [&vm](std::uintptr_t which_one) {
    return detail::kernel().ioctl(vm.value(), KVM_CHECK_EXTENSION,
                                  reinterpret_cast<void*>(which_one));
  };
  const int reported = extension(KVM_CAP_NR_MEMSLOTS);
  if (reported < 0) return detail::fail_os(operation, which, "KVM_CHECK_EXTENSION");
  // A kernel that knows no such extension answers 0 and holds 32.
  const std::uint32_t limit = reported == 0 ? 32 : static_cast<std::uint32_t>(reported);
  const int read_only = extension(KVM_CAP_READONLY_MEM);  // asks `vm`, before it moves
  if (read_only < 0) return detail::fail_os(operation, which, "KVM_CHECK_EXTENSION");
  std::unique_ptr<State> state(new State(std::move(vm), limit, read_only > 0));
  if (auto ok = state->numbers_.insert(*Range::from_base_size(0, limit)); !ok) {
    return fail(ok.error());
  }
  return state;
}

KvmMemslots::State::~State() {
  for (const auto& entry : mappings_) {
    Mapping& mapping = *mappings_.find_value(entry.range.min());
    // Nobody can be told of a failure any more. KVM keeps such a slot until the machine is gone.
    for (std::size_t i = 0; i < mapping.pieces().size(); ++i)
      (void)switch_piece(mapping, i, Shown::no, false);
  }
}

Result<void> KvmMemslots::State::set(const KvmMemory& memory) {
  constexpr const char* operation = "KvmMemslots::set";
  const auto range = check(memory, operation);
  if (!range) return fail(range.error());
  if (memory.read_only && !can_read_only_) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = detail::operand(*range),
                 .reason = "this KVM has no read-only slots"});
  }
  const std::uint64_t count = Mapping::pieces_of(memory);
  if (count > limit_ - used_) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::number(count),
                 .second = Operand::number(limit_ - used_),
                 .reason = "slots needed, and slots left"});
  }

  Mapping made(memory, numbers_);
  made.split(count);
  if (auto ok = mappings_.insert(*range, std::move(made)); !ok) {
    Error error = ok.error();
    error.operation = operation;
    if (find(*range) != nullptr) {
      error.reason =
          "the range is known: start_dirty_log() and stop_dirty_log() switch its log, all else "
          "(read-only, the host address) takes clear() and set()";
    }
    return fail(error);
  }
  used_ += static_cast<std::uint32_t>(count);

  Mapping& mapping = *mappings_.find_value(range->min());
  auto done = switch_all(mapping, memory.log_dirty ? Shown::logged : Shown::yes, operation);
  if (!done && mapping.shown() == Shown::no) forget(*range);
  return done;
}

Result<Mapping*> KvmMemslots::State::require(const Range& range, const char* operation) {
  if (find(range) == nullptr) {
    return fail({.code = Errc::not_found, .operation = operation, .first = detail::operand(range)});
  }
  return mappings_.find_value(range.min());
}

Result<void> KvmMemslots::State::clear(const Range& range) {
  constexpr const char* operation = "KvmMemslots::clear";
  const auto mapping = require(range, operation);
  if (!mapping) return fail(mapping.error());
  if (auto ok = switch_all(**mapping, Shown::no, operation); !ok) return ok;
  forget(range);
  return {};
}

Result<void> KvmMemslots::State::switch_log(const Range& range, bool on, const char* operation) {
  const auto mapping = require(range, operation);
  if (!mapping) return fail(mapping.error());
  if (std::ranges::count((*mapping)->pieces(), Shown::no, &Piece::shown) != 0) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "an earlier failure has left the range in part: clear it"});
  }
  return switch_all(**mapping, on ? Shown::logged : Shown::yes, operation);
}

Result<KvmDirtyLog> KvmMemslots::State::fetch_log(const Range& range) {
  constexpr const char* operation = "KvmMemslots::fetch_dirty_log";
  const auto found = require(range, operation);
  if (!found) return fail(found.error());
  Mapping& mapping = **found;
  auto& pieces = mapping.pieces();
  if (const auto shown = mapping.shown(); shown != Shown::logged) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = shown ? "the dirty log of the range is not on"
                                 : "an earlier failure has left the range, or its log, in part"});
  }

  const std::uint64_t unit = host_page_size();
  const auto words_of = [unit](std::uint64_t size) { return (size / unit - 1) / 64 + 1; };
  KvmDirtyLog log{.base = mapping.memory().base,
                  .unit = unit,
                  .bits = std::vector<std::uint64_t>(words_of(mapping.memory().size))};
  // Pieces are cut at multiples of 64 pages from the base, so each has words of its own.
  const auto words = [&](std::size_t index) {
    const KvmMemory part = mapping.part(index);
    const std::uint64_t offset = part.base.value() - log.base.value();
    return std::span(log.bits).subspan(offset / unit / 64, words_of(part.size));
  };
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    kvm_dirty_log request{};
    request.slot = pieces[i].number;
    request.dirty_bitmap = words(i).data();
    if (detail::kernel().ioctl(vm_.value(), KVM_GET_DIRTY_LOG, &request) >= 0) continue;
    const int error = errno;
    // KVM has forgotten what it gave, and may have forgotten what it failed to give.
    for (std::size_t given = 0; given <= i; ++given)
      pieces[given].log_lost = true;
    const KvmMemory part = mapping.part(i);
    return fail({.code = Errc::os,
                 .operation = operation,
                 .first = Operand::span(part.base.value(), part.size),
                 .second = Operand::number(pieces[i].number),
                 .reason = "KVM_GET_DIRTY_LOG of this slot",
                 .os_errno = error});
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (!std::exchange(pieces[i].log_lost, false)) continue;
    std::ranges::fill(words(i), ~std::uint64_t{0});
    const std::uint64_t rest = mapping.part(i).size / unit % 64;
    if (rest != 0) words(i).back() >>= 64 - rest;
  }
  return log;
}

void KvmMemslots::State::forget(const Range& range) noexcept {
  const auto erased = mappings_.erase(range);
  assert(erased && *erased);
  used_ -= static_cast<std::uint32_t>((*erased)->pieces().size());
}

/// Brings all pieces to where they shall be. When KVM refuses one, those before it are put back,
/// unless an earlier failure had left the range in part: then this call only goes as far as it can.
Result<void> KvmMemslots::State::switch_all(Mapping& mapping, Shown to,
                                            const char* operation) noexcept {
  const auto& pieces = mapping.pieces();
  const std::optional<Shown> from = mapping.shown();
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    // A log begins empty. Where it goes on after having been off, that is a lie.
    if (switch_piece(mapping, i, to, !from)) continue;
    const int error = errno;
    bool whole = from.has_value();
    for (std::size_t back = i; from && back-- > 0;)
      whole &= switch_piece(mapping, back, *from, true);
    const KvmMemory part = mapping.part(i);
    return fail({.code = Errc::os,
                 .operation = operation,
                 .first = Operand::span(part.base.value(), part.size),
                 .second = Operand::number(pieces[i].number),
                 .reason = whole ? "KVM_SET_USER_MEMORY_REGION of this slot" : left_in_part(pieces),
                 .os_errno = error});
  }
  return {};
}

/// Brings one piece to where it shall be, if it is not there; false, and errno, when KVM refuses.
/// `log_lost`: a log that begins here continues one that KVM has forgotten.
bool KvmMemslots::State::switch_piece(Mapping& mapping, std::size_t index, Shown to,
                                      bool log_lost) noexcept {
  Piece& piece = mapping.pieces()[index];
  if (piece.shown == to) return true;
  const KvmMemory part = mapping.part(index);
  kvm_userspace_memory_region region{};
  region.slot = piece.number;
  region.flags = (part.read_only ? KVM_MEM_READONLY : 0u) |
                 (to == Shown::logged ? KVM_MEM_LOG_DIRTY_PAGES : 0u);
  region.guest_phys_addr = part.base.value();
  region.memory_size = to == Shown::no ? 0 : part.size;  // size 0 deletes the slot
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(part.host_address);
  if (detail::kernel().ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &region) < 0) return false;
  piece.shown = to;
  piece.log_lost = to == Shown::logged && log_lost;
  return true;
}

const char* KvmMemslots::State::broken_rule() const noexcept {
  std::size_t count = 0;
  for (const auto& entry : mappings_) {
    if (entry.value == nullptr) return "a known range has its memory and slots";
    const auto& pieces = entry.value->pieces();
    if (pieces.empty()) return "a known range has at least one slot";
    for (const Piece& piece : pieces) {
      const auto number = numbers_.get(Range::point(piece.number));
      if (!number || number->state == NodeState::free) return "the number of a slot is taken";
    }
    count += pieces.size();
  }
  if (count != used_) return "the slots of all ranges together are those in use";
  if (numbers_.stats().taken_amount != used_) return "only slots have numbers";
  return nullptr;
}

KvmMemslots::KvmMemslots(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
KvmMemslots::KvmMemslots(KvmMemslots&&) noexcept = default;
KvmMemslots& KvmMemslots::operator=(KvmMemslots&&) noexcept = default;
KvmMemslots::~KvmMemslots() = default;

Result<KvmMemslots> KvmMemslots::create(int vm_descriptor) {
  auto state = State::create(vm_descriptor);
  if (!state) return fail(state.error());
  return KvmMemslots(std::move(*state));
}

Result<void> KvmMemslots::set(const KvmMemory& memory) {
  if (!state_) return moved_from("KvmMemslots::set");
  return state_->set(memory);
}

Result<void> KvmMemslots::set(const MemoryRegion& region) {
  if (!allows(region.protection(), Protection::read)) {
    return fail({.code = Errc::access_denied,
                 .operation = "KvmMemslots::set",
                 .first = detail::operand(region.description().range()),
                 .reason = "a guest reads every slot, and this region may not be read"});
  }
  return set(KvmMemory{.base = region.base(),
                       .size = region.size(),
                       .host_address = region.host_base(),
                       .read_only = !allows(region.protection(), Protection::write)});
}

Result<void> KvmMemslots::clear(const Range& range) {
  if (!state_) return moved_from("KvmMemslots::clear");
  return state_->clear(range);
}

Result<void> KvmMemslots::start_dirty_log(const Range& range) {
  constexpr const char* operation = "KvmMemslots::start_dirty_log";
  if (!state_) return moved_from(operation);
  return state_->switch_log(range, true, operation);
}

Result<void> KvmMemslots::stop_dirty_log(const Range& range) {
  constexpr const char* operation = "KvmMemslots::stop_dirty_log";
  if (!state_) return moved_from(operation);
  return state_->switch_log(range, false, operation);
}

Result<KvmDirtyLog> KvmMemslots::fetch_dirty_log(const Range& range) {
  if (!state_) return moved_from("KvmMemslots::fetch_dirty_log");
  return state_->fetch_log(range);
}

Result<std::vector<KvmSlot>> KvmMemslots::slots(const Range& range) const {
  constexpr const char* operation = "KvmMemslots::slots";
  if (!state_) return moved_from(operation);
  const Mapping* mapping = state_->find(range);
  if (mapping == nullptr) {
    return fail({.code = Errc::not_found, .operation = operation, .first = detail::operand(range)});
  }
  std::vector<KvmSlot> found;
  found.reserve(mapping->pieces().size());
  for (std::size_t i = 0; i < mapping->pieces().size(); ++i) {
    const Piece& piece = mapping->pieces()[i];
    if (piece.shown == Shown::no) continue;
    const KvmMemory part = mapping->part(i);
    found.push_back(
        {.number = piece.number, .range = *Range::from_base_size(part.base.value(), part.size)});
  }
  return found;
}

std::uint32_t KvmMemslots::limit() const noexcept {
  return state_ ? state_->limit() : 0;
}
std::uint32_t KvmMemslots::used() const noexcept {
  return state_ ? state_->used() : 0;
}

Result<void> KvmMemslots::check_invariants() const noexcept {
  const char* rule = state_ ? state_->broken_rule() : nullptr;
  if (rule == nullptr) return {};
  return fail(
      {.code = Errc::corrupt, .operation = "KvmMemslots::check_invariants", .reason = rule});
}

}  // namespace vmspace
