// SPDX-License-Identifier: Apache-2.0
//
// A guest whose memory is restored while it runs: its code, its page tables and its data come when
// the processor wants them, which the kernel asks for and this process answers. The guest runs in
// user mode, since some machines emulate what runs in kernel mode.

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "os/descriptor.hpp"
#include "snapshot/lazy_support.hpp"

namespace vmspace::lazy_restore_kvm_test {
namespace {

using namespace test;
using namespace literals;

#if defined(__x86_64__)

constexpr std::uint64_t size = 32_MiB;
constexpr std::uint64_t code = 0x1000;
constexpr std::uint64_t tables = 0x10000;  // three pages: levels 4, 3 and 2
constexpr std::uint64_t data = 0x40'0000;  // the guest adds up the first words of 512 pages
constexpr std::uint64_t result = 0x80'0008;

/// The guest of a snapshot: what it runs, and words everywhere else.
class GuestSource : public WordSource {
 public:
  Result<void> read(GuestAddress at, std::span<std::byte> to) override {
    if (const auto words = WordSource::read(at, to); !words) return words;
    put(at, to, code, std::as_bytes(std::span(instructions)));
    for (std::uint64_t level = 0; level < 3; ++level) {
      std::array<std::uint64_t, 512> entries{};
      constexpr std::uint64_t present_write_user = 7, large = 0x80;
      if (level < 2) entries[0] = (tables + (level + 1) * source_page) | present_write_user;
      for (std::uint64_t i = 0; level == 2 && i < size / 2_MiB; ++i)
        entries[i] = i * 2_MiB | present_write_user | large;
      put(at, to, tables + level * source_page, std::as_bytes(std::span(entries)));
    }
    return {};
  }

 private:
  static void put(GuestAddress at, std::span<std::byte> to, std::uint64_t where,
                  std::span<const std::byte> bytes) {
    if (where < at.value() || where - at.value() >= to.size()) return;
    std::memcpy(to.data() + (where - at.value()), bytes.data(), bytes.size());
  }

  static constexpr unsigned char instructions[] = {
      0xbe, 0x00, 0x00, 0x40, 0x00,              //     mov  esi, data
      0xb9, 0x00, 0x02, 0x00, 0x00,              //     mov  ecx, 512
      0x31, 0xc0,                                //     xor  eax, eax
      0x48, 0x03, 0x06,                          // 1:  add  rax, [rsi]
      0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00,  //     add  rsi, 4096
      0xff, 0xc9,                                //     dec  ecx
      0x75, 0xf2,                                //     jnz  1b
      0xbf, 0x08, 0x00, 0x80, 0x00,              //     mov  edi, result
      0x48, 0x89, 0x07,                          //     mov  [rdi], rax
      0xba, 0x00, 0x10, 0x00, 0x00,              //     mov  edx, 0x1000
      0xef,                                      //     out  dx, eax
  };
};

std::atomic<int> bus_errors{0};
void count_bus_error(int) {
  ++bus_errors;
}

class LazyRestoreKvm : public ::testing::TestWithParam<MemorySource> {
 protected:
  void SetUp() override {
    kvm_ = detail::Descriptor(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm_.value() < 0) GTEST_SKIP() << "can't open /dev/kvm: " << std::strerror(errno);
    vm_ = detail::Descriptor(::ioctl(kvm_.value(), KVM_CREATE_VM, 0));
    if (vm_.value() < 0) GTEST_SKIP() << "KVM_CREATE_VM failed: " << std::strerror(errno);
    region_ = *MemoryRegion::map(
        {.name = "ram", .base = GuestAddress(0), .size = size, .backing = {.source = GetParam()}});
    memory_ = *GuestMemory::from_regions({region_});
  }
  ~LazyRestoreKvm() override {
    if (run_ != nullptr) ::munmap(run_, run_size_);
  }

  void start_vcpu() {
    kvm_userspace_memory_region slot{};
    slot.memory_size = size;
    slot.userspace_addr = reinterpret_cast<std::uintptr_t>(region_->host_base());
    ASSERT_EQ(::ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &slot), 0) << std::strerror(errno);
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
    sregs.cr3 = tables;
    sregs.cr4 = 1u << 5;              // PAE
    sregs.cr0 = 1u << 31 | 1u << 0;   // paging, protected
    sregs.efer = 1u << 10 | 1u << 8;  // long mode
    kvm_segment flat{};
    flat.limit = 0xffff'ffff;
    flat.present = flat.s = flat.g = 1;
    flat.dpl = 3;
    sregs.cs = flat;
    sregs.cs.selector = 0x33;
    sregs.cs.type = 11;
    sregs.cs.l = 1;
    flat.selector = 0x2b;
    flat.type = 3;
    flat.db = 1;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_SREGS, &sregs), 0) << std::strerror(errno);
    kvm_regs regs{};
    regs.rip = code;
    regs.rflags = 2 | 3u << 12;  // may use ports
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_REGS, &regs), 0) << std::strerror(errno);
  }

  /// Runs the guest; gives the errno of KVM_RUN, or 0.
  [[nodiscard]] int run() {
    for (;;) {
      if (::ioctl(vcpu_.value(), KVM_RUN, 0) == 0) return 0;
      if (errno != EINTR || bus_errors != 0) return errno;
    }
  }

  MemoryRegionPtr region_;
  GuestMemory memory_;
  detail::Descriptor kvm_, vm_, vcpu_;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
};

TEST_P(LazyRestoreKvm, TheGuestRunsWhileItsMemoryComes) {
  const auto source = std::make_shared<GuestSource>();
  START_RESTORE_OR_SKIP(restore, memory_, source, {.background = false});
  start_vcpu();
  if (HasFatalFailure()) return;
  ASSERT_EQ(run(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < 512; ++i)
    sum += word_at(data + i * source_page);
  EXPECT_EQ(*memory_.read<std::uint64_t>(GuestAddress(result)), sum);
  EXPECT_EQ(*memory_.read<std::uint64_t>(GuestAddress(result + 8)), word_at(result + 8));
  EXPECT_GE(restore.statistics().faults, 512U + 5);
  EXPECT_GE(restore.working_set()->total_size(), (512 + 5) * source_page);
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_TRUE(holds_words(region_->host_base() + size - source_page, size - source_page));
}

TEST_P(LazyRestoreKvm, AVcpuThatMeetsALostPageGetsSigbus) {
  const auto source = std::make_shared<GuestSource>();
  source->fails = [](std::uint64_t at) { return at == data + 5 * source_page; };
  std::atomic<std::uint64_t> reported{0};
  START_RESTORE_OR_SKIP(restore, memory_, source,
                        {.background = false, .on_error = [&](GuestRange range, const Error&) {
                           reported = range.base.value();
                         }});
  start_vcpu();
  if (HasFatalFailure()) return;
  struct sigaction action = {};
  action.sa_handler = count_bus_error;
  struct sigaction before {};
  sigaction(SIGBUS, &action, &before);
  bus_errors = 0;
  const int error = run();
  sigaction(SIGBUS, &before, nullptr);
  EXPECT_EQ(reported, data + 5 * source_page);
  // What the kernel makes of it depends on its version: a signal, an error, or an exit.
  EXPECT_TRUE(bus_errors > 0 || error == EFAULT || error == EHWPOISON ||
              (error == 0 && run_->exit_reason != KVM_EXIT_IO))
      << "error " << error << ", exit " << run_->exit_reason;
}

INSTANTIATE_TEST_SUITE_P(Memory, LazyRestoreKvm,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& kind) {
                           return kind.param == MemorySource::anon ? "anonymous" : "memfd";
                         });

#else

// Shows that the guest is missing, and why.
TEST(LazyRestoreKvm, TheGuestRunsWhileItsMemoryComes) {
  GTEST_SKIP() << "the guest's code is for x86-64";
}

#endif

}  // namespace
}  // namespace vmspace::lazy_restore_kvm_test
