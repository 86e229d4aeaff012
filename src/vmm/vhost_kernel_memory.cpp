// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_kernel_memory.hpp"

#include <fcntl.h>
// Without its inline functions, which are C.
#define VIRTIO_RING_NO_LEGACY  // NOLINT(readability-identifier-naming)
#include <linux/vhost.h>

#include <array>
#include <charconv>
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "os/descriptor.hpp"
#include "os/proc_file.hpp"
#include "os/system_calls.hpp"
#include "vmm/vhost_sections.hpp"
#include "vmm/vhost_user_wire.hpp"

namespace vmspace {

using detail::Descriptor;
using detail::fail_os;
using detail::kernel;
using detail::VhostSections;
using detail::WireRegion;
using detail::WireTable;

// The table is the one that SET_MEM_TABLE of vhost-user carries.
static_assert(offsetof(vhost_memory, regions) == sizeof(WireTable));
static_assert(sizeof(vhost_memory_region) == sizeof(WireRegion));
static_assert(offsetof(vhost_memory_region, memory_size) == offsetof(WireRegion, size));
static_assert(offsetof(vhost_memory_region, userspace_addr) == offsetof(WireRegion, user_address));

struct VMSPACE_HIDDEN VhostKernelMemory::State {
  std::string name;
  Descriptor device = {};
  std::uint64_t limit = 0;
  VhostSections sections = {};
  /// Room for the table. add() makes it, so that commit() need not.
  std::vector<std::byte> room = {};

  [[nodiscard]] tl::unexpected<Error> refuse(Error error) const {
    error.text = ErrorText(name);
    return fail(error);
  }
  /// A result whose error names the device.
  [[nodiscard]] Result<void> named(Result<void> result) const {
    if (!result) result.error().text = ErrorText(name);
    return result;
  }
  [[nodiscard]] Result<void> check(const MemorySection& section, const char* operation) const;
};

namespace {

std::uint64_t max_mem_regions() {
  std::array<char, 24> buffer;
  const std::string_view text = detail::read_start("/sys/module/vhost/parameters/max_mem_regions",
                                                   buffer.data(), buffer.size());
  std::uint64_t number = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
  return read.ec == std::errc{} ? number : 64;
}

}  // namespace

Result<void> VhostKernelMemory::State::check(const MemorySection& section,
                                             const char* operation) const {
  const auto host = reinterpret_cast<std::uintptr_t>(section.host_base());
  for (const Operand value : {Operand::address(section.base().value()),
                              Operand::size(section.size()), Operand::address(host)}) {
    VMSPACE_TRY(named(detail::require_multiple(
        operation, value, VHOST_PAGE_SIZE,
        "base, size and host address of a region must be multiples of vhost's page size")));
  }
  return {};
}

VhostKernelMemory::VhostKernelMemory(std::unique_ptr<State> state) noexcept
    : state_(std::move(state)) {}
VhostKernelMemory::~VhostKernelMemory() = default;

Result<std::unique_ptr<VhostKernelMemory>> VhostKernelMemory::create(int vhost_fd,
                                                                     std::string name) {
  constexpr const char* operation = "VhostKernelMemory::create";
  auto state = std::make_unique<State>(State{.name = std::move(name)});
  state->device =
      Descriptor(detail::retry([&] { return kernel().fcntl(vhost_fd, F_DUPFD_CLOEXEC, 0); }));
  if (state->device.value() < 0) {
    return state->refuse(fail_os(operation, {}, "duplicating vhost_fd").value());
  }
  std::uint64_t features = 0;
  if (detail::retry([&] {
        return kernel().ioctl(state->device.value(), VHOST_GET_FEATURES, &features);
      }) != 0) {
    return state->refuse(fail_os(operation, {}, "VHOST_GET_FEATURES").value());
  }
  state->limit = max_mem_regions();
  return std::unique_ptr<VhostKernelMemory>(new VhostKernelMemory(std::move(state)));
}

std::string_view VhostKernelMemory::name() const noexcept {
  return state_->name;
}

Result<void> VhostKernelMemory::prepare(const MemoryChange& change) {
  constexpr const char* operation = "VhostKernelMemory::prepare";
  for (const MemorySection& section : change.added) {
    if (VhostSections::interest(section)) VMSPACE_TRY(state_->check(section, operation));
  }
  return state_->named(state_->sections.check_count(change, state_->limit, operation));
}

Result<void> VhostKernelMemory::add(const MemorySection& section) {
  constexpr const char* operation = "VhostKernelMemory::add";
  if (!VhostSections::interest(section)) return {};
  VMSPACE_TRY(state_->check(section, operation));
  const std::size_t size = VhostSections::table_size(state_->sections.entries().size() + 1);
  if (state_->room.size() < size) state_->room.resize(size);
  return state_->named(
      state_->sections.add(section, VhostSections::State::arriving, state_->limit, operation));
}

Result<void> VhostKernelMemory::remove(const MemorySection& section) {
  if (!VhostSections::interest(section)) return {};
  return state_->named(state_->sections.leave(section, "VhostKernelMemory::remove"));
}

Result<void> VhostKernelMemory::commit() {
  VhostSections& sections = state_->sections;
  if (!sections.has_changes()) return {};
  const auto table = sections.write_table(state_->room, [](const MemorySection& section) {
    return WireRegion{.guest_address = section.base().value(),
                      .size = section.size(),
                      .user_address = reinterpret_cast<std::uintptr_t>(section.host_base())};
  });
  if (detail::retry([&] {
        return kernel().ioctl(state_->device.value(), VHOST_SET_MEM_TABLE, table.data());
      }) != 0) {
    const std::uint64_t count = sections.count();
    sections.revert();
    return state_->refuse(fail_os("VhostKernelMemory::commit", Operand::number(count),
                                  "VHOST_SET_MEM_TABLE, for a table of that many regions")
                              .value());
  }
  sections.settle();
  return {};
}

std::uint64_t VhostKernelMemory::limit() const noexcept {
  return state_->limit;
}

std::uint64_t VhostKernelMemory::used() const noexcept {
  return state_->sections.count();
}

}  // namespace vmspace
