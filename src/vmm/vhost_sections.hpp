// SPDX-License-Identifier: Apache-2.0
//
// The guest memory that a vhost device has been told of, in the kernel or in another process, and
// the changes that it has not been told of yet.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/vmm/memory_listener.hpp"

#include "vmm/vhost_user_wire.hpp"

namespace vmspace::detail {

/// Invariant: sections are of interest() and, but for those that are leaving, do not overlap.
class VhostSections {
 public:
  enum class State : std::uint8_t {
    here,      ///< the device has it
    arriving,  ///< added; the device gets it with the next table
    leaving,   ///< removed; the device has it until the next table
  };
  struct Entry {
    MemorySection section;
    State state;
  };

  /// Whether a device could have business there: it reads and writes RAM and persistent memory, but
  /// no firmware, no registers, and nothing that the guest itself may not write.
  [[nodiscard]] static bool interest(const MemorySection& section) noexcept;

  /// Counts the sections that there would be at most while the change is made. Removals make room
  /// only where an addition needs their addresses: all others come last. Errors: `limit_exceeded`.
  [[nodiscard]] Result<void> check_count(const MemoryChange& change, std::uint64_t limit,
                                         const char* operation) const;

  /// Adds a section. Errors: `overlap`; `limit_exceeded` when there are `limit` already. May throw
  /// std::bad_alloc.
  [[nodiscard]] Result<void> add(const MemorySection& section, State state, std::uint64_t limit,
                                 const char* operation);
  /// Finds what add() was given and is not leaving. Errors: `not_found`.
  [[nodiscard]] Result<Entry*> find(const MemorySection& section, const char* operation) noexcept;
  /// Forgets an entry of find().
  void erase(Entry* entry) noexcept;
  /// Removes a section with the next table. Errors: `not_found`.
  [[nodiscard]] Result<void> leave(const MemorySection& section, const char* operation) noexcept;

  /// Whether the device has to be given a new table.
  [[nodiscard]] bool has_changes() const noexcept;
  /// The device has the new table.
  void settle() noexcept;
  /// The device has the old table.
  void revert() noexcept;

  /// Without those that are leaving.
  [[nodiscard]] std::size_t count() const noexcept;
  /// Calls `call(section)` for each that is not leaving.
  template <typename Call>
  void for_each(Call call) const {
    for (const Entry& entry : entries_) {
      if (entry.state != State::leaving) call(entry.section);
    }
  }

  /// How many bytes a table of so many regions takes.
  [[nodiscard]] static constexpr std::size_t table_size(std::size_t regions) noexcept {
    return sizeof(WireTable) + regions * sizeof(WireRegion);
  }
  /// Writes the table that the device is to have, with `region_of(section)` for each that is not
  /// leaving, and returns it. `room` is large enough.
  template <typename RegionOf>
  [[nodiscard]] std::span<std::byte> write_table(std::span<std::byte> room,
                                                 RegionOf region_of) const {
    WireTable head{};
    for_each([&](const MemorySection& section) {
      const WireRegion region = region_of(section);
      std::memcpy(room.data() + table_size(head.count++), &region, sizeof region);
    });
    std::memcpy(room.data(), &head, sizeof head);
    return room.first(table_size(head.count));
  }
  [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }

 private:
  std::vector<Entry> entries_;
};

}  // namespace vmspace::detail
