// SPDX-License-Identifier: Apache-2.0
//
// What the tests of VhostUserMemory share: one that is connected, and a peer to answer it.

#pragma once

#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/vmm/vhost_user_memory.hpp"

#include "vmm/vhost_user_support.hpp"

namespace vmspace::test {

inline constexpr std::uint64_t slots = VhostUserFeature::configure_mem_slots;
inline constexpr std::uint64_t acks = VhostUserFeature::reply_ack;
inline constexpr std::uint64_t logs = VhostUserFeature::log_shmfd;

inline VhostUserMemoryOptions with(std::uint64_t features) {
  return {.name = "net0", .protocol_features = features, .timeout = long_enough};
}

inline std::unique_ptr<VhostUserMemory> memory_for(const SocketPair& pair,
                                                   const VhostUserMemoryOptions& options) {
  auto made = VhostUserMemory::create(pair.front.value(), options);
  EXPECT_TRUE(made) << made.error().message();
  return *std::move(made);
}

/// A peer that is given the replies it shall send, byte by byte, before it is asked.
inline void will_reply(const SocketPair& pair, std::uint32_t request, std::uint64_t number) {
  send_request(pair.back.value(), request, bytes_of(number), {}, vhost_user::is_reply);
}

/// A log as the front-end has it.
struct SharedLog {
  explicit SharedLog(std::uint64_t size) : file(memory_file(size)) {
    bits = static_cast<unsigned char*>(
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.value(), 0));
    mapped = size;
  }
  SharedLog(const SharedLog&) = delete;
  SharedLog& operator=(const SharedLog&) = delete;
  ~SharedLog() { ::munmap(bits, mapped); }

  Descriptor file;
  unsigned char* bits;
  std::uint64_t mapped;
};

}  // namespace vmspace::test
