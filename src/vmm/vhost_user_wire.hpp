// SPDX-License-Identifier: Apache-2.0
//
// Messages of vhost-user as they travel: the numbers and layouts of those about memory, and how
// bytes and descriptors go through a socket before a deadline.
//
// Source: QEMU's docs/interop/vhost-user.rst. Byte order is the machine's.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "vmspace/base/result.hpp"

#include "os/descriptor.hpp"
#include "os/unix_socket.hpp"

namespace vmspace::detail {

/// VHOST_USER_*, of front-ends.
namespace vhost_user {
inline constexpr std::uint32_t get_features = 1;
inline constexpr std::uint32_t set_features = 2;
inline constexpr std::uint32_t set_mem_table = 5;
inline constexpr std::uint32_t set_log_base = 6;
inline constexpr std::uint32_t iotlb_msg = 22;
inline constexpr std::uint32_t get_max_mem_slots = 36;
inline constexpr std::uint32_t add_mem_reg = 37;
inline constexpr std::uint32_t rem_mem_reg = 38;

/// VHOST_USER_BACKEND_*, of back-ends, on a channel of their own.
inline constexpr std::uint32_t backend_iotlb_msg = 1;

/// What an IOTLB message is (VHOST_IOTLB_*).
inline constexpr std::uint8_t iotlb_miss = 1;
inline constexpr std::uint8_t iotlb_update = 2;
inline constexpr std::uint8_t iotlb_invalidate = 3;
inline constexpr std::uint8_t iotlb_access_fail = 4;
/// What it allows, or asks for (VHOST_ACCESS_*).
inline constexpr std::uint8_t access_read = 1;
inline constexpr std::uint8_t access_write = 2;
inline constexpr std::uint8_t access_both = 3;

/// The feature bit VHOST_F_LOG_ALL: the back-end logs its writes.
inline constexpr std::uint64_t log_all = std::uint64_t{1} << 26U;

// Flags of a header.
inline constexpr std::uint32_t version_mask = 3;
inline constexpr std::uint32_t version = 1;
inline constexpr std::uint32_t is_reply = 4;
inline constexpr std::uint32_t need_reply = 8;

/// The most regions that SET_MEM_TABLE can carry.
inline constexpr std::size_t max_table = 8;
/// What a bit of a log stands for, in bytes (VHOST_LOG_PAGE).
inline constexpr std::uint64_t log_page = 0x1000;
}  // namespace vhost_user

struct WireHeader {
  std::uint32_t request = 0;
  std::uint32_t flags = 0;
  std::uint32_t size = 0;  ///< of the payload, in bytes
};
static_assert(sizeof(WireHeader) == 12);

/// A region of memory, in a table or alone. In the kernel's struct vhost_memory_region, the fourth
/// field are flags, none of which exist.
struct WireRegion {
  std::uint64_t guest_address = 0;
  std::uint64_t size = 0;
  std::uint64_t user_address = 0;  ///< where the front-end says that it has it
  std::uint64_t file_offset = 0;
};
static_assert(sizeof(WireRegion) == 32);

/// What comes before the regions of a table, in the kernel's struct vhost_memory too.
struct WireTable {
  std::uint32_t count = 0;
  std::uint32_t padding = 0;
};
static_assert(sizeof(WireTable) == 8);

/// The payload of ADD_MEM_REG and REM_MEM_REG.
struct WireSingle {
  std::uint64_t padding = 0;
  WireRegion region = {};
};
static_assert(sizeof(WireSingle) == 40);

/// The payload of SET_LOG_BASE.
struct WireLog {
  std::uint64_t size = 0;
  std::uint64_t offset = 0;
};
static_assert(sizeof(WireLog) == 16);

// Not from linux/vhost_types.h, which includes a header that is no C++.

/// The payload of IOTLB messages: the kernel's struct vhost_iotlb_msg.
struct WireIotlb {
  std::uint64_t iova = 0;
  std::uint64_t size = 0;
  std::uint64_t user_address = 0;
  std::uint8_t access = 0;  ///< access_*
  std::uint8_t type = 0;    ///< iotlb_*
  std::uint8_t padding[6] = {};
};
static_assert(sizeof(WireIotlb) == 32);

/// The regions that a SET_MEM_TABLE carries.
struct WireRegions {
  std::array<WireRegion, vhost_user::max_table> regions = {};
  std::size_t count = 0;

  [[nodiscard]] std::span<const WireRegion> all() const noexcept {
    return std::span(regions).first(count);
  }
};

/// Reads a payload that is exactly a T. Errors: `corrupt`.
template <typename T>
[[nodiscard]] Result<T> decode(std::span<const std::byte> payload, const char* operation) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (payload.size() != sizeof(T)) {
    return fail({.code = Errc::corrupt,
                 .operation = operation,
                 .first = Operand::size(payload.size()),
                 .second = Operand::size(sizeof(T)),
                 .reason = "the payload must have the size that the request's number implies"});
  }
  T value;
  std::memcpy(&value, payload.data(), sizeof(T));
  return value;
}

/// Reads the payload of SET_MEM_TABLE. Errors: `corrupt` unless its size is that of the regions it
/// announces, and the padding is 0; `limit_exceeded` above max_table regions.
[[nodiscard]] Result<WireRegions> decode_table(std::span<const std::byte> payload,
                                               const char* operation);
/// Reads the payload of ADD_MEM_REG or REM_MEM_REG. Errors: `corrupt`.
[[nodiscard]] Result<WireRegion> decode_region(std::span<const std::byte> payload,
                                               const char* operation);

/// Sends a header, its payload, and descriptors with it. Errors: `timed_out`; `os`. After any, a
/// part may have been sent.
[[nodiscard]] Result<void> send_message(int socket_fd, const WireHeader& header,
                                        std::span<const std::byte> payload,
                                        std::span<const int> fds, Deadline deadline,
                                        const char* operation);

/// Reads a header and the descriptors that come with it. Errors: those of
/// VhostUserMessage::receive().
[[nodiscard]] Result<WireHeader> receive_header(int socket_fd, Deadline deadline,
                                                std::span<Descriptor> fds, std::size_t& fd_count,
                                                const char* operation);
/// Fills `payload`, which no descriptors may come with. Errors: `corrupt` also for one that has not
/// arrived in time.
[[nodiscard]] Result<void> receive_payload(int socket_fd, Deadline deadline,
                                           std::span<std::byte> payload, const char* operation);

}  // namespace vmspace::detail
