// SPDX-License-Identifier: Apache-2.0

#include "machine.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <span>
#include <utility>

#include "vmspace/base/try.hpp"

#include "acpi.hpp"
#include "descriptor.hpp"
#include "serial_port.hpp"

namespace boot_linux {

using example::Descriptor;
using vmspace::Errc;
using vmspace::fail;
using vmspace::Operand;
using vmspace::Result;

namespace {

/// An ioctl whose failure is an error that names it.
template <typename Argument>
Result<int> call(const Descriptor& fd, unsigned long request, const char* name, Argument argument) {
  const int result = ::ioctl(fd.get(), request, argument);
  if (result < 0) return fail({.code = Errc::os, .operation = name, .os_errno = errno});
  return result;
}

/// Wakes KVM_RUN when the time is up. One for a process.
class Alarm {
 public:
  explicit Alarm(std::chrono::seconds limit) {
    struct sigaction action {};
    action.sa_handler = [](int) {};  // only there to interrupt
    ::sigaction(SIGALRM, &action, nullptr);
    // Again and again: the first may come just before KVM_RUN.
    const itimerspec times{
        .it_interval = {.tv_sec = 1, .tv_nsec = 0},
        .it_value = {.tv_sec = static_cast<time_t>(limit.count()), .tv_nsec = 1}};
    sigevent to_process{};
    to_process.sigev_notify = SIGEV_SIGNAL;
    to_process.sigev_signo = SIGALRM;
    is_set_ = ::timer_create(CLOCK_MONOTONIC, &to_process, &timer_) == 0 &&
              ::timer_settime(timer_, 0, &times, nullptr) == 0;
  }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;
  ~Alarm() {
    if (is_set_) ::timer_delete(timer_);
  }
  [[nodiscard]] bool is_set() const { return is_set_; }

 private:
  timer_t timer_{};
  bool is_set_ = false;
};

kvm_segment segment(std::uint16_t selector, std::uint8_t type) {
  kvm_segment flat{};
  flat.selector = selector;
  flat.type = type;
  flat.limit = 0xffff'ffff;
  flat.present = 1;
  flat.s = 1;  // code or data
  flat.g = 1;  // the limit counts pages
  flat.db = 1;
  return flat;
}

/// The state in which the kernel's entries begin: PVH in 32-bit mode without paging, the other in
/// 64-bit mode.
void set_mode(kvm_sregs& sregs, const Entry& entry) {
  constexpr std::uint8_t execute_read = 11, read_write = 3, busy_task = 11;
  constexpr std::uint64_t protection = 1U << 0, paging = 1U << 31, address_extension = 1U << 5;
  constexpr std::uint64_t long_mode = 1U << 8 | 1U << 10;
  sregs.cs = segment(0x10, execute_read);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(0x18, read_write);
  sregs.tr = segment(0x20, busy_task);
  sregs.tr.s = 0;
  sregs.tr.limit = 0x67;
  sregs.tr.g = sregs.tr.db = 0;
  sregs.cr0 = protection;
  if (entry.mode == Entry::Mode::protected_32) return;
  sregs.cs.l = 1;
  sregs.cs.db = 0;
  sregs.cr0 |= paging;
  sregs.cr3 = entry.page_tables.value();
  sregs.cr4 = address_extension;
  sregs.efer = long_mode;
}

}  // namespace

struct Machine::State {
  Descriptor kvm, vm, vcpu;
  kvm_run* run = nullptr;
  std::size_t run_size = 0;
  vmspace::GuestRange registers;
  MmioAccess access;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (run != nullptr) ::munmap(run, run_size);
  }
  Result<void> set_processor() const;
  Result<void> set_registers(const Entry& entry) const;
  /// False when the guest has ended itself.
  [[nodiscard]] bool handle_port(SerialPort& serial) const;
  void handle_mmio() const;
};

Machine::Machine(std::unique_ptr<State> state) : state_(std::move(state)) {}
Machine::Machine(Machine&&) noexcept = default;
Machine::~Machine() = default;

int Machine::vm_fd() const {
  return state_->vm.get();
}

void Machine::set_interrupt(unsigned line, bool level) const {
  kvm_irq_level change{};
  change.irq = line;
  change.level = level ? 1 : 0;
  ::ioctl(state_->vm.get(), KVM_IRQ_LINE, &change);
}

void Machine::attach(vmspace::GuestRange registers, MmioAccess access) {
  state_->registers = registers;
  state_->access = std::move(access);
}

Result<Machine> Machine::create() {
  auto state = std::make_unique<State>();
  state->kvm = Descriptor(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (state->kvm.get() < 0) {
    return fail({.code = Errc::unsupported,
                 .operation = "open /dev/kvm",
                 .reason = "a guest needs KVM, and this process access to it",
                 .os_errno = errno});
  }
  const int vm = VMSPACE_TRY(call(state->kvm, KVM_CREATE_VM, "KVM_CREATE_VM", 0));
  state->vm = Descriptor(vm);
  // Three pages in the part of the MMIO hole that the layout keeps for the platform.
  VMSPACE_TRY(call(state->vm, KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", 0xfffb'd000UL));
  VMSPACE_TRY(call(state->vm, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP", 0));
  kvm_pit_config pit{};
  VMSPACE_TRY(call(state->vm, KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &pit));
  const int vcpu = VMSPACE_TRY(call(state->vm, KVM_CREATE_VCPU, "KVM_CREATE_VCPU", 0));
  state->vcpu = Descriptor(vcpu);
  const int run_size =
      VMSPACE_TRY(call(state->kvm, KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE", 0));
  state->run_size = static_cast<std::size_t>(run_size);
  void* const run =
      ::mmap(nullptr, state->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, state->vcpu.get(), 0);
  if (run == MAP_FAILED) {
    return fail({.code = Errc::os, .operation = "mmap kvm_run", .os_errno = errno});
  }
  state->run = static_cast<kvm_run*>(run);
  VMSPACE_TRY(state->set_processor());
  return Machine(std::move(state));
}

/// struct kvm_cpuid2 with room for what a processor has. In C++, the kernel's header gives it a size of
/// 12 bytes instead of 8, and so other numbers to the two calls that take it.
struct CpuId {
  std::uint32_t count;
  std::uint32_t padding;
  std::array<kvm_cpuid_entry2, 256> entries;
};
constexpr unsigned long get_supported_cpuid = _IOWR(KVMIO, 0x05, std::uint64_t);
constexpr unsigned long set_cpuid = _IOW(KVMIO, 0x90, std::uint64_t);

/// The host's processor, but for what KVMs without help from the hardware can't emulate, and with two
/// features that KVM leaves to its user: it says that it is a guest's, so that Linux looks for KVM's
/// clock, and its local APIC has a timer that needs no other clock to be measured by.
Result<void> Machine::State::set_processor() const {
  const auto cpuid = std::make_unique<CpuId>();
  cpuid->count = static_cast<std::uint32_t>(cpuid->entries.size());
  VMSPACE_TRY(call(kvm, get_supported_cpuid, "KVM_GET_SUPPORTED_CPUID", cpuid.get()));
  const bool has_deadline_timer =
      ::ioctl(kvm.get(), KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  for (kvm_cpuid_entry2& entry : std::span(cpuid->entries).first(cpuid->count)) {
    constexpr std::uint32_t cmpxchg16b = 1U << 13, deadline_timer = 1U << 24, hypervisor = 1U << 31;
    if (entry.function == 1) {
      entry.ecx = (entry.ecx & ~cmpxchg16b) | hypervisor;
      if (has_deadline_timer) entry.ecx |= deadline_timer;
      entry.ebx &= 0x00ff'ffff;  // the processor's APIC id is 0
    }
    if (entry.function == 0xb) entry.edx = 0;
  }
  VMSPACE_TRY(call(vcpu, set_cpuid, "KVM_SET_CPUID2", cpuid.get()));
  return {};
}

Result<void> Machine::State::set_registers(const Entry& entry) const {
  kvm_sregs sregs{};
  VMSPACE_TRY(call(vcpu, KVM_GET_SREGS, "KVM_GET_SREGS", &sregs));
  set_mode(sregs, entry);
  VMSPACE_TRY(call(vcpu, KVM_SET_SREGS, "KVM_SET_SREGS", &sregs));
  kvm_regs regs{};
  regs.rip = entry.code.value();
  regs.rbx = entry.argument.value();
  regs.rsi = entry.argument.value();
  regs.rflags = 1U << 1;  // always set; interrupts off
  VMSPACE_TRY(call(vcpu, KVM_SET_REGS, "KVM_SET_REGS", &regs));
  return {};
}

/// Ports without a device read as all ones, as an empty bus does; but the clock's as 0, for whose
/// update Linux would wait.
bool Machine::State::handle_port(SerialPort& serial) const {
  constexpr std::uint16_t clock_data = 0x71;
  auto* const data = reinterpret_cast<std::uint8_t*>(run) + run->io.data_offset;
  const std::uint16_t reg = static_cast<std::uint16_t>(run->io.port - SerialPort::base);
  const bool is_serial = run->io.port >= SerialPort::base && reg < SerialPort::registers;
  for (std::uint32_t i = 0; i < run->io.count; ++i) {
    std::uint8_t* const value = data + i * run->io.size;
    if (run->io.direction == KVM_EXIT_IO_OUT) {
      if (run->io.port == power_port) return false;
      if (is_serial) serial.write(reg, *value);
      continue;
    }
    std::memset(value, run->io.port == clock_data ? 0 : 0xff, run->io.size);
    if (is_serial) *value = serial.read(reg);
  }
  return true;
}

void Machine::State::handle_mmio() const {
  auto& mmio = run->mmio;
  const std::span bytes = std::as_writable_bytes(std::span(mmio.data)).first(mmio.len);
  const std::uint64_t offset = mmio.phys_addr - registers.base.value();
  if (access && mmio.phys_addr >= registers.base.value() && offset < registers.size) {
    access(offset, bytes, mmio.is_write != 0);
  } else if (mmio.is_write == 0) {
    std::ranges::fill(bytes, std::byte{0xff});
  }
}

Result<Stopped> Machine::run(const Entry& entry, std::function<bool(char)> print,
                             std::chrono::seconds limit) {
  State& state = *state_;
  VMSPACE_TRY(state.set_registers(entry));
  bool goes_on = true;
  SerialPort serial([&](char letter) { goes_on = print(letter) && goes_on; },
                    [&, before = false](bool level) mutable {
                      if (level == before) return;
                      before = level;
                      set_interrupt(SerialPort::irq, level);
                    });
  const Alarm alarm(limit);
  if (!alarm.is_set()) {
    return fail({.code = Errc::os, .operation = "timer_create", .os_errno = errno});
  }
  const auto end = std::chrono::steady_clock::now() + limit;
  const auto refuse = [&](const char* reason) {
    kvm_regs regs{};
    ::ioctl(state.vcpu.get(), KVM_GET_REGS, &regs);
    return fail({.code = Errc::bad_state,
                 .operation = "KVM_RUN",
                 .first = Operand::address(regs.rip),
                 .reason = reason});
  };
  while (goes_on) {
    if (std::chrono::steady_clock::now() >= end) return Stopped::by_time;
    if (::ioctl(state.vcpu.get(), KVM_RUN, 0) < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return fail({.code = Errc::os, .operation = "KVM_RUN", .os_errno = errno});
    }
    switch (state.run->exit_reason) {
      case KVM_EXIT_IO:
        if (!state.handle_port(serial)) return Stopped::by_guest;
        break;
      case KVM_EXIT_MMIO: state.handle_mmio(); break;
      case KVM_EXIT_SHUTDOWN:
      case KVM_EXIT_SYSTEM_EVENT:
      case KVM_EXIT_HLT: return Stopped::by_guest;
      case KVM_EXIT_INTERNAL_ERROR: return refuse("KVM could not emulate the instruction there");
      case KVM_EXIT_FAIL_ENTRY: return refuse("KVM refused the processor's state");
      default: return refuse("KVM returned for a reason that this example does not know");
    }
  }
  return Stopped::by_print;
}

}  // namespace boot_linux
