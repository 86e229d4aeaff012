// SPDX-License-Identifier: Apache-2.0
//
// Host addresses set aside before anything is mapped there.
//
// The kernel puts each mapping where it likes, so that two regions which touch in the guest lie
// apart on the host, and what is plugged later has no place kept for it. An arena keeps one: it
// takes the addresses of a whole stretch of guest memory, inaccessible and costing no memory, and
// each region is then mapped at its own place inside. Neighbours in the guest are neighbours on the
// host, and one offset translates all of the arena.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// What to reserve; an aggregate for designated initialisers.
struct ArenaOptions {
  std::uint64_t size = 0;  ///< bytes; a multiple of the machine's page size
  /// The guest address that the arena begins with; a multiple of the page size.
  std::uint64_t guest_base = 0;
  /// The host address agrees with guest_base modulo this power of two; 0: the size of a huge page.
  std::uint64_t align = 0;
};

/// Reserved host addresses: a handle whose copies mean the same arena.
///
/// Invariant: every address of the arena is either inaccessible or belongs to one mapping that was
/// made in it; nobody else's memory ever lies between. The addresses are given back when the last
/// handle is gone, and each mapping inside holds one. Safe to use from any thread.
class VMSPACE_EXPORT HostArena {
 public:
  // No moves: moving copies the handle, and leaves both usable.
  HostArena(const HostArena&) noexcept = default;
  HostArena& operator=(const HostArena&) noexcept = default;
  ~HostArena() = default;

  /// Reserves addresses. Errors: `zero_size`; `misaligned` when size or guest_base is no multiple
  /// of the page size; `bad_alignment`; `limit_exceeded` for what no address space holds; `os` with
  /// ENOMEM for what this one does not. One system call.
  [[nodiscard]] static Result<HostArena> reserve(const ArenaOptions& options);

  /// The lowest address; nobody may access it until something is mapped there.
  [[nodiscard]] std::byte* data() const noexcept;
  /// How many bytes from data() are reserved.
  [[nodiscard]] std::uint64_t size() const noexcept;
  /// The guest address that data() stands for.
  [[nodiscard]] std::uint64_t guest_base() const noexcept;

  /// Equal when they are the same arena.
  friend bool operator==(const HostArena&, const HostArena&) = default;

 private:
  friend class MemoryMapping;
  struct State;

  explicit HostArena(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}

  /// Takes a part for a mapping. Errors: `out_of_bounds`; `overlap` when some of it is taken.
  [[nodiscard]] Result<void> claim(std::uint64_t offset, std::uint64_t size) const;
  /// Undoes claim(); the part is inaccessible again.
  void release(std::uint64_t offset, std::uint64_t size) const noexcept;

  std::shared_ptr<State> state_;
};

}  // namespace vmspace
