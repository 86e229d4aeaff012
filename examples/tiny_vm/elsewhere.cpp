// SPDX-License-Identifier: Apache-2.0
//
// Replaces vm.cpp and guest.S on hosts other than x86-64, where this guest cannot run.

#include <cstddef>

#include "vm.hpp"

extern "C" const std::byte guest_code_begin[1]{};
extern "C" const std::byte guest_code_end[1]{};

namespace tiny_vm {

namespace {

tl::unexpected<vmspace::Error> wrong_host() {
  return vmspace::fail({.code = vmspace::Errc::unsupported,
                        .operation = "tiny_vm",
                        .reason = "the guest's code is for x86-64 hosts"});
}

}  // namespace

Descriptor::~Descriptor() = default;
vmspace::Result<Vm> Vm::create() {
  return wrong_host();
}
vmspace::Result<std::unique_ptr<Vcpu>> Vcpu::start(const Vm&, const Start&,
                                                   std::shared_ptr<const vmspace::VcpuGate>) {
  return wrong_host();
}
vmspace::Result<std::unique_ptr<Vcpu>> Vcpu::resume(const Vm&, std::span<const std::byte>,
                                                    std::shared_ptr<const vmspace::VcpuGate>) {
  return wrong_host();
}
void Vcpu::stop() {}
vmspace::Result<std::vector<std::byte>> Vcpu::registers() const {
  return wrong_host();
}
vmspace::Result<Event> Vcpu::next_event(std::chrono::seconds) {
  return wrong_host();
}
Vcpu::~Vcpu() = default;

}  // namespace tiny_vm
