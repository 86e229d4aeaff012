// SPDX-License-Identifier: Apache-2.0
//
// What a VhostUserMemory knows of its device, and how it talks to it.

#pragma once

#include <cstdint>
#include <span>

#include "vmspace/vmm/vhost_user_log.hpp"
#include "vmspace/vmm/vhost_user_memory.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

#include "os/descriptor.hpp"
#include "os/forked_child.hpp"
#include "vmm/vhost_sections.hpp"
#include "vmm/vhost_user_wire.hpp"

namespace vmspace {

struct VMSPACE_HIDDEN VhostUserMemory::State {
  VhostUserMemoryOptions options;
  detail::Descriptor socket = {};
  bool gone = false;
  std::uint64_t limit = detail::vhost_user::max_table;
  VhostUserLog log = {};  ///< of what the device writes
  detail::VhostSections sections = {};
  detail::Maker maker = {};

  [[nodiscard]] bool has(std::uint64_t feature) const noexcept {
    return (options.protocol_features & feature) != 0;
  }
  [[nodiscard]] bool one_by_one() const noexcept {
    return has(VhostUserFeature::configure_mem_slots);
  }

  [[nodiscard]] std::uint64_t user_address(const MemorySection& section) const noexcept {
    if (options.addresses == VhostUserAddresses::guest) return section.base().value();
    return reinterpret_cast<std::uintptr_t>(section.host_base());
  }
  [[nodiscard]] detail::WireRegion region(const MemorySection& section) const noexcept {
    return {.guest_address = section.base().value(),
            .size = section.size(),
            .user_address = user_address(section),
            .file_offset = section.file_offset()};
  }

  [[nodiscard]] tl::unexpected<Error> refuse(Error error) const {
    error.text = ErrorText(options.name);
    return fail(error);
  }
  /// A result whose error names the device.
  [[nodiscard]] Result<void> named(Result<void> result) const {
    if (!result) result.error().text = ErrorText(options.name);
    return result;
  }
  /// Brings what the device has written from its log to the region, where that is tracked.
  void take_written(const MemorySection& section) const noexcept;
  void take_all() const noexcept {
    for (const auto& entry : sections.entries())
      take_written(entry.section);
  }
  /// How many bytes a log must have at least.
  [[nodiscard]] std::uint64_t needed_log() const noexcept;
  [[nodiscard]] Result<void> check_not_gone(const char* operation) const;
  [[nodiscard]] Result<void> check(const MemorySection& section, const char* operation) const;
  [[nodiscard]] Result<void> check_user_address(const MemorySection& section,
                                                const char* operation) const;

  // A conversation with the device. `Done` is a Result; an error of it is passed on, after the
  // connection was shut down.
  template <typename Done>
  [[nodiscard]] Done or_give_up(Done done);
  [[nodiscard]] Result<void> send(std::uint32_t request, std::uint32_t flags,
                                  std::span<const std::byte> payload, std::span<const int> fds,
                                  detail::Deadline deadline, const char* operation) const;
  [[nodiscard]] Result<std::uint64_t> receive(std::uint32_t request, detail::Deadline deadline,
                                              const char* operation) const;
  [[nodiscard]] Result<std::uint64_t> change(std::uint32_t request,
                                             std::span<const std::byte> payload,
                                             std::span<const int> fds, const char* operation) const;
  [[nodiscard]] Result<void> change_one(std::uint32_t request, const MemorySection& section,
                                        std::span<const int> fds, const char* operation);
};

}  // namespace vmspace
