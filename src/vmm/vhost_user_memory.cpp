// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_memory.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

#include "host/fault_owner.hpp"
#include "os/argument_checks.hpp"
#include "os/system_calls.hpp"
#include "vmm/vhost_user_memory_state.hpp"

namespace vmspace {

using detail::Deadline;
using detail::Descriptor;
using detail::fail_os;
using detail::kernel;
using detail::VhostSections;
using detail::WireHeader;
using detail::WireLog;
using detail::WireSingle;
namespace vhost_user = detail::vhost_user;

static constexpr bool is_known(VhostUserAddresses addresses) noexcept {
  switch (addresses) {
    case VhostUserAddresses::host:
    case VhostUserAddresses::guest: return true;
  }
  return false;
}

namespace {

/// The last address of a section, inclusive.
std::uint64_t last_of(const MemorySection& section) noexcept {
  return section.base().value() + (section.size() - 1);
}

}  // namespace

void VhostUserMemory::State::take_written(const MemorySection& section) const noexcept {
  DirtyBitmap& dirty = section.region()->dirty();
  if (!dirty.is_enabled()) return;  // the bits stay where they are
  log.take(section.guest_range(), [&](const GuestRange& written) {
    const std::uint64_t offset = written.base.value() - section.base().value();
    dirty.mark(section.region_offset() + offset, written.size);
  });
}

std::uint64_t VhostUserMemory::State::needed_log() const noexcept {
  std::uint64_t size = 0;
  for (const auto& entry : sections.entries())
    size = std::max(size, last_of(entry.section) / vhost_user::log_page / 8 + 1);
  return size;
}

Result<void> VhostUserMemory::State::check_not_gone(const char* operation) const {
  if (!gone) return {};
  return refuse({.code = Errc::bad_state,
                 .operation = operation,
                 .reason = "the connection was shut down after an earlier error"});
}

Result<void> VhostUserMemory::State::check(const MemorySection& section,
                                           const char* operation) const {
  const Backing& backing = section.region()->backing();
  const Operand range = detail::operand(section.guest_range());
  if (backing.is_anonymous() || !backing.is_shared()) {
    return refuse({.code = Errc::unsupported,
                   .operation = operation,
                   .first = range,
                   .reason =
                       "another process can map only shared memory with an fd, and the region "
                       "is anonymous or private"});
  }
  if (backing.is_external()) {
    return refuse({.code = Errc::unsupported,
                   .operation = operation,
                   .first = range,
                   .reason = "the fd of a device is not for other processes to map: describe the "
                             "region as RegionType::device_memory, which is left out"});
  }
  if (const auto unclaimed = detail::require_unclaimed(
          operation, section.region()->mapping(), range,
          "the device would find pages missing that this process brings or keeps");
      !unclaimed) {
    Error held = unclaimed.error();
    held.text = {options.name, held.text.subject()};  // who brings or keeps them
    return fail(held);
  }
  if (log.is_on() && !log.covers(section.guest_range())) {
    return refuse({.code = Errc::out_of_bounds,
                   .operation = operation,
                   .first = range,
                   .second = Operand::size(log.size()),
                   .reason = "the region ends beyond the log of this size that the device has: "
                             "share a larger one first"});
  }
  return {};
}

/// No two regions have the same user address: where memory moves, both of its places are in the table
/// for a moment.
Result<void> VhostUserMemory::State::check_user_address(const MemorySection& section,
                                                        const char* operation) const {
  if (options.addresses == VhostUserAddresses::guest) return {};
  for (const auto& entry : sections.entries()) {
    if (entry.state == VhostSections::State::leaving) continue;
    const std::byte* const other = entry.section.host_base();
    if (section.host_base() + section.size() <= other ||
        other + entry.section.size() <= section.host_base()) {
      continue;
    }
    return refuse({.code = Errc::overlap,
                   .operation = operation,
                   .first = detail::operand(section.guest_range()),
                   .second = detail::operand(entry.section.guest_range()),
                   .reason = "the device would have the same host address at two guest addresses; "
                             "with VhostUserAddresses::guest memory can move"});
  }
  return {};
}

template <typename Done>
Done VhostUserMemory::State::or_give_up(Done done) {
  if (done) return done;
  gone = true;
  take_all();
  // The VMM's own descriptor must not go on with half a message either. That it fails when the peer
  // has closed the connection makes no difference.
  static_cast<void>(kernel().shutdown(socket.value(), SHUT_RDWR));
  Error error = done.error();
  error.text = ErrorText(options.name, "the connection has been shut down");
  return fail(error);
}

Result<void> VhostUserMemory::State::send(std::uint32_t request, std::uint32_t flags,
                                          std::span<const std::byte> payload,
                                          std::span<const int> fds, Deadline deadline,
                                          const char* operation) const {
  const WireHeader header{.request = request,
                          .flags = vhost_user::version | flags,
                          .size = static_cast<std::uint32_t>(payload.size())};
  return detail::send_message(socket.value(), header, payload, fds, deadline, operation);
}

/// The number that a reply carries. That to SET_LOG_BASE may be empty, and where it is not, what it
/// holds is for nobody: libvhost-user sends the log's size back.
Result<std::uint64_t> VhostUserMemory::State::receive(std::uint32_t request, Deadline deadline,
                                                      const char* operation) const {
  std::size_t fd_count = 0;
  const WireHeader header =
      VMSPACE_TRY(detail::receive_header(socket.value(), deadline, {}, fd_count, operation));
  const bool is_log = request == vhost_user::set_log_base;
  if (header.request != request || (header.flags & vhost_user::is_reply) == 0 ||
      (header.size != sizeof(std::uint64_t) && !(is_log && header.size == 0))) {
    return fail({.code = Errc::corrupt,
                 .operation = operation,
                 .first = Operand::number(header.request),
                 .second = Operand::number(request),
                 .reason = "what the device sent is not the reply to this request"});
  }
  std::uint64_t number = 0;
  VMSPACE_TRY(detail::receive_payload(
      socket.value(), deadline, std::as_writable_bytes(std::span(&number, 1)).first(header.size),
      operation));
  return is_log ? 0 : number;
}

/// Has the device do something, and waits until it has: 0, or the number with which it refuses.
Result<std::uint64_t> VhostUserMemory::State::change(std::uint32_t request,
                                                     std::span<const std::byte> payload,
                                                     std::span<const int> fds,
                                                     const char* operation) const {
  const Deadline deadline = detail::deadline_after(options.timeout);
  const bool acknowledged = has(VhostUserFeature::reply_ack);
  VMSPACE_TRY(
      send(request, acknowledged ? vhost_user::need_reply : 0, payload, fds, deadline, operation));
  if (acknowledged || request == vhost_user::set_log_base) {
    return receive(request, deadline, operation);
  }
  // Requests are served in order, so that the reply to another one comes after this one is done.
  VMSPACE_TRY(send(vhost_user::get_features, 0, {}, {}, deadline, operation));
  VMSPACE_TRY(receive(vhost_user::get_features, deadline, operation));
  return 0;
}

Result<void> VhostUserMemory::State::change_one(std::uint32_t request, const MemorySection& section,
                                                std::span<const int> fds, const char* operation) {
  const WireSingle single{.region = region(section)};
  const auto refused =
      or_give_up(change(request, std::as_bytes(std::span(&single, 1)), fds, operation));
  if (!refused) return fail(refused.error());
  if (*refused == 0) return {};
  return refuse({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(section.guest_range()),
                 .reason = "the device has refused it"});
}

VhostUserMemory::VhostUserMemory(std::unique_ptr<State> state) noexcept
    : state_(std::move(state)) {}
VhostUserMemory::~VhostUserMemory() {
  if (state_->maker.is_this_process()) state_->take_all();  // not out of a log that a child shares
}

Result<std::unique_ptr<VhostUserMemory>> VhostUserMemory::create(int socket_fd,
                                                                 VhostUserMemoryOptions options) {
  constexpr const char* operation = "VhostUserMemory::create";
  VMSPACE_TRY(
      detail::require_known(operation, options.addresses, "not a value of VhostUserAddresses"));
  auto state = std::make_unique<State>(State{.options = std::move(options)});
  state->socket =
      Descriptor(detail::retry([&] { return kernel().fcntl(socket_fd, F_DUPFD_CLOEXEC, 0); }));
  if (state->socket.value() < 0) return state->refuse(fail_os(operation, {}, "dup").value());
  struct stat kind {};
  if (detail::retry([&] { return kernel().fstat(state->socket.value(), &kind); }) != 0) {
    return state->refuse(fail_os(operation, {}, "fstat").value());
  }
  if (!S_ISSOCK(kind.st_mode)) {
    return state->refuse({.code = Errc::invalid_argument,
                          .operation = operation,
                          .reason = "socket_fd must be a connected Unix socket"});
  }
  if (state->one_by_one()) {
    const Deadline deadline = detail::deadline_after(state->options.timeout);
    const std::uint32_t request = vhost_user::get_max_mem_slots;
    VMSPACE_TRY(state->or_give_up(state->send(request, 0, {}, {}, deadline, operation)));
    state->limit = VMSPACE_TRY(state->or_give_up(state->receive(request, deadline, operation)));
  }
  return std::unique_ptr<VhostUserMemory>(new VhostUserMemory(std::move(state)));
}

std::string_view VhostUserMemory::name() const noexcept {
  return state_->options.name;
}

Result<void> VhostUserMemory::prepare(const MemoryChange& change) {
  constexpr const char* operation = "VhostUserMemory::prepare";
  VMSPACE_TRY(state_->check_not_gone(operation));
  for (const MemorySection& section : change.added) {
    if (VhostSections::interest(section)) VMSPACE_TRY(state_->check(section, operation));
  }
  return state_->named(state_->sections.check_count(change, state_->limit, operation));
}

Result<void> VhostUserMemory::add(const MemorySection& section) {
  constexpr const char* operation = "VhostUserMemory::add";
  if (!VhostSections::interest(section)) return {};
  VMSPACE_TRY(state_->check_not_gone(operation));
  VMSPACE_TRY(state_->check(section, operation));
  VMSPACE_TRY(state_->check_user_address(section, operation));
  const bool now = state_->one_by_one();
  VMSPACE_TRY(state_->named(state_->sections.add(
      section, now ? VhostSections::State::here : VhostSections::State::arriving, state_->limit,
      operation)));
  if (!now) return {};
  const int fd = section.fd();
  auto done = state_->change_one(vhost_user::add_mem_reg, section, std::span(&fd, 1), operation);
  if (!done) state_->sections.erase(*state_->sections.find(section, operation));
  return done;
}

Result<void> VhostUserMemory::remove(const MemorySection& section) {
  constexpr const char* operation = "VhostUserMemory::remove";
  if (!VhostSections::interest(section)) return {};
  VMSPACE_TRY(state_->check_not_gone(operation));
  const auto entry = state_->sections.find(section, operation);
  if (!entry) return state_->refuse(entry.error());
  if (!state_->one_by_one()) return state_->sections.leave(section, operation);
  VMSPACE_TRY(state_->change_one(vhost_user::rem_mem_reg, section, {}, operation));
  state_->take_written(section);
  state_->sections.erase(*entry);
  return {};
}

Result<void> VhostUserMemory::commit() {
  constexpr const char* operation = "VhostUserMemory::commit";
  if (!state_->sections.has_changes()) return {};
  std::array<std::byte, VhostSections::table_size(vhost_user::max_table)> room;
  const auto table = state_->sections.write_table(
      room, [&](const MemorySection& section) { return state_->region(section); });
  std::array<int, vhost_user::max_table> fds{};
  std::size_t count = 0;
  state_->sections.for_each([&](const MemorySection& section) { fds[count++] = section.fd(); });
  auto done = state_->check_not_gone(operation);
  if (done) {
    done = state_->or_give_up([&]() -> Result<void> {
      const std::uint64_t refused = VMSPACE_TRY(
          state_->change(vhost_user::set_mem_table, table, std::span(fds).first(count), operation));
      if (refused == 0) return {};
      // Many a device has dropped the old table by then.
      return fail({.code = Errc::bad_state,
                   .operation = operation,
                   .first = Operand::number(count),
                   .reason = "the device has refused the table of that many regions, and what it "
                             "has now is unknown"});
    }());
  }
  if (done) {
    for (const auto& [section, state] : state_->sections.entries()) {
      if (state == VhostSections::State::leaving) state_->take_written(section);
    }
    state_->sections.settle();
  } else {
    state_->sections.revert();
  }
  return done;
}

bool VhostUserMemory::is_gone() const noexcept {
  return state_->gone;
}

Result<std::uint64_t> VhostUserMemory::user_address(GuestRange range) const {
  for (const auto& [section, state] : state_->sections.entries()) {
    if (state == VhostSections::State::arriving || range.empty()) continue;
    if (!section.guest_range().contains(range)) continue;
    return state_->user_address(section) + (range.base.value() - section.base().value());
  }
  return state_->refuse({.code = Errc::not_found,
                         .operation = "VhostUserMemory::user_address",
                         .first = detail::operand(range),
                         .reason = "no region that the device has holds all of this range"});
}

Result<void> VhostUserMemory::share_log(const VhostUserLogArea& log) {
  constexpr const char* operation = "VhostUserMemory::share_log";
  const auto refuse = [&](Errc code, Operand first, Operand second, const char* reason) {
    return state_->refuse(
        {.code = code, .operation = operation, .first = first, .second = second, .reason = reason});
  };
  VMSPACE_TRY(state_->check_not_gone(operation));
  if (!state_->has(VhostUserFeature::log_shmfd)) {
    return refuse(Errc::unsupported, {}, {}, "VhostUserFeature::log_shmfd is not negotiated");
  }
  auto mapped = VhostUserLog::map(log, Unsealed::accept);
  if (!mapped) return state_->refuse(mapped.error().in(operation));
  if (const std::uint64_t needed = state_->needed_log(); log.size < needed) {
    return refuse(Errc::out_of_bounds, Operand::size(needed), Operand::size(log.size),
                  "the log must have a bit for every page of the device's memory");
  }
  // The device could truncate it. One that can't be sealed is the caller's risk, as documented.
  const int sealed =
      detail::retry([&] { return detail::kernel().fcntl(log.fd, F_ADD_SEALS, F_SEAL_SHRINK); });
  if (sealed != 0 && errno != EPERM && errno != EINVAL)
    return state_->refuse(fail_os(operation, {}, "fcntl(F_ADD_SEALS)").value());
  const WireLog area{.size = log.size, .offset = log.offset};
  VMSPACE_TRY(state_->or_give_up(state_->change(vhost_user::set_log_base,
                                                std::as_bytes(std::span(&area, 1)),
                                                std::span(&log.fd, 1), operation)));
  state_->take_all();  // out of the log that it had before
  state_->log = *std::move(mapped);
  return {};
}

void VhostUserMemory::forget_log() noexcept {
  state_->take_all();
  state_->log = {};
}

Result<void> VhostUserMemory::log_start(const MemorySection& section) {
  constexpr const char* operation = "VhostUserMemory::log_start";
  if (!VhostSections::interest(section)) return {};
  VMSPACE_TRY(state_->check_not_gone(operation));
  if (state_->log.is_on()) return state_->check(section, operation);
  return state_->refuse({.code = Errc::bad_state,
                         .operation = operation,
                         .first = detail::operand(section.guest_range()),
                         .reason = "the device has no log of what it writes: share_log(), and set "
                                   "VHOST_F_LOG_ALL, before the dirty log starts"});
}

Result<void> VhostUserMemory::log_sync(const MemorySection& section) {
  if (VhostSections::interest(section)) state_->take_written(section);
  return {};
}

Result<void> VhostUserMemory::log_stop(const MemorySection& section) {
  return log_sync(section);
}

std::uint64_t VhostUserMemory::log_size() const noexcept {
  return (state_->needed_log() + 7) / 8 * 8;
}

std::uint64_t VhostUserMemory::limit() const noexcept {
  return state_->limit;
}

std::uint64_t VhostUserMemory::used() const noexcept {
  return state_->sections.count();
}

}  // namespace vmspace
