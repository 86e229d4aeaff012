// SPDX-License-Identifier: Apache-2.0
//
// The side that takes a guest, and trusts nothing that it is told.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/backing.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/handover.hpp"

#include "memory/region_error.hpp"
#include "os/descriptor.hpp"
#include "snapshot/handover_format.hpp"
#include "snapshot/handover_socket.hpp"

namespace vmspace {

namespace {

using detail::Descriptor;
using detail::HandoverFile;
using detail::HandoverMap;
using detail::HandoverPlace;
using detail::HandoverRegion;
using detail::HandoverSocket;
using detail::receive_operation;

/// Receives `size` bytes. Memory is allocated as they come, and never for what was only announced.
Result<std::vector<std::byte>> receive_bytes(HandoverSocket& socket, std::uint64_t size) {
  constexpr std::uint64_t piece = 64 * 1024;
  std::vector<std::byte> bytes;
  while (bytes.size() < size) {
    const std::size_t at = bytes.size();
    bytes.resize(at + std::min(piece, size - at));
    VMSPACE_TRY(socket.receive(std::span(bytes).subspan(at)));
  }
  return bytes;
}

Result<std::vector<Descriptor>> receive_files(HandoverSocket& socket, std::uint32_t count) {
  std::vector<Descriptor> files(count);
  for (auto left = std::span(files); !left.empty();) {
    const auto batch = left.first(std::min(left.size(), detail::max_message_fds));
    VMSPACE_TRY(socket.expect(detail::handover_files, batch));
    left = left.subspan(batch.size());
  }
  return files;
}

/// Whether there is more memory than the caller wants.
Result<void> check_memory_size(const HandoverMap& map, std::uint64_t limit) {
  std::uint64_t left = limit;
  for (const HandoverRegion& region : map.regions) {
    if (!region.place) continue;
    if (region.options.size > left) {
      return fail({.code = Errc::limit_exceeded,
                   .operation = receive_operation,
                   .first = Operand::span(region.options.base.value(), region.options.size),
                   .second = Operand::size(limit),
                   .reason = "the guest has more memory than max_memory allows",
                   .text = region.options.name});
    }
    left -= region.options.size;
  }
  return {};
}

/// Opens the files. What regions may write decides what they must be open for.
Result<std::vector<Backing>> open_files(const HandoverMap& map, std::vector<Descriptor> fds) {
  std::vector<Protection> protections(fds.size(), Protection::read);
  for (const HandoverRegion& region : map.regions) {
    if (region.place && allows(region.options.protection, Protection::write)) {
      protections[region.place->file] = Protection::read_write;
    }
  }
  std::vector<Backing> backings;
  backings.reserve(fds.size());
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const HandoverFile& file = map.files[i];
    const BackingSpec spec{.source = MemorySource::file,
                           .fd = fds[i].value(),
                           .offset = file.offset,
                           .page_size = file.page_size,
                           .sharing = Sharing::map_shared,
                           .discardable = file.discardable};
    auto backing =
        VMSPACE_TRY_IN(receive_operation, Backing::open(spec, file.size, protections[i]));
    backings.push_back(std::move(backing));
  }
  return backings;
}

Result<PresentBlocksPtr> blocks_of(const HandoverPlace& place, std::uint64_t region_size) {
  if (place.block_size == 0) return nullptr;
  const auto none =
      VMSPACE_TRY(PresentBlocks::none(region_size, place.block_size, place.slot_size));
  return none->with(place.present);
}

/// What to do with a file that can lose pages, where the sender may have guarded against that.
Unsealed unsealed_of(const HandoverPlace& place, Unsealed wanted) {
  return wanted == Unsealed::accept && place.guarded ? Unsealed::guard : wanted;
}

Result<MemoryRegionPtr> map_region(const AddressSpaceRegionPtr& description,
                                   const HandoverPlace& place, const Backing& backing,
                                   MapOptions options) {
  auto blocks = blocks_of(place, description->size());
  if (!blocks) {
    return fail(detail::name_region(blocks.error().in(receive_operation), description->name(),
                                    detail::operand(description->guest_range()), {}));
  }
  options.backing = backing;
  options.backing_offset = place.offset;
  options.external.reset();
  options.blocks = *std::move(blocks);
  options.numa_mode = place.numa_mode;
  options.defer_populate = true;
  options.unsealed = unsealed_of(place, options.unsealed);
  return VMSPACE_TRY_IN(receive_operation, MemoryRegion::map(description, options));
}

/// A guest that is being received.
struct Unpacked {
  AddressSpaceBase space;
  std::vector<MemoryRegionPtr> regions;
};

Result<Unpacked> unpack(HandoverMap map, std::span<const Backing> files,
                        const MapOptions& options) {
  auto layout = VMSPACE_TRY_IN(receive_operation, AddressSpaceLayout::make(std::move(map.layout)));
  Unpacked guest{.space = AddressSpaceBase(std::move(layout)), .regions = {}};
  for (HandoverRegion& region : map.regions) {
    // The sender's number of the descriptor means nothing here.
    if (region.options.backing.fd && region.place) {
      region.options.backing.fd = files[region.place->file].fd();
    }
    auto description =
        VMSPACE_TRY_IN(receive_operation, AddressSpaceRegion::make(std::move(region.options)));
    if (region.parked) {
      VMSPACE_TRY_IN(receive_operation, guest.space.insert_parked_region(std::move(description)));
      continue;
    }
    VMSPACE_TRY_IN(receive_operation, guest.space.insert_region(description));
    if (!region.place) continue;
    auto mapped =
        VMSPACE_TRY(map_region(description, *region.place, files[region.place->file], options));
    guest.regions.push_back(std::move(mapped));
  }
  return guest;
}

Result<void> receive_bitmap(HandoverSocket& socket, DirtyBitmap& dirty, std::span<Le64> words,
                            std::span<std::uint64_t> values) {
  VMSPACE_TRY_IN(receive_operation, dirty.enable());
  const std::uint64_t count = detail::bitmap_words(dirty.size());
  for (std::uint64_t first = 0; first < count; first += words.size()) {
    const auto piece = words.first(std::min<std::uint64_t>(words.size(), count - first));
    VMSPACE_TRY(socket.receive(std::as_writable_bytes(piece)));
    std::ranges::transform(piece, values.begin(), &Le64::value);
    VMSPACE_TRY_IN(receive_operation,
                   dirty.merge(first * 64 * DirtyBitmap::page_size, values.first(piece.size()),
                               DirtyBitmap::page_size));
  }
  return {};
}

Result<void> receive_bitmaps(HandoverSocket& socket, std::span<const MemoryRegionPtr> regions) {
  std::vector<Le64> words(detail::bitmap_piece);
  std::vector<std::uint64_t> values(detail::bitmap_piece);
  for (const MemoryRegionPtr& region : regions)
    VMSPACE_TRY(receive_bitmap(socket, region->dirty(), words, values));
  return {};
}

/// Waits for the sender to give the guest up.
Result<void> receive_commit(HandoverSocket& socket) {
  const auto first = socket.expect(detail::handover_commit);
  if (first || first.error().code == Errc::corrupt) return first;
  // The sender may be about to send it. Once the socket is shut down it can't, and what came before
  // that is still there.
  if (const auto shut = socket.shut_down(); !shut) {
    return fail({.code = Errc::inconsistent,
                 .operation = receive_operation,
                 .reason = "the sender may give the guest up although it was not received: the "
                           "socket could not be shut down",
                 .os_errno = shut.error().os_errno});
  }
  return socket.expect(detail::handover_commit) ? Result<void>() : first;
}

}  // namespace

Result<Handover> receive_handover(int socket_fd, const ReceiveHandoverOptions& options) {
  VMSPACE_TRY(HandoverSocket::check(receive_operation, socket_fd));
  HandoverSocket socket(receive_operation, socket_fd, options.timeout);
  detail::HandoverHead head;
  VMSPACE_TRY(socket.receive(std::as_writable_bytes(std::span(&head, 1))));
  VMSPACE_TRY(detail::check_handover_head(head));
  if (head.state_size > options.max_state) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = receive_operation,
                 .first = Operand::size(head.state_size),
                 .second = Operand::size(options.max_state),
                 .reason = "the caller's state is longer than max_state allows"});
  }
  auto fds = VMSPACE_TRY(receive_files(socket, head.files));
  const auto bytes = VMSPACE_TRY(receive_bytes(socket, head.map_size));
  auto map = VMSPACE_TRY(detail::decode_handover(bytes, head.files));
  VMSPACE_TRY(check_memory_size(map, options.max_memory));
  const auto files = VMSPACE_TRY(open_files(map, std::move(fds)));
  auto unpacked = VMSPACE_TRY(unpack(std::move(map), files, options.map));
  if (head.flags == detail::handover_tracked) {
    VMSPACE_TRY(receive_bitmaps(socket, unpacked.regions));
  }
  auto state = VMSPACE_TRY(receive_bytes(socket, head.state_size));
  const auto memory =
      VMSPACE_TRY_IN(receive_operation, GuestMemory::from_regions(std::move(unpacked.regions)));
  Result<Handover> guest(
      Handover{.space = std::move(unpacked.space), .memory = memory, .state = std::move(state)});
  // Nothing is allocated from here on, and nothing can be refused.
  VMSPACE_TRY(socket.send({&detail::handover_ready, 1}));
  VMSPACE_TRY(receive_commit(socket));
  socket.done();
  return guest;
}

}  // namespace vmspace
