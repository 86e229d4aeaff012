// SPDX-License-Identifier: Apache-2.0
//
// DirtyScan sees what a guest writes, under KVM and with no dirty log of KVM's.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

#include "guest.hpp"
#include "vm.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;
using tiny_vm::Event;
using tiny_vm::Vcpu;
using tiny_vm::Vm;

constexpr std::uint64_t first = 8_MiB;
constexpr std::uint64_t apart = 64_KiB;
constexpr std::uint64_t second = 0x5000;

/// Round n (from 0) writes n to `first` + n * `apart`, and `second` bytes further; reports n + 1, and
/// waits until the word at its argument is at least that.
constexpr unsigned char code[] = {
    0x31, 0xc9,                                //         xor  %ecx, %ecx
    0xbb, 0x00, 0x00, 0x80, 0x00,              //         mov  $first, %ebx
    0x48, 0x89, 0x0b,                          // round:  mov  %rcx, (%rbx)
    0x48, 0x89, 0x8b, 0x00, 0x50, 0x00, 0x00,  //         mov  %rcx, second(%rbx)
    0xff, 0xc1,                                //         inc  %ecx
    0xba, 0x00, 0x10, 0x00, 0x00,              //         mov  $0x1000, %edx
    0x89, 0xc8,                                //         mov  %ecx, %eax
    0xef,                                      //         out  %eax, %dx
    0xf3, 0x90,                                // wait:   pause
    0x39, 0x0f,                                //         cmp  %ecx, (%rdi)
    0x72, 0xfa,                                //         jb   wait
    0x81, 0xc3, 0x00, 0x00, 0x01, 0x00,        //         add  $apart, %ebx
    0xeb, 0xde,                                //         jmp  round
};

class DirtyScanOfAGuest : public ::testing::TestWithParam<MemorySource> {};

TEST_P(DirtyScanOfAGuest, ReportsWhatTheGuestWrites) {
  const auto vm = Vm::create();
  if (!vm) GTEST_SKIP() << "there is no usable KVM: " << vm.error().message();
  auto ram = MemoryRegion::map(
      {.name = "ram", .base = GuestAddress(0), .size = 64_MiB, .backing = {.source = GetParam()}});
  ASSERT_THAT(ram, IsOk());
  const GuestMemory memory = *GuestMemory::from_regions({*ram});
  auto start = tiny_vm::load_code(memory, std::as_bytes(std::span(code)));
  ASSERT_THAT(start, IsOk());
  start->user_mode = true;  // as hardware runs it, not emulated
  auto slots = KvmMemslots::create(vm->fd());
  ASSERT_THAT(slots, IsOk());
  ASSERT_THAT(slots->set(**ram), IsOk());
  auto scan = DirtyScan::start(memory);
  if (!scan && (scan.error().code == Errc::unsupported || scan.error().code == Errc::access_denied))
    GTEST_SKIP() << scan.error().message();
  ASSERT_THAT(scan, IsOk());

  const auto gate = std::make_shared<VcpuGate>();
  const auto vcpu = Vcpu::start(*vm, *start, gate);
  ASSERT_THAT(vcpu, IsOk());
  for (std::uint64_t round = 0; round < 3; ++round) {
    const auto event = (*vcpu)->next_event(std::chrono::seconds(60));
    ASSERT_THAT(event, IsOk());
    ASSERT_EQ(event->kind, Event::Kind::port_write);
    ASSERT_EQ(event->value, round + 1);
    const auto found = scan->harvest();
    ASSERT_THAT(found, IsOk());
    const auto is_found = [&](std::uint64_t address) {
      return std::ranges::any_of(*found, [&](const GuestRange& range) {
        return range.base.value() <= address && address < range.base.value() + range.size;
      });
    };
    // Besides these, the processor's bits in the guest's page tables may have changed, and the word
    // that it waits for.
    for (std::uint64_t other = 0; other < 3; ++other) {
      EXPECT_EQ(is_found(first + other * apart), other == round) << round << " " << other;
      EXPECT_EQ(is_found(first + other * apart + second), other == round) << round << " " << other;
    }
    EXPECT_FALSE(is_found(first + 0x1000));
    ASSERT_THAT(memory.store(start->argument, round + 1, std::memory_order_release), IsOk());
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DirtyScanOfAGuest,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& source) { return std::string(name_of(source.param)); });

}  // namespace
