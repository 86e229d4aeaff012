// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>

using namespace std::chrono_literals;

namespace {

struct Clock {
  std::uint64_t offset = 0;
};

vmspace::Result<void> example() {
  // README begin
  const vmspace::Published<Clock> clock(Clock{});  // read by every vCPU thread, changed by one

  auto reader = clock.reader();                           // one a thread
  std::printf("%llu\n", reader.current().offset + 0ULL);  // a load and a compare; never waits

  VMSPACE_TRY(clock.update([](Clock& draft) -> vmspace::Result<void> {  // a copy, published at once
    draft.offset += 100;
    return {};
  }));
  reader.park();                         // before the thread sleeps, or runs its guest
  VMSPACE_TRY(clock.wait_released(1s));  // nobody reads the old value any more; it is destroyed
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
