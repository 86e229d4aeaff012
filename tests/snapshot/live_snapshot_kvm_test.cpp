// SPDX-License-Identifier: Apache-2.0
//
// LiveSnapshot of a guest that runs under /dev/kvm and writes to its memory all the time.

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"
#include "vmspace/vmm/vcpu_gate.hpp"

#include "os/descriptor.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace::live_snapshot_kvm_test {
namespace {

using namespace test;

#if defined(__x86_64__)

constexpr std::uint64_t size = 32_MiB;
constexpr std::uint64_t page_map = 0x2000, page_directories = 0x3000, page_directory = 0x4000;
constexpr std::uint64_t code = 0x10000;
constexpr std::uint64_t rounds = 0x20000;  // how often the guest has been through its pages
constexpr std::uint64_t first = 2_MiB, last = 18_MiB;

/// Writes a number to each page of [rdi, rsi), the next number to each of them, and so on for ever.
constexpr unsigned char program[] = {
    0x48, 0xff, 0xc0,                          // again: inc rax
    0x48, 0x89, 0xf9,                          //        mov rcx, rdi
    0x48, 0x89, 0x01,                          // next:  mov [rcx], rax
    0x48, 0x81, 0xc1, 0x00, 0x10, 0x00, 0x00,  //        add rcx, 4096
    0x48, 0x39, 0xf1,                          //        cmp rcx, rsi
    0x72, 0xf1,                                //        jb next
    0x48, 0x89, 0x02,                          //        mov [rdx], rax
    0xeb, 0xe6,                                //        jmp again
};

/// A virtual machine of one vCPU, which runs that in 64-bit mode with user privileges, where every
/// KVM runs it natively.
class RunningGuest : public ::testing::Test {
 protected:
  void SetUp() override {
    kvm_ = detail::Descriptor(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm_.value() < 0) GTEST_SKIP() << "can't open /dev/kvm: " << std::strerror(errno);
    vm_ = detail::Descriptor(::ioctl(kvm_.value(), KVM_CREATE_VM, 0));
    if (vm_.value() < 0) GTEST_SKIP() << "KVM_CREATE_VM failed: " << std::strerror(errno);
    ASSERT_EQ(::ioctl(vm_.value(), KVM_SET_TSS_ADDR, 0xfffb'd000ul), 0) << std::strerror(errno);
    auto slots = KvmMemslots::create(vm_.value());
    ASSERT_THAT(slots, IsOk());
    slots_.emplace(*std::move(slots));
    VMSPACE_ASSERT_OK(slots_->set({.base = GuestAddress(0),
                                   .size = size,
                                   .host_address = memory.regions().front()->host_base()}));
    load();
    start();
  }
  void TearDown() override {
    stop_ = true;
    if (thread_.joinable()) {
      kick();
      thread_.join();
    }
    if (run_ != nullptr) ::munmap(run_, run_size_);
  }

  [[nodiscard]] std::uint64_t rounds_done() const {
    return *memory.read<std::uint64_t>(GuestAddress(rounds));
  }
  /// Waits for more rounds of the guest.
  void wait_for_rounds(std::uint64_t more) const {
    const std::uint64_t until = rounds_done() + more;
    while (rounds_done() < until && !failed_)
      std::this_thread::yield();
    EXPECT_FALSE(failed_);
  }
  /// What the guest has written to its pages.
  static std::vector<std::uint64_t> numbers(const GuestMemory& of) {
    std::vector<std::uint64_t> all;
    for (std::uint64_t at = first; at < last; at += page)
      all.push_back(*of.read<std::uint64_t>(GuestAddress(at)));
    return all;
  }

  const GuestMemory memory = guest({{0, size}});
  VcpuGate gate;

 private:
  void load() {
    constexpr std::uint64_t open = 1 << 0 | 1 << 1 | 1 << 2;  // present, writable, user
    constexpr std::uint64_t large = 1 << 7;
    VMSPACE_ASSERT_OK(memory.write(GuestAddress(page_map), page_directories | open));
    VMSPACE_ASSERT_OK(memory.write(GuestAddress(page_directories), page_directory | open));
    std::array<std::uint64_t, 512> pages{};
    for (std::uint64_t i = 0; i < pages.size(); ++i)
      pages[i] = i * 2_MiB | open | large;
    VMSPACE_ASSERT_OK(memory.write(GuestAddress(page_directory), pages));
    VMSPACE_ASSERT_OK(memory.write_slice(GuestAddress(code), std::as_bytes(std::span(program))));
  }

  void start() {
    vcpu_ = detail::Descriptor(::ioctl(vm_.value(), KVM_CREATE_VCPU, 0));
    ASSERT_GE(vcpu_.value(), 0) << std::strerror(errno);
    kvm_sregs sregs{};
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_GET_SREGS, &sregs), 0);
    sregs.cr3 = page_map;
    sregs.cr4 = 1u << 5;              // physical address extension
    sregs.cr0 = 1u << 0 | 1u << 31;   // protected mode, paging
    sregs.efer = 1u << 8 | 1u << 10;  // long mode, enabled and active
    kvm_segment flat{};
    flat.limit = 0xffff'ffff;
    flat.present = flat.s = flat.g = 1;
    flat.dpl = 3;
    kvm_segment text = flat;
    text.selector = 0x33;
    text.type = 11;  // execute, read, accessed
    text.l = 1;
    kvm_segment data = flat;
    data.selector = 0x2b;
    data.type = 3;  // read, write, accessed
    data.db = 1;
    sregs.cs = text;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_SREGS, &sregs), 0) << std::strerror(errno);
    kvm_regs regs{};
    regs.rip = code;
    regs.rflags = 1u << 1;
    regs.rdi = first;
    regs.rsi = last;
    regs.rdx = rounds;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_REGS, &regs), 0) << std::strerror(errno);
    run_size_ = static_cast<std::size_t>(::ioctl(kvm_.value(), KVM_GET_VCPU_MMAP_SIZE, 0));
    void* const run =
        ::mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_.value(), 0);
    ASSERT_NE(run, MAP_FAILED) << std::strerror(errno);
    run_ = static_cast<kvm_run*>(run);
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR1, &action, nullptr), 0);
    thread_ = std::thread([this] { run_guest(); });
  }

  void kick() {
    __atomic_store_n(&run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
    ::pthread_kill(thread_.native_handle(), SIGUSR1);
  }

  void run_guest() {
    const auto vcpu = gate.add_vcpu([this, self = ::pthread_self()] {
      __atomic_store_n(&run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
      ::pthread_kill(self, SIGUSR1);
    });
    while (!stop_) {
      int result = 0;
      {
        const auto inside = vcpu.enter();
        result = ::ioctl(vcpu_.value(), KVM_RUN, 0) < 0 ? errno : 0;
      }
      __atomic_store_n(&run_->immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST);
      if (result == EINTR) continue;
      ADD_FAILURE() << "KVM_RUN: errno " << result << ", exit reason " << run_->exit_reason;
      failed_ = true;
      return;
    }
  }

  detail::Descriptor kvm_;
  detail::Descriptor vm_;
  std::optional<KvmMemslots> slots_;
  detail::Descriptor vcpu_;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
  std::thread thread_;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> failed_ = false;
};

TEST_F(RunningGuest, RunsOnWhileItsInstantIsSaved) {
  const TempFile file;
  wait_for_rounds(2);
  PREPARE_OR_SKIP(snapshot, memory, file.fd(), {.buffer = size, .peers_stopped = false});
  std::vector<std::uint64_t> instant;
  std::uint64_t writes_at_fault = 0;
  {
    const SlowDisk disk;
    {
      const auto paused = gate.pause_vcpus();
      ASSERT_THAT(paused, IsOk());
      VMSPACE_ASSERT_OK(snapshot.take());
      instant = numbers(memory);
    }
    // The disk holds up the background: the guest gets through its pages by faults.
    wait_for_rounds(3);
    writes_at_fault = snapshot.statistics().saved_by_fault;
    SlowDisk::go_on();
    VMSPACE_ASSERT_OK(snapshot.wait());
  }
  EXPECT_GT(writes_at_fault, 8_MiB);
  wait_for_rounds(3);
  EXPECT_EQ(numbers(restored(memory, file.fd())), instant);
}

TEST_F(RunningGuest, RunsOnWhenTheDiskIsFull) {
  const TempFile file;
  wait_for_rounds(2);
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  Injector injector;
  injector.fail_always("pwrite", ENOSPC);
  {
    const auto paused = gate.pause_vcpus();
    ASSERT_THAT(paused, IsOk());
    VMSPACE_ASSERT_OK(snapshot.take());
  }
  EXPECT_THAT(snapshot.wait(), HasError(Errc::os));
  wait_for_rounds(3);
}

#else

// Shows that the guest is missing, and why.
TEST(RunningGuest, RunsOnWhileItsInstantIsSaved) {
  GTEST_SKIP() << "the guest's code is for x86-64";
}

#endif

}  // namespace
}  // namespace vmspace::live_snapshot_kvm_test
