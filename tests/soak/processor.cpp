// SPDX-License-Identifier: Apache-2.0
//
// A processor that KVM runs: it writes numbers to its memory, one after the other, in turns between which
// the VMM pauses it.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <thread>

#include "activity.hpp"
#include "guest.hpp"
#include "machine.hpp"

// The guest; %rdi is where its counter is, with pages for the numbers behind it. In user mode, without
// privileges, as a KVM wants it that has no help from the hardware.
#ifdef __x86_64__
asm(R"(
        .pushsection .rodata
        .globl  soak_guest_begin, soak_guest_end
soak_guest_begin:
        mov     $1, %rax
1:      mov     %rax, (%rdi)            # the counter
        mov     %rax, %rbx
        and     $63, %rbx
        shl     $12, %rbx
        mov     %rax, 0x1000(%rdi,%rbx) # the page of this number
        inc     %rax
        jmp     1b
soak_guest_end:
        .popsection
)");
extern "C" const std::byte soak_guest_begin[];
extern "C" const std::byte soak_guest_end[];
#else
constexpr std::byte soak_guest_begin[1]{};
constexpr const std::byte* soak_guest_end = soak_guest_begin;
#endif

namespace vmspace::soak {
namespace {

using namespace std::chrono_literals;

class Processor final : public Activity {
 public:
  Processor(Machine& machine, std::uint64_t seed)
      : Activity("processor", seed), machine_(machine), memory_(machine.only({Machine::ram})) {
    auto start = must(tiny_vm::load_code(memory_, std::span(soak_guest_begin, soak_guest_end)));
    start.argument = counter;
    start.user_mode = true;
    vcpu_ = must(tiny_vm::Vcpu::start(*machine.vm, start, machine.gate));
  }

  void step() override {
    std::this_thread::sleep_for(1ms);
    const auto paused = must(machine_.gate->pause_vcpus());
    check();
    std::this_thread::sleep_for(4ms);
  }

  void finish() override {
    check();
    require(last_ > last_at_rest_, "the guest gets on");
    last_at_rest_ = last_;
  }

 private:
  static constexpr GuestAddress counter{2_MiB};
  static constexpr std::uint64_t pages = 64;

  /// While it is paused.
  void check() {
    must_refuse(vcpu_->next_event(0s), Errc::timed_out);
    const std::uint64_t now = number(counter);
    require(now >= last_, "the guest counts");
    for (std::uint64_t i = 0; i < pages; ++i) {
      // It may have been stopped before it has written this number.
      const std::uint64_t expected = now - (now - i) % pages;
      const std::uint64_t written = number(GuestAddress(counter.value() + (1 + i) * Machine::page));
      require(written == expected || (expected == now && written + pages == now) ||
                  (now < pages && written == 0),
              "each page has the last number that was written to it");
    }
    last_ = now;
  }
  [[nodiscard]] std::uint64_t number(GuestAddress at) const {
    return must(memory_.load<std::uint64_t>(at, std::memory_order_acquire));
  }

  Machine& machine_;
  GuestMemory memory_;
  std::unique_ptr<tiny_vm::Vcpu> vcpu_;
  std::uint64_t last_ = 0;          ///< that was looked at
  std::uint64_t last_at_rest_ = 0;  ///< between rounds
};

}  // namespace

std::unique_ptr<Activity> make_processor(Machine& machine, std::uint64_t seed) {
  if (!machine.vm) {
    std::printf("without a processor: %s\n", machine.vm.error().message().c_str());
    return nullptr;
  }
  return std::make_unique<Processor>(machine, seed);
}

}  // namespace vmspace::soak
