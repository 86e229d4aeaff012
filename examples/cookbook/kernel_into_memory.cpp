// SPDX-License-Identifier: Apache-2.0

#include <iostream>
#include <string>
#include <string_view>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/ostream.hpp"

#include "sample_files.hpp"

using namespace vmspace::literals;

namespace {

// README begin
struct Boot {
  vmspace::GuestRange kernel;
  vmspace::GuestRange initrd;
  vmspace::GuestAddress command_line;
};

vmspace::Result<Boot> load_boot_files(const vmspace::GuestMemory& memory,
                                      const std::string& kernel_path,
                                      const std::string& initrd_path, std::string_view options) {
  const vmspace::GuestAddress command_line{0x2'0000};
  VMSPACE_TRY(memory.write_slice(command_line, std::as_bytes(std::span(options))));
  VMSPACE_TRY(memory.write(vmspace::GuestAddress{command_line.value() + options.size()}, '\0'));

  // Each gives the range that it fills, as the boot parameters want it.
  const auto kernel = VMSPACE_TRY(load_file(kernel_path, memory, vmspace::GuestAddress{1_MiB}));
  const auto initrd = VMSPACE_TRY(load_file(initrd_path, memory, vmspace::GuestAddress{128_MiB}));
  return Boot{.kernel = kernel, .initrd = initrd, .command_line = command_line};
}
// README end

vmspace::Result<void> run(const std::string& kernel, const std::string& initrd) {
  const vmspace::GuestRange ram[] = {{vmspace::GuestAddress{0}, 256_MiB}};
  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::create(ram));
  const Boot boot = VMSPACE_TRY(load_boot_files(memory, kernel, initrd, "console=ttyS0"));
  std::cout << "kernel at " << boot.kernel << ", initrd at " << boot.initrd << '\n';
  const auto options = VMSPACE_TRY(memory.read_string(boot.command_line, 2048));
  std::cout << options << '\n';

  const vmspace::GuestRange too_little[] = {{vmspace::GuestAddress{0}, 2_MiB}};
  const auto small = VMSPACE_TRY(vmspace::GuestMemory::create(too_little));
  const auto refused = load_file(kernel, small, vmspace::GuestAddress{1_MiB});
  if (!refused) std::cout << refused.error().message() << '\n';
  return {};
}

}  // namespace

int main() {
  const example::SampleFiles files;
  files.write("vmlinux", std::string(3_MiB, 'k'));
  files.write("initrd.img", std::string(100'000, 'i'));
  vmspace::value_or_exit(run("vmlinux", "initrd.img"));
}
