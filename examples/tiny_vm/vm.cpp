// SPDX-License-Identifier: Apache-2.0

#include "vm.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

namespace tiny_vm {

using vmspace::Errc;
using vmspace::fail;
using vmspace::Operand;
using vmspace::Result;

namespace {

auto os_failure(const char* operation, int error = errno) {
  return fail({.code = Errc::os, .operation = operation, .os_errno = error});
}

/// 64-bit mode without firmware: paging on, flat segments (AMD64 manual volume 2, section 14.6).
void enter_long_mode(kvm_sregs& sregs, const Start& start) {
  constexpr std::uint64_t cr0_protected = 1u << 0, cr0_paging = 1u << 31;
  constexpr std::uint64_t cr4_physical_address_extension = 1u << 5;
  constexpr std::uint64_t efer_long_mode_enable = 1u << 8, efer_long_mode_active = 1u << 10;
  sregs.cr3 = start.page_tables.value();
  sregs.cr4 = cr4_physical_address_extension;
  sregs.cr0 = cr0_protected | cr0_paging;
  sregs.efer = efer_long_mode_enable | efer_long_mode_active;

  kvm_segment flat{};
  flat.limit = 0xffff'ffff;
  flat.present = 1;
  flat.s = 1;  // code or data
  flat.g = 1;  // the limit counts pages
  flat.dpl = start.user_mode ? 3 : 0;
  kvm_segment code = flat;
  code.selector = start.user_mode ? 0x33 : 0x08;
  code.type = 11;  // execute, read, accessed
  code.l = 1;      // 64-bit
  kvm_segment data = flat;
  data.selector = start.user_mode ? 0x2b : 0x10;
  data.type = 3;  // read, write, accessed
  data.db = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
}

// Only there to interrupt KVM_RUN: a signal that is ignored would not.
void on_kick(int) {}
constexpr int kick_signal = SIGUSR1;

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Result<Vm> Vm::create() {
  const Descriptor kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (kvm.get() < 0) return os_failure("open /dev/kvm");
  const int version = ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0);
  if (version < 0) return os_failure("KVM_GET_API_VERSION");
  if (version != KVM_API_VERSION) {
    return fail({.code = Errc::unsupported,
                 .operation = "KVM_GET_API_VERSION",
                 .first = Operand::number(static_cast<std::uint64_t>(version)),
                 .reason = "must be 12, the version of every kernel since 2.6.22"});
  }
  const int run_size = ::ioctl(kvm.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_size < 0) return os_failure("KVM_GET_VCPU_MMAP_SIZE");
  if (::ioctl(kvm.get(), KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0) {
    return fail({.code = Errc::unsupported,
                 .operation = "KVM_CHECK_EXTENSION",
                 .reason = "this KVM has no immediate exit"});
  }

  Descriptor vm(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (vm.get() < 0) return os_failure("KVM_CREATE_VM");
  // Intel processors want three pages that the guest does not use otherwise; they lie in the part
  // of the MMIO hole that the layout reserves.
  if (::ioctl(vm.get(), KVM_SET_TSS_ADDR, 0xfffb'd000ul) < 0) return os_failure("KVM_SET_TSS_ADDR");
  return Vm(std::move(vm), static_cast<std::size_t>(run_size));
}

struct Vcpu::Registers {
  kvm_regs general;
  kvm_sregs system;
};

Result<std::unique_ptr<Vcpu>> Vcpu::start(const Vm& vm, const Start& start,
                                          std::shared_ptr<const vmspace::VcpuGate> gate) {
  Descriptor vcpu(::ioctl(vm.fd(), KVM_CREATE_VCPU, start.id));
  if (vcpu.get() < 0) return os_failure("KVM_CREATE_VCPU");

  Registers registers{};
  if (::ioctl(vcpu.get(), KVM_GET_SREGS, &registers.system) < 0) return os_failure("KVM_GET_SREGS");
  enter_long_mode(registers.system, start);
  registers.general.rip = start.code.value();
  registers.general.rdi = start.argument.value();
  constexpr std::uint64_t always_set = 1u << 1, ports_for_all = 3u << 12;
  registers.general.rflags = always_set | (start.user_mode ? ports_for_all : 0);  // interrupts off
  return launch(vm, std::move(vcpu), registers, std::move(gate));
}

Result<std::unique_ptr<Vcpu>> Vcpu::resume(const Vm& vm, std::span<const std::byte> registers,
                                           std::shared_ptr<const vmspace::VcpuGate> gate) {
  Registers before;
  if (registers.size() != sizeof before) {
    return fail({.code = Errc::invalid_argument,
                 .operation = "Vcpu::resume",
                 .first = Operand::size(registers.size()),
                 .second = Operand::size(sizeof before),
                 .reason = "these are not the registers of a processor"});
  }
  std::memcpy(&before, registers.data(), sizeof before);
  Descriptor vcpu(::ioctl(vm.fd(), KVM_CREATE_VCPU, 0));
  if (vcpu.get() < 0) return os_failure("KVM_CREATE_VCPU");
  return launch(vm, std::move(vcpu), before, std::move(gate));
}

Result<std::vector<std::byte>> Vcpu::registers() const {
  Registers now;
  if (::ioctl(vcpu_.get(), KVM_GET_REGS, &now.general) < 0) return os_failure("KVM_GET_REGS");
  if (::ioctl(vcpu_.get(), KVM_GET_SREGS, &now.system) < 0) return os_failure("KVM_GET_SREGS");
  const auto bytes = std::as_bytes(std::span(&now, 1));
  return std::vector(bytes.begin(), bytes.end());
}

Result<std::unique_ptr<Vcpu>> Vcpu::launch(const Vm& vm, Descriptor vcpu,
                                           const Registers& registers,
                                           std::shared_ptr<const vmspace::VcpuGate> gate) {
  if (::ioctl(vcpu.get(), KVM_SET_SREGS, &registers.system) < 0) return os_failure("KVM_SET_SREGS");
  if (::ioctl(vcpu.get(), KVM_SET_REGS, &registers.general) < 0) return os_failure("KVM_SET_REGS");

  void* run = ::mmap(nullptr, vm.run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0);
  if (run == MAP_FAILED) return os_failure("mmap kvm_run");

  struct sigaction action {};
  action.sa_handler = on_kick;
  ::sigaction(kick_signal, &action, nullptr);
  return std::unique_ptr<Vcpu>(
      new Vcpu(std::move(vcpu), static_cast<kvm_run*>(run), vm.run_size(), std::move(gate)));
}

Vcpu::Vcpu(Descriptor vcpu, kvm_run* run, std::size_t run_size,
           std::shared_ptr<const vmspace::VcpuGate> gate)
    : vcpu_(std::move(vcpu)),
      run_(run),
      run_size_(run_size),
      gate_(std::move(gate)),
      thread_([this] { run_loop(); }) {}

void Vcpu::stop() {
  is_to_stop_ = true;
  kick(thread_.native_handle());
}

Vcpu::~Vcpu() {
  stop();
  thread_.join();
  ::munmap(run_, run_size_);
}

/// The flag stops the processor at its next entry, the signal when it is in the guest now.
void Vcpu::kick(pthread_t thread) {
  __atomic_store_n(&run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
  ::pthread_kill(thread, kick_signal);
}

Result<Event> Vcpu::next_event(std::chrono::seconds limit) {
  std::unique_lock lock(mutex_);
  if (!posted_.wait_for(lock, limit, [this] { return !events_.empty(); })) {
    return fail({.code = Errc::timed_out,
                 .operation = "waiting for the guest",
                 .first = Operand::number(static_cast<std::uint64_t>(limit.count())),
                 .reason = "seconds"});
  }
  const Result<Event> event = events_.front();
  events_.pop_front();
  return event;
}

void Vcpu::post(Result<Event> event) {
  const std::lock_guard lock(mutex_);
  events_.push_back(event);
  posted_.notify_one();
}

/// KVM_RUN; gives what it failed with, or 0.
int Vcpu::run(const vmspace::VcpuGate::Vcpu& vcpu) {
  const auto inside = vcpu.enter();
  return ::ioctl(vcpu_.get(), KVM_RUN, 0) < 0 ? errno : 0;
}

void Vcpu::run_loop() {
  const auto vcpu = gate_->add_vcpu([this, thread = ::pthread_self()] { kick(thread); });
  for (;;) {
    const int error = run(vcpu);
    __atomic_store_n(&run_->immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST);
    if (is_to_stop_) return;  // looked at after that: who stops it sets both in the opposite order
    if (error == EINTR) continue;
    const Result<Event> event = error == 0 ? handle_exit() : os_failure("KVM_RUN", error);
    post(event);
    if (!event || event->kind == Event::Kind::halted) return;
  }
}

Result<Event> Vcpu::handle_exit() {
  const auto unexpected = [this](const char* reason) {
    return fail({.code = Errc::bad_state,
                 .operation = "KVM_RUN",
                 .first = Operand::number(run_->exit_reason),
                 .reason = reason});
  };
  switch (run_->exit_reason) {
    case KVM_EXIT_HLT: return Event{.kind = Event::Kind::halted};
    case KVM_EXIT_IO: {
      const auto& io = run_->io;
      if (io.direction != KVM_EXIT_IO_OUT || io.count != 1)
        return unexpected("unexpected kind of port access");
      std::uint32_t value = 0;
      std::memcpy(&value, reinterpret_cast<const char*>(run_) + io.data_offset, io.size);
      return Event{.kind = Event::Kind::port_write, .address = io.port, .value = value};
    }
    case KVM_EXIT_MMIO: {
      auto& mmio = run_->mmio;
      std::uint64_t value = ~std::uint64_t{0};
      if (mmio.is_write != 0) {
        std::memcpy(&value, mmio.data, mmio.len);
        return Event{Event::Kind::unmapped_write, mmio.phys_addr, value};
      }
      std::memcpy(mmio.data, &value, mmio.len);
      return Event{Event::Kind::unmapped_read, mmio.phys_addr, value};
    }
    case KVM_EXIT_SHUTDOWN: return unexpected("the guest's processor gave up: a triple fault");
    case KVM_EXIT_FAIL_ENTRY: return unexpected("the processor's state was refused");
    case KVM_EXIT_INTERNAL_ERROR: return unexpected("KVM could not emulate an instruction");
    default: return unexpected("an exit this example does not know");
  }
}

}  // namespace tiny_vm
