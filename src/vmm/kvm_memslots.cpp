// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/kvm_memslots.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <limits>
#include <utility>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/literals.hpp"

#include "memory/system_calls.hpp"

namespace vmspace {

using namespace literals;

namespace {

// KVM_MEM_MAX_NR_PAGES in the kernel's kvm_host.h.
constexpr std::uint64_t max_pages_per_slot = (std::uint64_t{1} << 31) - 1;

std::uint64_t host_page_size() {
  static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

// The largest slot we make: whole GiB, so that no piece cuts one of the guest's huge pages which
// the range as a whole would not have cut.
std::uint64_t max_piece_size() {
  return max_pages_per_slot * host_page_size() / 1_GiB * 1_GiB;
}

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

/// A part of a known range that is a slot of its own.
struct Piece {
  std::uint32_t number;
  bool set = false;  // in KVM
};

/// A known range: what it shows, and its pieces in address order, whose slot numbers are taken from
/// a pool here and given back on destruction.
class Mapping {
 public:
  Mapping(const KvmMemory& memory, IntervalTree<>& pool) : memory_(memory), pool_(&pool) {}
  Mapping(Mapping&&) noexcept = default;  // leaves no pieces behind: no number is freed twice
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(pool_, other.pool_);
    std::swap(pieces_, other.pieces_);
    return *this;
  }
  ~Mapping() {
    for (const Piece& piece : pieces_)
      (void)pool_->free(Range::point(piece.number));
  }

  /// Makes `count` pieces of the lowest numbers that are free; the pool has so many.
  void split(std::uint64_t count) {
    pieces_.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto number = pool_->allocate({.size = 1});
      assert(number);
      pieces_.push_back({.number = static_cast<std::uint32_t>(number->min())});
    }
  }

  [[nodiscard]] std::vector<Piece>& pieces() noexcept { return pieces_; }
  [[nodiscard]] const std::vector<Piece>& pieces() const noexcept { return pieces_; }

  /// The memory of the index-th piece.
  [[nodiscard]] KvmMemory part(std::size_t index) const noexcept {
    const std::uint64_t offset = index * max_piece_size();
    KvmMemory part = memory_;
    part.base = GuestAddress(memory_.base.value() + offset);
    part.size = std::min(memory_.size - offset, max_piece_size());
    part.host_address = static_cast<std::byte*>(memory_.host_address) + offset;
    return part;
  }

 private:
  KvmMemory memory_;
  IntervalTree<>* pool_;
  std::vector<Piece> pieces_;
};

}  // namespace

class KvmMemslots::State {
 public:
  static Result<std::unique_ptr<State>> create(int vm_descriptor);
  ~State();

  Result<void> set(const KvmMemory& memory);
  Result<void> clear(const Range& range);

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

  Result<void> switch_all(Mapping& mapping, bool set, const char* operation) noexcept;
  bool switch_piece(Mapping& mapping, std::size_t index, bool set) noexcept;
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
  const auto extension = [&vm](std::uintptr_t which_one) {
    return detail::kernel().ioctl(vm.value(), KVM_CHECK_EXTENSION,
                                  reinterpret_cast<void*>(which_one));
  };
  const int reported = extension(KVM_CAP_NR_MEMSLOTS);
  if (reported < 0) return detail::fail_os(operation, which, "KVM_CHECK_EXTENSION");
  // A kernel that knows no such extension answers 0 and holds 32.
  const std::uint32_t limit = reported == 0 ? 32 : static_cast<std::uint32_t>(reported);
  const bool can_read_only = extension(KVM_CAP_READONLY_MEM) > 0;  // asks `vm`, before it moves
  std::unique_ptr<State> state(new State(std::move(vm), limit, can_read_only));
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
      (void)switch_piece(mapping, i, false);
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
  const std::uint64_t count = (memory.size - 1) / max_piece_size() + 1;
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
    return fail(error);
  }
  used_ += static_cast<std::uint32_t>(count);

  Mapping& mapping = *mappings_.find_value(range->min());
  auto done = switch_all(mapping, true, operation);
  if (!done && std::ranges::none_of(mapping.pieces(), &Piece::set)) forget(*range);
  return done;
}

Result<void> KvmMemslots::State::clear(const Range& range) {
  constexpr const char* operation = "KvmMemslots::clear";
  if (find(range) == nullptr) {
    return fail({.code = Errc::not_found, .operation = operation, .first = detail::operand(range)});
  }
  Mapping& mapping = *mappings_.find_value(range.min());
  if (auto ok = switch_all(mapping, false, operation); !ok) return ok;
  forget(range);
  return {};
}

void KvmMemslots::State::forget(const Range& range) noexcept {
  const auto erased = mappings_.erase(range);
  assert(erased && *erased);
  used_ -= static_cast<std::uint32_t>((*erased)->pieces().size());
}

/// Sets or clears all pieces. When KVM refuses one, those before it are put back, unless an earlier
/// failure had left the range in part: then this call only goes as far as it can.
Result<void> KvmMemslots::State::switch_all(Mapping& mapping, bool set,
                                            const char* operation) noexcept {
  auto& pieces = mapping.pieces();
  const bool was_whole = std::ranges::none_of(
      pieces, [set](bool s) { return s == set; }, &Piece::set);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (switch_piece(mapping, i, set)) continue;
    const int error = errno;
    bool whole = was_whole;
    for (std::size_t back = i; was_whole && back-- > 0;)
      whole &= switch_piece(mapping, back, !set);
    const KvmMemory part = mapping.part(i);
    return fail({.code = Errc::os,
                 .operation = operation,
                 .first = Operand::span(part.base.value(), part.size),
                 .second = Operand::number(pieces[i].number),
                 .reason = whole ? "KVM_SET_USER_MEMORY_REGION of this slot"
                                 : "KVM_SET_USER_MEMORY_REGION of this slot; the range is left in "
                                   "part: clear it",
                 .os_errno = error});
  }
  return {};
}

/// Sets or clears one piece where it is not already so; false, and errno, when KVM refuses.
bool KvmMemslots::State::switch_piece(Mapping& mapping, std::size_t index, bool set) noexcept {
  Piece& piece = mapping.pieces()[index];
  if (piece.set == set) return true;
  const KvmMemory part = mapping.part(index);
  kvm_userspace_memory_region region{};
  region.slot = piece.number;
  region.flags =
      (part.read_only ? KVM_MEM_READONLY : 0u) | (part.log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0u);
  region.guest_phys_addr = part.base.value();
  region.memory_size = set ? part.size : 0;  // size 0 deletes the slot
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(part.host_address);
  if (detail::kernel().ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &region) < 0) return false;
  piece.set = set;
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
  return state_->set(memory);
}

Result<void> KvmMemslots::clear(const Range& range) {
  return state_->clear(range);
}

Result<std::vector<KvmSlot>> KvmMemslots::slots(const Range& range) const {
  const Mapping* mapping = state_->find(range);
  if (mapping == nullptr) {
    return fail({.code = Errc::not_found,
                 .operation = "KvmMemslots::slots",
                 .first = detail::operand(range)});
  }
  std::vector<KvmSlot> found;
  found.reserve(mapping->pieces().size());
  for (std::size_t i = 0; i < mapping->pieces().size(); ++i) {
    const KvmMemory part = mapping->part(i);
    found.push_back({.number = mapping->pieces()[i].number,
                     .range = *Range::from_base_size(part.base.value(), part.size)});
  }
  return found;
}

std::uint32_t KvmMemslots::limit() const noexcept {
  return state_->limit();
}
std::uint32_t KvmMemslots::used() const noexcept {
  return state_->used();
}

Result<void> KvmMemslots::check_invariants() const noexcept {
  const char* rule = state_->broken_rule();
  if (rule == nullptr) return {};
  return fail(
      {.code = Errc::corrupt, .operation = "KvmMemslots::check_invariants", .reason = rule});
}

}  // namespace vmspace
