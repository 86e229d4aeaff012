// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_backend.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"

#include "memory/known_values.hpp"
#include "os/argument_checks.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"
#include "vmm/vhost_user_wire.hpp"

namespace vmspace {

using detail::Deadline;
using detail::fail_os;
using detail::kernel;
using detail::WireLog;
using detail::WireRegion;
using detail::WireRegions;
namespace vhost_user = detail::vhost_user;

namespace {

constexpr const char* serve_operation = "VhostUserBackendMemory::serve";

GuestRange guest_range(const WireRegion& wire) noexcept {
  return {.base = GuestAddress(wire.guest_address), .size = wire.size};
}

/// User addresses as a range; they obey the same arithmetic.
GuestRange user_range(const WireRegion& wire) noexcept {
  return {.base = GuestAddress(wire.user_address), .size = wire.size};
}

/// Whether a request removes this region: by all but the offset in its file.
bool is_same_place(const WireRegion& a, const WireRegion& b) noexcept {
  return a.guest_address == b.guest_address && a.user_address == b.user_address && a.size == b.size;
}

tl::unexpected<Error> refuse(Errc code, Operand first, const char* reason) {
  return fail({.code = code, .operation = serve_operation, .first = first, .reason = reason});
}

Result<void> check_fds(const VhostUserMessage& message, std::size_t least, std::size_t most) {
  const std::size_t count = message.fds().size();
  if (count >= least && count <= most) return {};
  return fail({.code = Errc::corrupt,
               .operation = serve_operation,
               .first = Operand::number(count),
               .second = Operand::number(most),
               .reason = "the message must have one descriptor for each region or log"});
}

Result<void> check_empty(const VhostUserMessage& message) {
  VMSPACE_TRY(check_fds(message, 0, 0));
  if (message.payload().empty()) return {};
  return refuse(Errc::corrupt, Operand::size(message.payload().size()),
                "the request must have no payload");
}

}  // namespace

struct VMSPACE_HIDDEN VhostUserBackendMemory::State {
  /// A region as the front-end has described it, and as it is mapped.
  struct Slot {
    WireRegion wire;
    dev_t device;  ///< with the inode, which file it is
    ino_t inode;
    MemoryRegionPtr region;
  };

  VhostUserBackendOptions options;
  std::vector<Slot> slots = {};
  VhostUserLog log = {};
  Published<VhostUserMap> map{VhostUserMap{}};

  /// What is replied to a message that was served: always, or where a reply was asked for.
  struct Reply {
    std::uint64_t number = 0;
    bool always = false;
  };
  /// Nothing for a message that is about something else.
  [[nodiscard]] Result<std::optional<Reply>> handle(const VhostUserMessage& message);

  [[nodiscard]] Result<void> set_table(const VhostUserMessage& message);
  [[nodiscard]] Result<void> add(const VhostUserMessage& message);
  [[nodiscard]] Result<void> remove(const VhostUserMessage& message);
  [[nodiscard]] Result<void> set_log(const VhostUserMessage& message);

  /// Whether so many regions are allowed.
  [[nodiscard]] Result<void> check_count(std::size_t regions) const;
  /// Whether `wire` could be a region beside those of `slots`.
  [[nodiscard]] static Result<void> check_place(const WireRegion& wire,
                                                std::span<const Slot> slots);
  /// Maps a region, or takes it from `before`, where it is already.
  [[nodiscard]] static Result<Slot> make_slot(const WireRegion& wire, int fd, Unsealed unsealed,
                                              std::span<const Slot> before);
  [[nodiscard]] static Result<GuestMemory> memory_of(const std::vector<Slot>& slots);

  /// Replaces slots and log by these, all or nothing, and waits until nobody uses what is gone.
  [[nodiscard]] Result<void> replace(std::vector<Slot> new_slots, VhostUserLog new_log,
                                     const char* operation);
  [[nodiscard]] Result<void> publish(const std::vector<Slot>& new_slots,
                                     const VhostUserLog& new_log, const char* operation) const;
  [[nodiscard]] bool has_region(const MemoryRegion* region) const noexcept;
};

Result<void> VhostUserBackendMemory::State::check_count(std::size_t regions) const {
  if (regions <= options.max_regions) return {};
  return fail({.code = Errc::limit_exceeded,
               .operation = serve_operation,
               .first = Operand::number(regions),
               .second = Operand::number(options.max_regions),
               .reason = "the front-end has used all of its slots"});
}

Result<void> VhostUserBackendMemory::State::check_place(const WireRegion& wire,
                                                        std::span<const Slot> slots) {
  const auto fails_overlap = [&](const GuestRange& one, const GuestRange& other,
                                 const char* reason) {
    return fail({.code = Errc::overlap,
                 .operation = serve_operation,
                 .first = detail::operand(one),
                 .second = detail::operand(other),
                 .reason = reason});
  };
  const GuestRange guest = guest_range(wire);
  const GuestRange user = user_range(wire);
  VMSPACE_TRY(
      detail::require_nonzero(serve_operation, wire.size, Operand::address(wire.guest_address)));
  if (!guest.last()) {
    return refuse(Errc::overflow, detail::operand(guest), "the guest addresses pass 2^64");
  }
  if (!user.last()) {
    return refuse(Errc::overflow, detail::operand(user), "the user addresses pass 2^64");
  }
  VMSPACE_TRY(detail::require_multiple(serve_operation, Operand::address(wire.user_address),
                                       detail::base_page_size(),
                                       "the user address must be a multiple of the page size"));
  for (const Slot& slot : slots) {
    if (guest.overlaps(guest_range(slot.wire))) {
      return fails_overlap(guest, guest_range(slot.wire), "guest addresses");
    }
    if (user.overlaps(user_range(slot.wire))) {
      return fails_overlap(user, user_range(slot.wire), "user addresses");
    }
  }
  return {};
}

Result<VhostUserBackendMemory::State::Slot> VhostUserBackendMemory::State::make_slot(
    const WireRegion& wire, int fd, Unsealed unsealed, std::span<const Slot> before) {
  struct stat file {};
  if (detail::retry([&] { return kernel().fstat(fd, &file); }) != 0) {
    return fail_os(serve_operation, detail::operand(guest_range(wire)), "fstat");
  }
  Slot slot{.wire = wire, .device = file.st_dev, .inode = file.st_ino, .region = nullptr};
  for (const Slot& old : before) {
    if (is_same_place(old.wire, wire) && old.wire.file_offset == wire.file_offset &&
        old.device == file.st_dev && old.inode == file.st_ino) {
      slot.region = old.region;
      return slot;
    }
  }
  const RegionDescriptor described{
      .range = guest_range(wire), .fd = fd, .offset = wire.file_offset};
  const GuestMemory mapped =
      VMSPACE_TRY_IN(serve_operation, map_regions(std::span(&described, 1), unsealed));
  slot.region = mapped.regions().front();
  return slot;
}

Result<GuestMemory> VhostUserBackendMemory::State::memory_of(const std::vector<Slot>& slots) {
  std::vector<MemoryRegionPtr> regions;
  regions.reserve(slots.size());
  for (const Slot& slot : slots)
    regions.push_back(slot.region);
  return GuestMemory::from_regions(std::move(regions));
}

Result<void> VhostUserBackendMemory::State::publish(const std::vector<Slot>& new_slots,
                                                    const VhostUserLog& new_log,
                                                    const char* operation) const {
  const GuestMemory memory = VMSPACE_TRY_IN(operation, memory_of(new_slots));
  return map.update(
      [&](VhostUserMap& draft) -> Result<void> {
        draft = {.memory = memory, .log = new_log};
        return {};
      },
      operation);
}

bool VhostUserBackendMemory::State::has_region(const MemoryRegion* region) const noexcept {
  return std::ranges::any_of(slots, [=](const Slot& slot) { return slot.region.get() == region; });
}

Result<void> VhostUserBackendMemory::State::replace(std::vector<Slot> new_slots,
                                                    VhostUserLog new_log, const char* operation) {
  for (const Slot& slot : new_slots) {
    if (!new_log.is_on() || new_log.covers(guest_range(slot.wire))) continue;
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = detail::operand(guest_range(slot.wire)),
                 .second = Operand::size(new_log.size()),
                 .reason = "the region ends beyond the log of this size"});
  }
  VMSPACE_TRY(publish(new_slots, new_log, operation));
  slots.swap(new_slots);
  std::swap(log, new_log);

  // From here on new_slots and new_log are the old ones.
  const auto is_used = [&] {
    const auto used = [&](const Slot& slot) {
      return !has_region(slot.region.get()) && slot.region.use_count() > 1;
    };
    return (new_log.mapping_ != log.mapping_ && new_log.mapping_.use_count() > 1) ||
           std::ranges::any_of(new_slots, used);
  };
  const bool all_stay =
      new_log.mapping_ == log.mapping_ && std::ranges::all_of(new_slots, [&](const Slot& slot) {
        return has_region(slot.region.get());
      });
  if (all_stay) return {};
  const Deadline deadline = detail::deadline_after(options.release_timeout);
  auto released = map.wait_released(options.release_timeout);
  // Views and copies of the old map hold regions by themselves. Nobody tells when they let go, and
  // once the map is gone, only a holder could make another: their number tells.
  while (released && is_used()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      released = fail({.code = Errc::timed_out,
                       .reason = "a view or a copy of the memory still holds what should go"});
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  if (released) return {};
  VMSPACE_TRY(publish(new_slots, new_log, operation));
  slots.swap(new_slots);
  std::swap(log, new_log);
  return fail(released.error().in(operation));
}

Result<void> VhostUserBackendMemory::State::set_table(const VhostUserMessage& message) {
  const WireRegions table = VMSPACE_TRY(detail::decode_table(message.payload(), serve_operation));
  VMSPACE_TRY(check_fds(message, table.count, table.count));
  VMSPACE_TRY(check_count(table.count));
  std::vector<Slot> next;
  next.reserve(table.count);
  for (const WireRegion& wire : table.all()) {
    VMSPACE_TRY(check_place(wire, next));
    auto slot = VMSPACE_TRY(make_slot(wire, message.fds()[next.size()], options.unsealed, slots));
    next.push_back(std::move(slot));
  }
  return replace(std::move(next), log, serve_operation);
}

Result<void> VhostUserBackendMemory::State::add(const VhostUserMessage& message) {
  const WireRegion wire = VMSPACE_TRY(detail::decode_region(message.payload(), serve_operation));
  VMSPACE_TRY(check_fds(message, 1, 1));
  VMSPACE_TRY(check_count(slots.size() + 1));
  VMSPACE_TRY(check_place(wire, slots));
  auto slot = VMSPACE_TRY(make_slot(wire, message.fds().front(), options.unsealed, {}));
  std::vector<Slot> next;
  next.reserve(slots.size() + 1);
  next = slots;
  next.push_back(std::move(slot));
  return replace(std::move(next), log, serve_operation);
}

Result<void> VhostUserBackendMemory::State::remove(const VhostUserMessage& message) {
  const WireRegion wire = VMSPACE_TRY(detail::decode_region(message.payload(), serve_operation));
  // Some front-ends send the descriptor here too; it is closed with the message.
  VMSPACE_TRY(check_fds(message, 0, 1));
  std::vector<Slot> next = slots;
  const auto same = [&](const Slot& slot) { return is_same_place(slot.wire, wire); };
  if (std::erase_if(next, same) == 0) {
    return refuse(Errc::not_found, detail::operand(guest_range(wire)),
                  "no region has exactly this guest address, user address and size");
  }
  return replace(std::move(next), log, serve_operation);
}

Result<void> VhostUserBackendMemory::State::set_log(const VhostUserMessage& message) {
  const WireLog wire = VMSPACE_TRY(detail::decode<WireLog>(message.payload(), serve_operation));
  VMSPACE_TRY(check_fds(message, 1, 1));
  VhostUserLog next = VMSPACE_TRY_IN(
      serve_operation,
      VhostUserLog::map({.fd = message.fds().front(), .size = wire.size, .offset = wire.offset},
                        options.unsealed));
  return replace(slots, next, serve_operation);
}

Result<std::optional<VhostUserBackendMemory::State::Reply>> VhostUserBackendMemory::State::handle(
    const VhostUserMessage& message) {
  Result<void> done;
  Reply reply;
  switch (message.request()) {
    case vhost_user::set_mem_table: done = set_table(message); break;
    case vhost_user::add_mem_reg: done = add(message); break;
    case vhost_user::rem_mem_reg: done = remove(message); break;
    case vhost_user::set_log_base:
      done = set_log(message);
      reply.always = true;
      break;
    case vhost_user::get_max_mem_slots:
      done = check_empty(message);
      reply = {.number = options.max_regions, .always = true};
      break;
    case vhost_user::set_features: {
      // One that is not as it should be is for the device to refuse. Nobody has to wait for those
      // who still write to the log: its memory stays theirs.
      const auto features = message.number();
      if (features && (*features & vhost_user::log_all) == 0 && log.is_on()) {
        VMSPACE_TRY(publish(slots, {}, serve_operation));
        log = {};
      }
      return std::nullopt;
    }
    default: return std::nullopt;
  }
  if (!done) return fail(done.error());
  return reply;
}

VhostUserBackendMemory::VhostUserBackendMemory(std::unique_ptr<State> state) noexcept
    : state_(std::move(state)) {}
VhostUserBackendMemory::VhostUserBackendMemory(VhostUserBackendMemory&&) noexcept = default;
VhostUserBackendMemory& VhostUserBackendMemory::operator=(VhostUserBackendMemory&&) noexcept =
    default;
VhostUserBackendMemory::~VhostUserBackendMemory() = default;

Result<VhostUserBackendMemory> VhostUserBackendMemory::create(
    const VhostUserBackendOptions& options) {
  constexpr const char* operation = "VhostUserBackendMemory::create";
  VMSPACE_TRY(detail::require_known(operation, options.unsealed, "not a value of Unsealed"));
  if (options.max_regions > GuestMemory::max_regions) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(options.max_regions),
                 .second = Operand::number(GuestMemory::max_regions),
                 .reason = "max_regions must not exceed GuestMemory::max_regions"});
  }
  return VhostUserBackendMemory(std::make_unique<State>(State{.options = options}));
}

Result<bool> VhostUserBackendMemory::serve(int socket_fd, const VhostUserMessage& message) {
  if (message.is_reply()) {
    return refuse(Errc::corrupt, Operand::number(message.request()),
                  "a reply to nothing that was asked");
  }
  const auto reply = state_->handle(message);
  const auto timeout = state_->options.reply_timeout;
  if (!reply) {
    // That the front-end can't be told either makes the error no better.
    if (message.needs_reply() && message.request() != vhost_user::set_log_base) {
      static_cast<void>(message.reply(socket_fd, 1, timeout));
    }
    return fail(reply.error());
  }
  if (!*reply) return false;
  if ((*reply)->always || message.needs_reply()) {
    VMSPACE_TRY_IN(serve_operation, message.reply(socket_fd, (*reply)->number, timeout));
  }
  return true;
}

const Published<VhostUserMap>& VhostUserBackendMemory::map() const noexcept {
  return state_->map;
}

Result<GuestAddress> VhostUserBackendMemory::guest_address(std::uint64_t user_address,
                                                           std::uint64_t size) const {
  constexpr const char* operation = "VhostUserBackendMemory::guest_address";
  VMSPACE_TRY(detail::require_nonzero(operation, size, Operand::address(user_address)));
  const GuestRange wanted{.base = GuestAddress(user_address), .size = size};
  const auto refuse_range = [&](Errc code, Operand second, const char* reason) {
    return fail({.code = code,
                 .operation = operation,
                 .first = detail::operand(wanted),
                 .second = second,
                 .reason = reason});
  };
  if (!wanted.last()) return refuse_range(Errc::overflow, {}, "the user addresses pass 2^64");
  for (const State::Slot& slot : state_->slots) {
    const GuestRange user = user_range(slot.wire);
    if (!user.contains(wanted.base)) continue;
    if (!user.contains(wanted)) {
      return refuse_range(Errc::out_of_bounds, detail::operand(user),
                          "the range must lie in one region");
    }
    return GuestAddress(slot.wire.guest_address + (user_address - slot.wire.user_address));
  }
  return refuse_range(Errc::not_found, {}, "no region has this user address");
}

Result<void> VhostUserBackendMemory::clear() {
  return state_->replace({}, {}, "VhostUserBackendMemory::clear");
}

Result<void> VhostUserBackendMemory::check_invariants() const {
  const auto broken = [](const char* rule) {
    return fail({.code = Errc::corrupt,
                 .operation = "VhostUserBackendMemory::check_invariants",
                 .reason = rule});
  };
  const auto shared = state_->map.snapshot();
  const std::span<const State::Slot> slots = state_->slots;
  if (shared->memory.regions().size() != slots.size()) {
    return broken("the published memory must have the regions of the slots, and no others");
  }
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const GuestRange guest = guest_range(slots[i].wire);
    if (!State::check_place(slots[i].wire, slots.first(i))) {
      return broken("regions must have valid addresses and must not overlap");
    }
    if (slots[i].region->guest_range() != guest ||
        shared->memory.find_region(guest.base) != slots[i].region) {
      return broken("each slot's region must be published at its guest address");
    }
    if (shared->log.is_on() && !shared->log.covers(guest)) {
      return broken("the log must have a bit for every page");
    }
  }
  if (shared->log.mapping_ != state_->log.mapping_) return broken("the log must be published");
  return shared->memory.check_invariants();
}

}  // namespace vmspace
