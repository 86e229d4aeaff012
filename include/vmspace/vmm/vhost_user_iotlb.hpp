// SPDX-License-Identifier: Apache-2.0
//
// The IOMMU of a vhost-user device: translations come from the front-end, as messages, into an IoTlb.
//
//   const bool served = VMSPACE_TRY(serve_iotlb(socket, message, memory, tlb));
//   if (served) continue;  // beside memory.serve()
//
// A front-end translates to its own addresses; memory that it has shared says which guest addresses
// those are. What it has not told yet is asked for over the back-end's channel, and it answers with an
// update, which the thread that serves messages receives. So a device that misses a translation ends
// its view, asks, and tries again when the update is there: it must not wait inside a view, which an
// invalidation waits for.
//
// Source: QEMU's docs/interop/vhost-user.rst, "IOTLB communication"; linux/vhost_types.h.

#pragma once

#include <chrono>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_object.hpp"
#include "vmspace/memory/io_tlb.hpp"
#include "vmspace/vmm/vhost_user_backend.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

namespace vmspace {

/// How long serve_iotlb() waits; an aggregate for designated initialisers.
struct VhostUserIotlbOptions {
  /// For views that may use what is invalidated.
  std::chrono::nanoseconds release_timeout = std::chrono::seconds(1);
  /// For a front-end to read a reply.
  std::chrono::nanoseconds reply_timeout = std::chrono::seconds(1);
};

/// Serves an update or an invalidation (VHOST_USER_IOTLB_MSG) and sends its reply, where one is asked
/// for; false when the message is about something else. An invalidation is acknowledged when no view
/// uses what it removes any more.
///
/// Errors, of which the front-end is told if it has asked for a reply: `corrupt` for a message of
/// another size, with descriptors, or of another type or access than there is; those of
/// VhostUserBackendMemory::guest_address() and IoTlb::update(), and nothing has changed then;
/// `timed_out` as by IoTlb::invalidate(); those of VhostUserMessage::reply(). Called by the thread that
/// calls VhostUserBackendMemory::serve(). O(entries + regions), and the wait.
[[nodiscard]] VMSPACE_EXPORT Result<bool> serve_iotlb(int socket_fd,
                                                      const VhostUserMessage& message,
                                                      const VhostUserBackendMemory& memory,
                                                      IoTlb& tlb,
                                                      const VhostUserIotlbOptions& options = {});

/// Asks for the translation of an IOVA that was missed (VHOST_USER_BACKEND_IOTLB_MSG), over the channel
/// that the front-end has given by VHOST_USER_SET_BACKEND_REQ_FD. Errors: `timed_out`; `os`, with EPIPE
/// when the front-end has gone. After an error close the channel: a part may have been sent. One call at
/// a time on a channel. A system call or two.
[[nodiscard]] VMSPACE_EXPORT Result<void> send_iotlb_miss(int channel_fd, GuestAddress iova,
                                                          Access access,
                                                          std::chrono::nanoseconds timeout);

}  // namespace vmspace
