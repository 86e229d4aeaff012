// SPDX-License-Identifier: Apache-2.0
//
// KvmMemslots and KVM itself, where this user may open /dev/kvm: what the fake rests on.

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "os/descriptor.hpp"

namespace vmspace::kvm_real_test {
namespace {

using namespace literals;
using Pages = std::vector<std::uint64_t>;

/// A machine of KVM's and memory to show to it.
class RealKvm : public testing::Test {
 protected:
  void SetUp() override {
    kvm_ = detail::Descriptor(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm_.value() < 0) GTEST_SKIP() << "can't open /dev/kvm: " << std::strerror(errno);
    vm_ = detail::Descriptor(::ioctl(kvm_.value(), KVM_CREATE_VM, 0));
    if (vm_.value() < 0) GTEST_SKIP() << "KVM_CREATE_VM failed: " << std::strerror(errno);
    void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    memory_ = static_cast<std::byte*>(memory);
  }
  ~RealKvm() override {
    if (memory_ != nullptr) ::munmap(memory_, size);
  }

  static constexpr std::uint64_t size = 64_MiB;
  detail::Descriptor kvm_;
  detail::Descriptor vm_;
  std::byte* memory_ = nullptr;
};

TEST_F(RealKvm, SetsClearsAndSetsAgainMoreOftenThanThereAreNumbersInUse) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  EXPECT_GE(memslots->limit(), 32u);
  const KvmMemory memory{.base = GuestAddress(4_GiB), .size = size, .host_address = memory_};
  for (int round = 0; round < 8; ++round) {
    const auto set = memslots->set(memory);
    ASSERT_THAT(set, IsOk());
    EXPECT_THAT(memslots->set(memory), HasError(Errc::overlap));
    VMSPACE_ASSERT_OK(memslots->clear({GuestAddress(4_GiB), size}));
  }
}

TEST_F(RealKvm, DestructionLeavesTheMachineWithoutSlots) {
  for (int round = 0; round < 2; ++round) {
    auto memslots = KvmMemslots::create(vm_.value());
    ASSERT_THAT(memslots, IsOk());
    // Had the first round left its slot, this would overlap with it.
    VMSPACE_ASSERT_OK(
        memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_}));
  }
}

// Without a vCPU in that mode there is no more to see.
TEST_F(RealKvm, TheAddressSpaceOfSystemManagementModeHasItsOwnSlots) {
  auto smm = KvmMemslots::create(vm_.value(), {}, KvmAddressSpace::smm);
  if (!smm && smm.error().code == Errc::unsupported) GTEST_SKIP() << smm.error().message();
  ASSERT_THAT(smm, IsOk());
  auto normal = KvmMemslots::create(vm_.value());
  ASSERT_THAT(normal, IsOk());
  const KvmMemory memory{
      .base = GuestAddress(0), .size = size, .host_address = memory_, .log_dirty = true};
  VMSPACE_ASSERT_OK(normal->set(memory));
  VMSPACE_ASSERT_OK(smm->set(memory));
  EXPECT_THAT(smm->fetch_dirty_log({GuestAddress(0), size}), IsOk());
  VMSPACE_EXPECT_OK(normal->clear({GuestAddress(0), size}));
  VMSPACE_EXPECT_OK(smm->clear({GuestAddress(0), size}));
}

TEST_F(RealKvm, TheCallersDescriptorMayBeClosed) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  vm_ = detail::Descriptor();
  VMSPACE_EXPECT_OK(
      memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_}));
}

TEST_F(RealKvm, WhatKvmItselfRefusesNamesTheRangeAndTheSlot) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  // Somebody else's slot, which KvmMemslots does not know of.
  kvm_userspace_memory_region foreign{};
  foreign.slot = 5;
  foreign.guest_phys_addr = 1_MiB;
  foreign.memory_size = 1_MiB;
  foreign.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_);
  ASSERT_EQ(::ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &foreign), 0);
  const auto set = memslots->set({.base = GuestAddress(0), .size = 2_MiB, .host_address = memory_});
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().error_code(), std::errc::file_exists) << set.error().message();
  EXPECT_EQ(set.error().first, Operand::range(0, 2_MiB - 1));
  EXPECT_EQ(memslots->used(), 0u);
}

TEST(KvmMemslotsDescriptor, OneThatIsNotOpenIsAnError) {
  const auto memslots = KvmMemslots::create(-1);
  ASSERT_FALSE(memslots);
  EXPECT_EQ(memslots.error().os_errno, EBADF) << memslots.error().message();
}

/// And a guest that writes to two of its pages.
class RealKvmDirtyLog : public RealKvm {
 protected:
  static constexpr std::uint64_t code = 0x1000;
  static constexpr std::uint64_t first = 0x3000, second = 0x5000;  // where the guest writes
  const GuestRange range{GuestAddress(0), size};

  void SetUp() override {
#if !defined(__x86_64__)
    GTEST_SKIP() << "the guest's code is for x86-64";
#endif
    RealKvm::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    // Real mode: mov [0x3000], al; mov [0x5000], al; hlt
    const unsigned char text[] = {0xa2, 0x00, 0x30, 0xa2, 0x00, 0x50, 0xf4};
    std::memcpy(memory_ + code, text, sizeof text);
    start_vcpu();
  }
  ~RealKvmDirtyLog() override {
    if (run_ != nullptr) ::munmap(run_, run_size_);
  }

  /// Runs the guest from its first instruction until it halts.
  void run_guest() {
#if defined(__x86_64__)
    kvm_regs regs{};
    regs.rip = code;
    regs.rflags = 2;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_REGS, &regs), 0) << std::strerror(errno);
    while (::ioctl(vcpu_.value(), KVM_RUN, 0) < 0)
      ASSERT_EQ(errno, EINTR) << std::strerror(errno);
    ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
#endif
  }

  std::vector<std::uint64_t> written(KvmMemslots& memslots) {
    std::vector<std::uint64_t> found;
    const auto log = memslots.fetch_dirty_log(range);
    EXPECT_THAT(log, IsOk());
    if (!log) return found;
    for (std::uint64_t address = 0; address < size; address += log->unit) {
      const std::uint64_t bit = address / log->unit;
      if (log->bits[bit / 64] >> bit % 64 & 1) found.push_back(address);
    }
    return found;
  }

  detail::Descriptor vcpu_;

 private:
  void start_vcpu() {
#if defined(__x86_64__)
    ASSERT_EQ(::ioctl(vm_.value(), KVM_SET_TSS_ADDR, 0xfffb'd000ul), 0) << std::strerror(errno);
    vcpu_ = detail::Descriptor(::ioctl(vm_.value(), KVM_CREATE_VCPU, 0));
    ASSERT_GE(vcpu_.value(), 0) << std::strerror(errno);
    run_size_ = static_cast<std::size_t>(::ioctl(kvm_.value(), KVM_GET_VCPU_MMAP_SIZE, 0));
    void* const run =
        ::mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_.value(), 0);
    ASSERT_NE(run, MAP_FAILED) << std::strerror(errno);
    run_ = static_cast<kvm_run*>(run);
    kvm_sregs sregs{};
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_SREGS, &sregs), 0);
#endif
  }

  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
};

TEST_F(RealKvmDirtyLog, StartsAndStopsOnALiveSlot) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  VMSPACE_ASSERT_OK(
      memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_}));
  run_guest();  // its pages are mapped, writable, before the log begins
  EXPECT_THAT(memslots->fetch_dirty_log(range), HasError(Errc::bad_state));

  VMSPACE_ASSERT_OK(memslots->start_dirty_log(range));
  EXPECT_EQ(written(*memslots), Pages{});
  for (int round = 0; round < 3; ++round) {
    run_guest();
    EXPECT_EQ(written(*memslots), (Pages{first, second}));
    EXPECT_EQ(written(*memslots), Pages{});
  }
  run_guest();
  VMSPACE_ASSERT_OK(memslots->stop_dirty_log(range));
  run_guest();
  EXPECT_THAT(memslots->fetch_dirty_log(range), HasError(Errc::bad_state));
  VMSPACE_ASSERT_OK(memslots->start_dirty_log(range));
  EXPECT_EQ(written(*memslots), Pages{});
}

TEST_F(RealKvmDirtyLog, IsClearedApartFromBeingRead) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  if (const auto enabled = memslots->enable_manual_protect(); !enabled) {
    GTEST_SKIP() << enabled.error().message();
  }
  VMSPACE_ASSERT_OK(memslots->set(
      {.base = GuestAddress(0), .size = size, .host_address = memory_, .log_dirty = true}));
  for (int round = 0; round < 3; ++round) {
    run_guest();
    const auto log = memslots->read_dirty_log(range);
    ASSERT_THAT(log, IsOk());
    EXPECT_EQ(log->bits.front(), (1u << first / 4096 | 1u << second / 4096));
    EXPECT_EQ(memslots->read_dirty_log(range)->bits, log->bits) << "it is still there";
    VMSPACE_ASSERT_OK(memslots->clear_dirty_log(
        {.base = log->base, .unit = log->unit, .bits = {std::uint64_t{1} << first / 4096}}));
    EXPECT_EQ(memslots->read_dirty_log(range)->bits.front(), 1u << second / 4096);
    run_guest();
    EXPECT_EQ(written(*memslots), (Pages{first, second})) << "a cleared page is logged again";
    EXPECT_EQ(written(*memslots), Pages{});
  }
}

TEST_F(RealKvmDirtyLog, ARemovedSectionBringsItsLog) {
  const auto region = MemoryRegion::map({.name = "ram",
                                         .base = GuestAddress(0),
                                         .size = size,
                                         .backing = {.source = MemorySource::anon}});
  ASSERT_THAT(region, IsOk());
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  std::memcpy((*region)->host_base() + code, memory_ + code, 16);
  VMSPACE_ASSERT_OK((*region)->dirty().enable());
  const MemorySection section(*region);
  VMSPACE_ASSERT_OK(memslots->prepare({.added = {&section, 1}}));
  VMSPACE_ASSERT_OK(memslots->add(section));
  VMSPACE_ASSERT_OK(memslots->start_dirty_log(range));
  run_guest();
  VMSPACE_ASSERT_OK(memslots->remove(section));
  EXPECT_THAT(
      (*region)->dirty().harvest(),
      IsOkAndHolds(testing::ElementsAre(DirtyRange{first, 4096}, DirtyRange{second, 4096})));
}

// What the fake rests on, so that both are known to agree.
TEST_F(RealKvmDirtyLog, KvmItselfRefusesWhatTheFakeRefuses) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_THAT(memslots, IsOk());
  VMSPACE_ASSERT_OK(
      memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_}));
  kvm_userspace_memory_region region{};
  region.flags = KVM_MEM_READONLY;
  region.memory_size = size;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_);
  EXPECT_EQ(::ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &region), -1);
  EXPECT_EQ(errno, EINVAL);
  std::vector<std::uint64_t> bits(size / 4096 / 64);
  kvm_dirty_log request{};
  request.dirty_bitmap = bits.data();
  EXPECT_EQ(::ioctl(vm_.value(), KVM_GET_DIRTY_LOG, &request), -1);
  EXPECT_EQ(errno, ENOENT);
  VMSPACE_ASSERT_OK(memslots->start_dirty_log(range));
  const auto refuses_to_clear = [&](std::uint64_t page, std::uint32_t count) {
    kvm_clear_dirty_log cleared{};
    cleared.first_page = page;
    cleared.num_pages = count;
    cleared.dirty_bitmap = bits.data();
    return ::ioctl(vm_.value(), KVM_CLEAR_DIRTY_LOG, &cleared) == -1 && errno == EINVAL;
  };
  EXPECT_TRUE(refuses_to_clear(1, 64));
  EXPECT_TRUE(refuses_to_clear(0, 63));
  EXPECT_TRUE(refuses_to_clear(size / 4096 - 64, 128));
  EXPECT_FALSE(refuses_to_clear(size / 4096 - 64, 64));
}

}  // namespace
}  // namespace vmspace::kvm_real_test
