// SPDX-License-Identifier: Apache-2.0
//
// Where the contents of guest memory come from while it is restored: a snapshot, a socket, the
// caller's decompressor.

#pragma once

#include <cstddef>
#include <span>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// Contents of guest memory, read by guest address.
///
/// Threads: whoever restores may call any of these from several threads at once. What is thrown there is
/// an error of the call.
class VMSPACE_EXPORT PageSource {
 public:
  virtual ~PageSource() = default;

  /// Fills `to` with what the guest had from `at` on. Both are multiples of 4096, and within one
  /// region. An error is reported as it is, and `to` is not used then.
  [[nodiscard]] virtual Result<void> read(GuestAddress at, std::span<std::byte> to) = 0;

  /// The first part of `range` that may hold anything but zeros, at multiples of 4096; empty, at the
  /// end of `range`, when there is none. What lies before it is not asked for. By default all of
  /// `range`.
  [[nodiscard]] virtual Result<GuestRange> next_data(GuestRange range) { return range; }

 protected:
  PageSource() = default;
  PageSource(const PageSource&) = default;
  PageSource& operator=(const PageSource&) = default;
};

}  // namespace vmspace
