// SPDX-License-Identifier: Apache-2.0
//
// The side that gives a guest away.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/handover.hpp"

#include "host/fault_owner.hpp"
#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "memory/region_error.hpp"
#include "os/system_calls.hpp"
#include "snapshot/handover_format.hpp"
#include "snapshot/handover_socket.hpp"

namespace vmspace {

namespace {

using detail::HandoverMap;
using detail::HandoverPlace;
using detail::HandoverRegion;
using detail::HandoverSocket;
using detail::send_operation;

/// How much is copied at a time.
constexpr std::uint64_t copy_piece = std::uint64_t{2} << 20;

tl::unexpected<Error> refuse(const AddressSpaceRegion& region, Errc code, const char* reason) {
  return fail(
      detail::name_region({.code = code, .operation = send_operation, .reason = reason}, region));
}

/// Whether the enumeration's value has a name.
bool is_known(PrivateMemory value) {
  return value == PrivateMemory::refuse || value == PrivateMemory::copy;
}

/// Whether only this process can map the memory.
bool is_private(const Backing& backing) {
  return backing.is_anonymous() || !backing.is_shared();
}

/// Writes `size` bytes of a region, from `from` on, into a memfd at the same offset.
Result<void> write_piece(const MemoryRegion& region, int fd, std::uint64_t from,
                         std::uint64_t size) {
  while (size != 0) {
    const ssize_t count = detail::retry([&] {
      return detail::kernel().pwrite(fd, region.host_base() + from, size, static_cast<off_t>(from));
    });
    if (count <= 0) {
      const int error = count == 0 ? EIO : errno;
      if (detail::is_fault(region, error)) {
        const GuestAddress lost(region.base().value() + from);
        return fail(detail::fault_error(send_operation, {lost, size}, lost));
      }
      return detail::fail_os(send_operation, Operand::span(from, size),
                             "copying memory into a memfd", error);
    }
    from += static_cast<std::uint64_t>(count);
    size -= static_cast<std::uint64_t>(count);
  }
  return {};
}

/// Copies a part of a region into its memfd; pages of zeros are left absent there.
Result<void> copy_part(const MemoryRegion& region, const MemoryMapping& to, Extent part) {
  const std::byte* const memory = region.host_base();
  const std::uint64_t page = to.page_size();
  for (std::uint64_t at = part.offset; at < part.end();) {
    std::uint64_t stop = at;
    VMSPACE_TRY(detail::touch_region(send_operation, region, at, part.end() - at, [&] {
      while (at < part.end() && is_zero({memory + at, page}))
        at += page;
      stop = at;
      while (stop < part.end() && !is_zero({memory + stop, page}))
        stop += page;
      // hugetlbfs has no write(2); its pages were reserved by mapping them.
      if (to.backing().is_hugetlb()) std::memcpy(to.data() + at, memory + at, stop - at);
    }));
    if (!to.backing().is_hugetlb()) {
      VMSPACE_TRY(write_piece(region, to.backing().fd(), at, stop - at));
    }
    at = stop;
  }
  return {};
}

/// What the copy of a region is to be made from.
BackingSpec spec_of_copy(const MemoryRegion& region) {
  const Backing& backing = region.backing();
  if (backing.is_hugetlb()) {
    return {.source = MemorySource::hugeshmem, .page_size = backing.page_size()};
  }
  return {.source = MemorySource::shmem, .page_size = region.description().backing().page_size};
}

/// A memfd with the contents of a region, on the same host nodes.
Result<Backing> copy_region(const MemoryRegion& region) {
  const Backing backing = VMSPACE_TRY(Backing::open(
      spec_of_copy(region), region.size(), Protection::read_write, region.description().name()));
  MemoryMapping to = VMSPACE_TRY(MemoryMapping::map(
      backing, {.size = region.size(), .align = std::max(backing.page_size(), copy_piece)}));
  if (region.mapping().numa_policy().mode != NumaMode::by_default) {
    VMSPACE_TRY(to.bind_to_nodes(region.mapping().numa_policy()));
  }
  PageScan scan(region.mapping());
  for (std::uint64_t at = 0; at < region.size();) {
    const std::uint64_t begin = at + detail::absent_after(region, at, region.size() - at);
    const std::uint64_t end = begin + detail::present_after(region, begin, region.size() - begin);
    if (begin == end) break;
    const Extent used = VMSPACE_TRY_IN(send_operation, scan.next(begin, end));
    for (at = used.offset; at < used.end();) {
      // Whole pieces, so that a huge page is in one.
      const std::uint64_t rest = std::max(copy_piece, to.page_size()) - at % copy_piece;
      const Extent part{at, std::min(rest, used.end() - at)};
      VMSPACE_TRY(copy_part(region, to, part));
      at += part.size;
    }
  }
  return backing;
}

/// What is sent: the map, and the memory that its files are.
struct Parcel {
  HandoverMap map;
  std::vector<Backing> files;
  bool tracked = false;

  /// The number of a file, which is added where it is new.
  std::uint32_t number_of(const Backing& backing) {
    const auto known = std::ranges::find(files, backing);
    if (known == files.end()) {
      files.push_back(backing);
      map.files.push_back({.offset = backing.offset(),
                           .size = backing.size(),
                           .page_size = backing.page_size(),
                           .discardable = backing.is_discardable()});
      return static_cast<std::uint32_t>(files.size() - 1);
    }
    return static_cast<std::uint32_t>(known - files.begin());
  }
};

Result<void> check_shareable(const MemoryRegion& region, PrivateMemory private_memory) {
  const Backing& backing = region.backing();
  if (backing.is_external()) {
    return refuse(region.description(), Errc::unsupported,
                  "memory of a device, or of another library, stays where it is: hand the guest "
                  "over without this region");
  }
  if (const char* holder = detail::FaultClaim::holder(region.mapping())) {
    return fail(
        detail::name_region({.code = Errc::bad_state,
                             .operation = send_operation,
                             .reason = "the memory's page faults are still handled here, by",
                             .text = {{}, holder}},
                            region.description()));
  }
  if (is_private(backing) && private_memory == PrivateMemory::refuse) {
    return refuse(region.description(), Errc::unsupported,
                  "the memory is anonymous or a private copy of a file, which another process "
                  "can't map; PrivateMemory::copy sends a copy of it");
  }
  return {};
}

/// Each region of the memory must be described by the space.
Result<void> check_guest(const Handover& guest, PrivateMemory private_memory) {
  for (const MemoryRegionPtr& region : guest.memory.regions()) {
    const AddressSpaceRegion* described = guest.space.find_region(region->base());
    if (described == nullptr || *described != region->description()) {
      return refuse(region->description(), Errc::invalid_argument,
                    "the region is mapped, and the address space does not have it as it is");
    }
    VMSPACE_TRY(check_shareable(*region, private_memory));
  }
  return {};
}

/// A region that is not mapped.
Result<HandoverRegion> describe(const AddressSpaceRegion& region, bool parked) {
  if (region.backing().fd) {
    return refuse(region, Errc::unsupported,
                  "the region is not mapped, and its description has an fd, which means nothing to "
                  "another process");
  }
  return HandoverRegion{.options = region.options(), .parked = parked};
}

/// How the receiver binds the region to its node. Not where more than that was asked for: such a policy
/// is in the file (mbind(2)), and binding again would replace it.
NumaMode numa_mode_of(const MemoryRegion& region) {
  const NumaPolicy& policy = region.mapping().numa_policy();
  const auto node = region.description().numa_node();
  const bool is_described = node && policy.nodes == std::vector{*node};
  return is_described ? policy.mode : NumaMode::by_default;
}

/// A mapped region, whose memory is a file of the parcel then.
Result<HandoverRegion> describe(const MemoryRegion& region, Parcel& parcel) {
  HandoverRegion described{.options = region.description().options()};
  const MemoryMapping& mapping = region.mapping();
  HandoverPlace place{.numa_mode = numa_mode_of(region), .guarded = region.may_fault()};
  if (is_private(region.backing())) {
    auto copy = copy_region(region);
    if (!copy)
      return fail(detail::name_region(copy.error().in(send_operation), region.description()));
    described.options.backing = spec_of_copy(region);
    place.file = parcel.number_of(*copy);
  } else {
    place.file = parcel.number_of(region.backing());
    place.offset = mapping.file_offset() - region.backing().offset();
  }
  if (const PresentBlocksPtr& blocks = region.blocks(); blocks != nullptr) {
    place.block_size = blocks->block_size();
    place.slot_size = blocks->slot_size();
    place.present = blocks->runs();
  }
  described.place = std::move(place);
  return described;
}

Result<Parcel> pack(const Handover& guest, PrivateMemory private_memory) {
  VMSPACE_TRY(check_guest(guest, private_memory));
  Parcel parcel;
  const AddressSpaceLayout& layout = guest.space.layout();
  parcel.map.layout = {.phys_max = layout.phys_max(),
                       .ram = layout.ram_range(),
                       .apertures = {layout.apertures().begin(), layout.apertures().end()},
                       .holes = {layout.holes().begin(), layout.holes().end()}};
  for (const AddressSpaceRegionPtr& region : guest.space) {
    const MemoryRegion* const mapped = guest.memory.region_at(region->base());
    auto described =
        VMSPACE_TRY(mapped == nullptr ? describe(*region, false) : describe(*mapped, parcel));
    parcel.map.regions.push_back(std::move(described));
    parcel.tracked = parcel.tracked || (mapped != nullptr && mapped->dirty().is_enabled());
  }
  for (const AddressSpaceRegionPtr& region : guest.space.parked()) {
    auto described = VMSPACE_TRY(describe(*region, true));
    parcel.map.regions.push_back(std::move(described));
  }
  return parcel;
}

Result<void> send_files(HandoverSocket& socket, std::span<const Backing> files) {
  std::vector<int> fds;
  fds.reserve(std::min(files.size(), detail::max_message_fds));
  while (!files.empty()) {
    const auto batch = files.first(std::min(files.size(), detail::max_message_fds));
    fds.clear();
    for (const Backing& file : batch)
      fds.push_back(file.fd());
    VMSPACE_TRY(socket.send({&detail::handover_files, 1}, fds));
    files = files.subspan(batch.size());
  }
  return {};
}

/// Sends which pages are dirty, without forgetting them. Of a region that does not track, beside
/// others that do, all pages are.
Result<void> send_bitmap(HandoverSocket& socket, const MemoryRegion& region,
                         std::span<Le64> words) {
  const std::uint64_t pages = region.dirty().pages();
  std::vector<DirtyRange> ranges{{0, region.size()}};
  if (region.dirty().is_enabled()) ranges = region.dirty().peek();
  const std::uint64_t count = detail::bitmap_words(region.size());
  auto range = ranges.begin();
  std::uint64_t next = 0;  // page of the range that is to be marked
  for (std::uint64_t first = 0; first < count; first += words.size()) {
    const auto piece = words.first(std::min<std::uint64_t>(words.size(), count - first));
    std::ranges::fill(piece, Le64(0));
    const std::uint64_t end = std::min(pages, (first + piece.size()) * 64);
    while (range != ranges.end()) {
      const std::uint64_t page_size = DirtyBitmap::page_size;
      const std::uint64_t last = (range->offset + range->size - 1) / page_size;
      next = std::max(next, range->offset / page_size);
      for (; next <= last && next < end; ++next) {
        Le64& word = piece[next / 64 - first];
        word = word.value() | std::uint64_t{1} << (next % 64);
      }
      if (next <= last) break;
      ++range;
    }
    VMSPACE_TRY(socket.send(std::as_bytes(piece)));
  }
  return {};
}

Result<void> send_bitmaps(HandoverSocket& socket, const GuestMemory& memory) {
  std::vector<Le64> words(detail::bitmap_piece);
  for (const MemoryRegionPtr& region : memory.regions())
    VMSPACE_TRY(send_bitmap(socket, *region, words));
  return {};
}

}  // namespace

Result<void> send_handover(int socket_fd, const Handover& guest,
                           const SendHandoverOptions& options) {
  if (!is_known(options.private_memory)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = send_operation,
                 .reason = "not a value of PrivateMemory"});
  }
  VMSPACE_TRY(HandoverSocket::check(send_operation, socket_fd));
  const Parcel parcel = VMSPACE_TRY(pack(guest, options.private_memory));
  const std::vector<std::byte> map = VMSPACE_TRY(detail::encode_handover(parcel.map));
  const detail::HandoverHead head{
      .files = static_cast<std::uint32_t>(parcel.files.size()),
      .map_size = map.size(),
      .state_size = guest.state.size(),
      .flags = parcel.tracked ? detail::handover_tracked : 0,
  };

  HandoverSocket socket(send_operation, socket_fd, options.timeout);
  VMSPACE_TRY(socket.send(std::as_bytes(std::span(&head, 1))));
  VMSPACE_TRY(send_files(socket, parcel.files));
  VMSPACE_TRY(socket.send(map));
  if (parcel.tracked) VMSPACE_TRY(send_bitmaps(socket, guest.memory));
  VMSPACE_TRY(socket.send(guest.state));
  VMSPACE_TRY(socket.expect(detail::handover_ready));
  // From here on the guest is the receiver's; where this fails, the byte has not been sent.
  VMSPACE_TRY(socket.send({&detail::handover_commit, 1}));
  socket.done();
  return {};
}

}  // namespace vmspace
