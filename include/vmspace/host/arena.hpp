// SPDX-License-Identifier: Apache-2.0
//
// Host addresses set aside before anything is mapped there.
//
// The kernel places each mapping wherever it likes: regions that are adjacent in the guest lie
// apart on the host, and nothing is kept free for what is plugged later. An arena reserves the
// addresses of a whole stretch of guest memory, inaccessible and costing no memory, and each region
// is then mapped at its own place inside. Neighbours in the guest are neighbours on the host, and
// one offset translates every address of the arena.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// What to reserve; an aggregate for designated initialisers.
struct ArenaOptions {
  std::uint64_t size = 0;  ///< bytes; a multiple of the machine's page size
  /// The guest address that data() stands for; a multiple of the page size.
  std::uint64_t guest_base = 0;
  /// data() is congruent to guest_base modulo this power of two; 0 means the size of a huge page.
  std::uint64_t align = 0;
};

/// Reserved host addresses: a handle whose copies mean the same arena.
///
/// Invariant: every address of the arena is either inaccessible or in a part that is leased; memory
/// that was not mapped into the arena never lies in between. The addresses are given back when the
/// last handle is gone, and each mapping inside holds one. Safe to use from any thread.
class VMSPACE_EXPORT HostArena {
 public:
  // No move operations: moving copies the handle, and both stay usable.
  HostArena(const HostArena&) noexcept = default;
  HostArena& operator=(const HostArena&) noexcept = default;
  ~HostArena() = default;

  /// Reserves addresses. Errors: `zero_size`; `misaligned` unless size and guest_base are multiples
  /// of the page size; `bad_alignment` unless align is 0 or a power of two; `limit_exceeded` for a
  /// size or an alignment above 2^62; `os`: ENOMEM when this process has no room for it. One system
  /// call.
  [[nodiscard]] static Result<HostArena> reserve(const ArenaOptions& options);

  /// The lowest address of the arena; inaccessible until something is mapped there.
  [[nodiscard]] std::byte* data() const noexcept;
  /// How many bytes from data() are reserved.
  [[nodiscard]] std::uint64_t size() const noexcept;
  /// The guest address that data() stands for.
  [[nodiscard]] std::uint64_t guest_base() const noexcept;
  /// The offsets from data() and who has them: each mapping in the arena leases its part, guard
  /// pages included, and returns it when the part is inaccessible again. A part that the caller
  /// leases is kept free of mappings, and the caller may map something else there (MAP_FIXED,
  /// mmap(2)); before the lease ends, the part must be inaccessible again.
  [[nodiscard]] const RangePool& parts() const noexcept;

  /// Equal when they are the same arena.
  friend bool operator==(const HostArena&, const HostArena&) = default;

 private:
  friend class MemoryMapping;
  struct State;

  /// The addresses are not given back: in a forked child, where something else is at some of them.
  void leave_addresses() const noexcept;

  explicit HostArena(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}

  std::shared_ptr<State> state_;
};

}  // namespace vmspace
