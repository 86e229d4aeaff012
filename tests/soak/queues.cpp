// SPDX-License-Identifier: Apache-2.0
//
// Virtqueues, split and packed: this thread is the driver, another one the device.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "activity.hpp"
#include "machine.hpp"
#include "virtio/queue_threads.hpp"

namespace vmspace::soak {
namespace {

class Queues final : public Activity {
 public:
  Queues(Machine& machine, std::uint64_t seed)
      : Activity("queues", seed),
        // The driver of the tests has its memory at another address; it is the same memory.
        memory_(must(GuestMemory::from_regions(
            {must(machine.only({Machine::queues})
                      .regions()
                      .front()
                      ->at(GuestAddress(test::Driver::base), {.lose_huge_pages = true}))}))) {}

  void step() override {
    constexpr std::uint64_t requests = 200;
    must(memory_.fill({GuestAddress(test::Driver::base), test::Driver::memory_size}, std::byte{0}));
    const bool event_index = random(2) == 0;
    if (random(2) == 0) {
      test::serve_requests(
          test::Driver(test::queue_ids * test::most_buffers, false, event_index, memory_),
          requests);
    } else {
      test::serve_requests(test::PackedDriver(13, false, event_index, memory_), requests);
    }
  }

 private:
  static_assert(Machine::region_size == test::Driver::memory_size);
  GuestMemory memory_;
};

}  // namespace

std::unique_ptr<Activity> make_queues(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Queues>(machine, seed);
}

}  // namespace vmspace::soak
