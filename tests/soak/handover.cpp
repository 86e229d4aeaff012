// SPDX-License-Identifier: Apache-2.0
//
// The machine to another process and back, as when a VMM is upgraded: the other one is this program again.

#include "vmspace/snapshot/handover.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <spawn.h>

#include "activity.hpp"
#include "machine.hpp"
#include "os/descriptor.hpp"

namespace vmspace::soak {
namespace {

using namespace std::chrono_literals;

/// A number that follows from all of the memory but what was handed on before.
std::vector<std::byte> digest_of(const GuestMemory& memory) {
  std::size_t digest = 0;
  for (const MemoryRegionPtr& region : memory.regions()) {
    if (!region->is_whole() || region->base() == Machine::handed) continue;
    digest = digest * 31 + std::hash<std::string_view>{}(std::string_view(
                               reinterpret_cast<const char*>(region->host_base()), region->size()));
  }
  std::vector<std::byte> bytes(sizeof digest);
  std::memcpy(bytes.data(), &digest, sizeof digest);
  return bytes;
}

class HandingOver final : public Activity {
 public:
  HandingOver(Machine& machine, std::uint64_t seed)
      : Activity("handover", seed), machine_(machine), memory_(machine.only({Machine::handed})) {}

  void step() override { std::this_thread::sleep_for(10ms); }

  /// All vCPUs and devices are stopped now.
  void finish() override {
    if (++rounds_ % 4 != 1) return;
    int ends[2] = {-1, -1};
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "there are sockets");
    const detail::Descriptor here(ends[0]);
    detail::Descriptor there(ends[1]);
    const pid_t other = start(there.value());
    there = {};
    const std::uint64_t number = random(1'000'000);
    must(memory_.write(Machine::handed, number));
    const auto map = machine_.memory.map();
    const auto digest = digest_of(map->memory);
    must(send_handover(here.value(), {.space = map->space, .memory = map->memory, .state = digest},
                       {.timeout = 60s}));
    {
      const Handover back = must(receive_handover(here.value(), {.timeout = 60s}));
      require(back.state == digest && digest_of(back.memory) == digest,
              "memory comes back as it went");
      require(back.space == map->space, "an address space comes back as it went");
    }
    require(must(memory_.read<std::uint64_t>(Machine::handed)) == number + 1,
            "what the other process writes is there");
    int status = 0;
    require(::waitpid(other, &status, 0) == other, "the other process is this one's child");
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other process finds nothing wrong");
  }

 private:
  /// Not fork(2): in a program of many threads the child may do little, and under a sanitizer less.
  static pid_t start(int socket) {
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, socket, STDIN_FILENO);
    std::string program = "soak";
    std::string what = "--take-over";
    char* const arguments[] = {program.data(), what.data(), nullptr};
    pid_t child = -1;
    const int error =
        ::posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments, environ);
    ::posix_spawn_file_actions_destroy(&actions);
    require(error == 0, std::string("this program starts again: ") + std::strerror(error));
    return child;
  }

  Machine& machine_;
  GuestMemory memory_;
  unsigned rounds_ = 0;
};

}  // namespace

std::unique_ptr<Activity> make_handover(Machine& machine, std::uint64_t seed) {
  return std::make_unique<HandingOver>(machine, seed);
}

int take_over(int socket) {
  const Handover taken = must(receive_handover(socket, {.timeout = 60s}));
  require(digest_of(taken.memory) == taken.state, "memory arrives as it was sent");
  const VmMemory memory = must(VmMemory::adopt({taken.space, taken.memory}));
  must(memory.check_invariants());
  const auto map = memory.map();
  const auto number = must(map->memory.read<std::uint64_t>(Machine::handed));
  must(map->memory.write(Machine::handed, number + 1));
  must(send_handover(socket, {.space = map->space, .memory = map->memory, .state = taken.state},
                     {.timeout = 60s}));
  return 0;
}

}  // namespace vmspace::soak
