// SPDX-License-Identifier: Apache-2.0
//
// A guest's memory to another process without copying it, as for the upgrade of a running VMM: the
// old process stops its vCPUs and sends, the new one receives and runs on.
//
//   // the old process, vCPUs and devices stopped
//   VMSPACE_TRY(send_handover(socket, {.space = space, .memory = memory, .state = registers}));
//   // the new process
//   const Handover taken = VMSPACE_TRY(receive_handover(socket));
//   const auto vm_memory = VMSPACE_TRY(VmMemory::adopt({taken.space, taken.memory}));  // if one is used
//
// A ResourceManager's claims travel as text, in the state; the receiver's manager adopts them with
// FoundRegions::take_over, since the regions come with the map. Retired ones come too: collect() first.
//
// What travels is the address space (layout, all regions, also those of devices and parked ones), for
// each mapped region the descriptor of its memory and how it is mapped, which pages are dirty where
// they are tracked, and a piece of state of the caller's own, such as the registers of vCPUs.
//
// Exactly one process has the guest, whatever fails when:
//
//   sender                                   receiver
//     map, descriptors, dirty pages, state  -->  maps and checks all of it
//                                          <--   ready
//     commit                                -->  has the guest
//
// The sender gives the guest up by sending the commit, a single byte, and by nothing else. After an
// error of send_handover() it has not been sent, and never will be: the guest is the sender's, whose
// memory was only read, and may run on. When send_handover() succeeds, the receiver has mapped and
// checked everything and finds the commit in its socket; the guest is the receiver's. A receiver that
// gives up shuts the socket down first, and looks once more: the kernel lets the sender's byte either
// come before that, and then the receiver has the guest, or not at all. (A receiver that is killed
// after the commit takes the guest with it.) After an error the socket is shut down on either side,
// unless nothing was sent yet.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace vmspace {

/// A guest, as it is handed over; an aggregate for designated initialisers.
struct Handover {
  /// What every guest address is.
  AddressSpaceBase space;
  /// What is mapped: each region is one of `space`. (Regions of `space` that are not mapped remain
  /// descriptions.)
  GuestMemory memory;
  /// The caller's own: vCPUs and devices. Empty, or in any form.
  std::vector<std::byte> state = {};
};

/// What to do with memory that only this process can map: anonymous memory, and private copies of
/// files.
enum class PrivateMemory : std::uint8_t {
  refuse,  ///< return `unsupported`
  copy,    ///< copy it into memfds, which are sent in its place
};

/// How to send; an aggregate for designated initialisers.
struct SendHandoverOptions {
  /// What to do with memory that has no descriptor to send.
  PrivateMemory private_memory = PrivateMemory::refuse;
  /// For all of it, from the first byte to the commit; copying private memory comes before.
  std::chrono::nanoseconds timeout = std::chrono::seconds(10);
};

/// How to receive; an aggregate for designated initialisers.
struct ReceiveHandoverOptions {
  /// How regions are mapped here. What the sender says stands instead of `backing`, `backing_offset`,
  /// `external`, `blocks` and `numa_mode`, and nothing is populated again. `unsealed` is what to do with
  /// files that others can cut off; with `accept`, regions that the sender has guarded still are.
  MapOptions map = {.unsealed = Unsealed::guard};
  /// The most bytes of guest memory, all regions together. A dirty bitmap has a bit for 4096 of them.
  std::uint64_t max_memory = std::uint64_t{16} << 40;
  /// The most bytes of Handover::state.
  std::uint64_t max_state = std::uint64_t{64} << 20;
  /// For all of it, until the commit has come.
  std::chrono::nanoseconds timeout = std::chrono::seconds(10);
};

/// Gives the guest to the process at the other end of `socket_fd`, a UNIX stream socket, and returns when
/// it is that one's. vCPUs and devices are stopped, and dirty logs of others (KVM, vhost) merged,
/// before; after success nothing of this process may touch the memory or let the guest run. It stays
/// mapped until `guest.memory` is let go. Dirty state is sent, and not cleared.
///
/// A region whose memory was copied is described as one of source `shmem`, or `hugeshmem`, to the
/// receiver. NUMA bindings, advice on huge pages, the page size, present blocks and what the guest may
/// do are sent along; a policy of several nodes stays with the file and is not repeated. What belongs
/// to this process alone is not: pins, locked pages, host addresses, slots of KVM and mappings for DMA.
/// Nor is a MemoryBlocks, and the receiver can't make one for a region that is in blocks already: there
/// what is plugged stays plugged, and nothing can be added, until the guest is restarted.
///
/// Errors, each naming the region where it is about one: `unsupported` for private memory that is not
/// to be copied, for memory of sources `device` and `external`, and for a description that has an fd
/// and is not mapped; `bad_state` for memory that is being restored or saved, naming by what;
/// `invalid_argument` for a region of `memory` that `space` does not have, for names
/// with unprintable characters, a socket of another kind, and a private_memory that is not a named
/// value; `limit_exceeded` above 65,536 regions, 1,024 parked ones, 256 apertures and holes, 1,024
/// bytes of a name, 4,095 of a path, 4,096 runs of present blocks in a region, or 16 MiB for all of
/// these; those of Backing::open and MemoryMapping::map for copies; `fault` where a page to be copied
/// is gone: nothing was sent then. `timed_out`; `corrupt` for a peer that answers with anything else;
/// `os`: ECONNRESET or EPIPE for a peer that refuses, or goes. After every error the guest is this
/// process's, and unchanged.
///
/// O(regions), plus a bit a page where dirty pages are tracked, plus what is copied. One system call
/// for 253 descriptors.
[[nodiscard]] VMSPACE_EXPORT Result<void> send_handover(int socket_fd, const Handover& guest,
                                                        const SendHandoverOptions& options = {});

/// Takes a guest from the process at the other end of `socket_fd`, a UNIX stream socket. Nothing that
/// comes is trusted: every number, text and descriptor is checked, memory is allocated as bytes arrive
/// or within the limits above, and after an error nothing stays mapped or open.
///
/// Regions say the same here as there, but for a description by descriptor, which has the number of
/// BackingSpec::fd that the memory has here (Backing::fd()). A path in a description is the sender's word:
/// the memory was not opened by it. Memory is a file that others may hold, to whoever does not trust
/// them: `options.map.unsealed` says what to do with one that can be cut off; memfds that the
/// library has made can't, but for those of huge pages, which need a FaultGuard, or `accept`. A file
/// whose file system another process serves (FUSE, NFS) may make the calls on it wait, which no timeout
/// bounds.
///
/// Errors, which name the region where they are about one: `invalid_argument` for a socket of another
/// kind; `timed_out`; `corrupt` for anything that is not a handover, or contradicts itself;
/// `unsupported` for a newer version of the format; `limit_exceeded` above the limits of `options`;
/// `access_denied` for files that can be cut off, see `options.map.unsealed`; those of
/// AddressSpaceLayout::make, AddressSpaceRegion::make, AddressSpaceBase::insert_region, Backing::open,
/// MemoryRegion::map and DirtyBitmap::enable for what is described and does not hold; `os`: ECONNRESET
/// for a peer that goes before the commit. After every error but one the guest is the sender's:
/// `inconsistent` when the socket could not be shut down either, so that the sender may yet give it up.
///
/// O(regions), plus a bit a page where dirty pages are tracked; a few system calls a region.
[[nodiscard]] VMSPACE_EXPORT Result<Handover> receive_handover(
    int socket_fd, const ReceiveHandoverOptions& options = {});

}  // namespace vmspace
