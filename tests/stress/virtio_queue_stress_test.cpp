// SPDX-License-Identifier: Apache-2.0
//
// A driver and a device on threads of their own, which notify each other only when they are asked to:
// no request is lost, none is seen before its buffers are written, and nobody waits for ever.

#include <cstdint>

#include <gtest/gtest.h>

#include "virtio/queue_threads.hpp"

namespace vmspace::virtio_queue_stress_test {
namespace {

using namespace test;

constexpr std::uint64_t requests = 20000;

TEST(SplitQueueStress, LosesNoRequestAndNoNotification) {
  for (const bool event_index : {false, true})
    serve_requests(Driver(queue_ids * most_buffers, false, event_index), requests);
}

TEST(PackedQueueStress, LosesNoRequestAndNoNotification) {
  for (const bool event_index : {false, true})
    serve_requests(PackedDriver(13, false, event_index), requests);
}

}  // namespace
}  // namespace vmspace::virtio_queue_stress_test
