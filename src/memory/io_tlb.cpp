// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/io_tlb.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"

namespace vmspace {

using detail::IoTlbMap;
using detail::IoTlbSlot;

namespace detail {

struct IoTlbState {
  explicit IoTlbState(IoTlbOptions given) : options(std::move(given)) {}

  const IoTlbOptions options;
  /// How many invalidations have begun; changed by whoever has the turn to change `map`.
  std::atomic<std::uint64_t> invalidations{0};
  Published<IoTlbMap> map{IoTlbMap{}};
};

}  // namespace detail

namespace {

constexpr std::uint64_t access_bits = 3;
constexpr unsigned age_shift = 2;
static_assert(static_cast<std::uint64_t>(Protection::read_write) == access_bits);

std::uint64_t last_of(const IoTlbSlot& slot) {
  return slot.first + (slot.size - 1);
}

Protection access_of(const IoTlbSlot& slot) {
  return static_cast<Protection>(slot.age_and_access & access_bits);
}

IoTlbSlot slot_of(const IoTlbEntry& entry, std::uint64_t age) {
  return {.first = entry.iova.value(),
          .size = entry.guest.size,
          .guest = entry.guest.base.value(),
          .age_and_access = age << age_shift | static_cast<std::uint64_t>(entry.access)};
}

IoTlbEntry entry_of(const IoTlbSlot& slot) {
  return {.iova = GuestAddress(slot.first),
          .guest = {GuestAddress(slot.guest), slot.size},
          .access = access_of(slot)};
}

Result<void> check(const char* operation, const IoTlbEntry& entry) {
  const GuestRange iova{entry.iova, entry.guest.size};
  VMSPACE_TRY_IN(operation, iova.range());
  VMSPACE_TRY_IN(operation, entry.guest.range());
  if (entry.access != Protection::read && entry.access != Protection::write &&
      entry.access != Protection::read_write) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = detail::operand(iova),
                 .reason = "an entry must allow reading, writing or both, and nothing else"});
  }
  return {};
}

using Slots = std::vector<IoTlbSlot>;
using Table = detail::DecodeTable<IoTlbSlot>;

/// Cuts the addresses from `first` to `last` out of the slots.
void cut(Slots& slots, std::uint64_t first, std::uint64_t last) {
  auto begin = std::partition_point(slots.begin(), slots.end(),
                                    [&](const IoTlbSlot& slot) { return last_of(slot) < first; });
  const auto end = std::partition_point(begin, slots.end(),
                                        [&](const IoTlbSlot& slot) { return slot.first <= last; });
  if (begin == end) return;
  IoTlbSlot below = *begin;
  below.size = first > below.first ? first - below.first : 0;
  IoTlbSlot above = *std::prev(end);
  above.size = last_of(above) > last ? last_of(above) - last : 0;
  if (above.size != 0) {
    above.guest += last + 1 - above.first;
    above.first = last + 1;
  }
  const auto at = slots.erase(begin, end) - slots.begin();
  if (above.size != 0) slots.insert(slots.begin() + at, above);
  if (below.size != 0) slots.insert(slots.begin() + at, below);
}

void insert(Slots& slots, const IoTlbSlot& slot) {
  cut(slots, slot.first, last_of(slot));
  const auto at = std::ranges::lower_bound(slots, slot.first, {}, &IoTlbSlot::first);
  slots.insert(at, slot);
}

/// Lets the oldest go while there are more than `most`.
void retire(Slots& slots, std::size_t most) {
  while (slots.size() > most)
    slots.erase(std::ranges::min_element(slots, {}, &IoTlbSlot::age_and_access));
}

/// The slot of a map with its address as it is.
IoTlbSlot absolute(const IoTlbMap& map, IoTlbSlot slot) {
  slot.first += map.origin;
  return slot;
}

/// Changes the slots of a map by `edit(slots)`, which have their addresses as they are.
template <typename Edit>
void change(IoTlbMap& map, std::size_t most, Edit edit) {
  Slots slots;
  slots.reserve(map.slots().size() + 2);
  for (const IoTlbSlot& slot : map.slots())
    slots.push_back(absolute(map, slot));
  edit(slots);
  retire(slots, most);
  const std::uint64_t origin = slots.empty() ? 0 : slots.front().first;
  for (IoTlbSlot& slot : slots)
    slot.first -= origin;
  map.table = slots.empty() ? nullptr : std::make_shared<const Table>(slots, last_of(slots.back()));
  map.decoder = slots.empty() ? Table::empty_decoder() : map.table->decoder();
  map.origin = origin;
}

}  // namespace

Result<IoTlb> IoTlb::make(IoTlbOptions options) {
  if (options.max_entries == 0 || options.max_entries > Table::max_entries) {
    return fail({.code = Errc::invalid_argument,
                 .operation = "IoTlb::make",
                 .first = Operand::number(options.max_entries),
                 .second = Operand::range(1, Table::max_entries),
                 .reason = "max_entries is out of range"});
  }
  return IoTlb(std::make_shared<detail::IoTlbState>(std::move(options)));
}

Result<void> IoTlb::update(std::span<const IoTlbEntry> entries) {
  constexpr const char* operation = "IoTlb::update";
  for (const IoTlbEntry& entry : entries)
    VMSPACE_TRY(check(operation, entry));
  return state_->map.update(
      [&](IoTlbMap& map) -> Result<void> {
        const std::size_t most = state_->options.max_entries;
        change(map, most, [&](Slots& slots) {
          for (const IoTlbEntry& entry : entries) {
            insert(slots, slot_of(entry, map.next_age++));
            retire(slots, most);
          }
        });
        return {};
      },
      operation);
}

Result<void> IoTlb::invalidate(GuestRange iova, std::chrono::nanoseconds timeout) {
  constexpr const char* operation = "IoTlb::invalidate";
  // Published even where nothing changes: a view may use what it has missed, which is not in the table
  // yet, and only a view of an older generation is waited for.
  VMSPACE_TRY(state_->map.update(
      [&](IoTlbMap& map) -> Result<void> {
        state_->invalidations.fetch_add(1, std::memory_order_release);
        if (iova.empty()) return {};
        // What loses its middle becomes two, so that there may be one too many.
        change(map, state_->options.max_entries,
               [&](Slots& slots) { cut(slots, iova.base.value(), detail::last_within(iova)); });
        return {};
      },
      operation));
  VMSPACE_TRY_IN(operation, state_->map.wait_released(timeout));
  return {};
}

Result<void> IoTlb::invalidate_all(std::chrono::nanoseconds timeout) {
  constexpr const char* operation = "IoTlb::invalidate_all";
  VMSPACE_TRY(state_->map.update(
      [&](IoTlbMap& map) -> Result<void> {
        state_->invalidations.fetch_add(1, std::memory_order_release);
        change(map, 0, [](Slots&) {});
        return {};
      },
      operation));
  VMSPACE_TRY_IN(operation, state_->map.wait_released(timeout));
  return {};
}

std::vector<IoTlbEntry> IoTlb::entries() const {
  const auto map = state_->map.snapshot();
  std::vector<IoTlbEntry> entries;
  for (const IoTlbSlot& slot : map->slots())
    entries.push_back(entry_of(absolute(*map, slot)));
  return entries;
}

IoTlbReader IoTlb::reader() const {
  return IoTlbReader(state_, state_->map.reader());
}

Result<void> IoTlb::check_invariants() const {
  const auto broken = [](const char* rule) {
    return fail({.code = Errc::corrupt, .operation = "IoTlb::check_invariants", .reason = rule});
  };
  const auto map = state_->map.snapshot();
  const std::span<const IoTlbSlot> slots = map->slots();
  if (slots.size() > state_->options.max_entries) return broken("more than max_entries");
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!check("", entry_of(absolute(*map, slots[i]))))
      return broken("an entry that update() refuses");
    if (i != 0 && last_of(slots[i - 1]) >= slots[i].first) {
      return broken("entries must be in order and not overlap");
    }
    if (map->decoder.nearest(slots[i].first)->first != slots[i].first)
      return broken("an entry is not found");
  }
  return {};
}

Result<IoTlbSlot> IoTlbReader::find(GuestAddress iova, Access access) {
  const std::uint64_t address = iova.value();
  const auto denied = [&] {
    return fail({.code = Errc::access_denied,
                 .operation = "IommuView::translate",
                 .first = Operand::address(address),
                 .reason = access == Access::read ? "the translation does not allow reading"
                                                  : "the translation does not allow writing"});
  };
  const std::size_t known = std::min(missed_count_, missed_.size());
  for (const IoTlbSlot& slot : std::span(missed_).first(known)) {
    if (!slot.contains(address)) continue;
    if (!slot.allows_access(access)) return denied();
    return slot;
  }
  const IoTlbSlot slot = absolute(*map_, *map_->decoder.nearest(address - map_->origin));
  if (slot.contains(address)) {
    if (!slot.allows_access(access)) return denied();
    return slot;
  }
  return ask(iova, access);
}

Result<IoTlbSlot> IoTlbReader::ask(GuestAddress iova, Access access) {
  constexpr const char* operation = "IommuView::translate";
  if (!state_->options.on_miss) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = Operand::address(iova.value()),
                 .reason = "no translation"});
  }
  const std::uint64_t before = state_->invalidations.load(std::memory_order_acquire);
  const IoTlbEntry entry = VMSPACE_TRY(state_->options.on_miss(iova, access));
  const IoTlbSlot slot = slot_of(entry, 0);
  if (!check(operation, entry) || !slot.holds(iova.value(), 1, access)) {
    return fail(
        {.code = Errc::invalid_argument,
         .operation = operation,
         .first = Operand::address(iova.value()),
         .second = detail::operand(GuestRange{entry.iova, entry.guest.size}),
         .reason = "on_miss must give an entry that contains the address and allows the access"});
  }
  // For views to come, unless something was invalidated meanwhile: that may have been this entry, which
  // was taken back before it was in the table. This view may use it, since whoever invalidates waits
  // for it.
  VMSPACE_TRY(state_->map.update(
      [&](IoTlbMap& map) -> Result<void> {
        if (state_->invalidations.load(std::memory_order_relaxed) != before) return {};
        change(map, state_->options.max_entries,
               [&](Slots& slots) { insert(slots, slot_of(entry, map.next_age++)); });
        return {};
      },
      operation));
  missed_[missed_count_++ % missed_.size()] = slot;
  return slot;
}

}  // namespace vmspace
