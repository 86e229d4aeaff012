// SPDX-License-Identifier: Apache-2.0
//
// boot_linux with Debian's cloud kernel: the map that the kernel sees is the one that the layout
// printed, its memory is all there, and its NUMA nodes are ours.
//
// A KVM that emulates kernel-mode code gets no further than that: it lacks instructions. With help from
// the processor the same start goes on to user space, which uses our disk; the test says which.

#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/linux_guest.hpp"
#include "clients/process.hpp"
#include "clients/qemu.hpp"

namespace vmspace::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

/// What the program has printed, and its exit status: nothing when it does not end in time.
struct Output {
  Log log;
  std::optional<int> status;
};

Output run(const std::vector<std::string>& arguments) {
  Output output;
  std::vector<std::string> words{VMSPACE_BOOT_LINUX};
  words.insert(words.end(), arguments.begin(), arguments.end());
  Process program(words);
  while (auto line = program.output.next(180s))
    output.log.lines.push_back(*std::move(line));
  output.status = program.wait(60s);
  return output;
}

/// Whether KVM has a processor's help: then one of its modules for that is there.
bool has_hardware_kvm() {
  return fs::exists("/sys/module/kvm_intel") || fs::exists("/sys/module/kvm_amd");
}

constexpr const char* no_kernel =
    "no Debian cloud kernel: `sh cmake/bootstrap.sh clients` gets one";

/// As far as a KVM gets that emulates: it lacks instructions, of which the kernel would use some, and
/// others in what follows the report of its memory.
void boot_to_memory(std::vector<std::string> arguments, const std::vector<std::uint64_t>& nodes) {
  arguments.insert(arguments.end(), {"--until", "Memory:", "--append",
                                     "console=ttyS0 earlyprintk=ttyS0 noxsave clearcpuid=308,151"});
  const Output boot = run(arguments);
  // Without /dev/kvm there is no guest; the program says what is missing.
  if (boot.status == 77) GTEST_SKIP() << boot.log.text();
  SCOPED_TRACE(boot.log.text());
  expect_kernel_sees_our_map(boot.log);
  // A loaded machine that emulates the guest may need minutes for more.
  if (boot.status == 2)
    GTEST_SKIP() << "this KVM emulates the guest, too slowly for more: " << boot.log.lines.back();
  EXPECT_EQ(boot.status, 0);
  expect_kernel_sees_our_memory(boot.log, nodes);
  std::cout
      << "this KVM emulates the guest: not tried beyond the kernel's own report of its memory, "
         "which boot_linux_nested_test does\n";
}

/// To user space, and its end.
void boot_to_init(std::vector<std::string> arguments, const std::vector<std::uint64_t>& nodes) {
  // The guest's user space; `bootstrap.sh clients` alone installs it.
  if (!fs::exists("/bin/busybox")) GTEST_SKIP() << "busybox-static is not installed";
  const ShortDirectory directory;
  write_initrd(directory / "initrd", DebianKernel::find(), "poweroff");
  std::ofstream(directory / "disk") << std::string(8 << 20, 'd');
  arguments.insert(arguments.end(), {"--initrd", directory / "initrd", "--disk", directory / "disk",
                                     "--append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"});
  const std::string before = md5_of(directory / "disk");
  const Output boot = run(arguments);
  // As above: /dev/kvm is there, but this user may not open it.
  if (boot.status == 77) GTEST_SKIP() << boot.log.text();
  SCOPED_TRACE(boot.log.text());
  EXPECT_EQ(boot.status, 0);
  expect_kernel_sees_our_map(boot.log);
  expect_kernel_sees_our_memory(boot.log, nodes);
  expect_init_used_our_machine(boot.log, before, md5_of(directory / "disk"));
  std::cout
      << "this KVM uses the processor's virtualization: the guest's user space used its disk, and "
         "switched the machine off\n";
}

void expect_boot(const std::vector<std::string>& node_options,
                 const std::vector<std::uint64_t>& nodes) {
  const auto kernel = DebianKernel::find();
  // Only `bootstrap.sh clients` unpacks one.
  if (kernel.image.empty()) GTEST_SKIP() << no_kernel;
  std::vector<std::string> arguments{"--kernel", kernel.image, "--seconds", "170"};
  arguments.insert(arguments.end(), node_options.begin(), node_options.end());
  if (has_hardware_kvm()) {
    boot_to_init(arguments, nodes);
  } else {
    boot_to_memory(arguments, nodes);
  }
}

TEST(BootLinux, KernelSees512MiB) {
  expect_boot({"--node", "512M"}, {512ULL << 20});
}

TEST(BootLinux, KernelSees5GiBAroundTheHoleInTwoNodes) {
  expect_boot({"--node", "2G", "--node", "3G"}, {2ULL << 30, 3ULL << 30});
}

TEST(BootLinux, SaysWhatIsWrong) {
  const auto expect_error = [](const std::vector<std::string>& arguments,
                               const std::string& message) {
    const Output refused = run(arguments);
    EXPECT_EQ(refused.status, 1) << refused.log.text();
    EXPECT_THAT(refused.log.text(), HasSubstr(message)) << testing::PrintToString(arguments);
  };
  expect_error({"--kernel", "/nonexistent"}, "No such file or directory");
  expect_error({"--kernel", "/proc/self/exe"}, "not a kernel");
  const std::string kernel = DebianKernel::find().image;
  // What follows is about a kernel that can be read.
  if (kernel.empty()) GTEST_SKIP() << no_kernel;
  const auto expect_refused = [&](std::vector<std::string> arguments, const std::string& message) {
    arguments.insert(arguments.begin(), {"--kernel", kernel});
    expect_error(arguments, message);
  };
  expect_refused({"--node", "4K"}, "no RAM where the kernel has to be");
  expect_refused({"--node", "64T"}, "no space");
  expect_refused({"--node", "4097"}, "multiple");
  expect_refused({"--memory", "floppy"}, "floppy");
  expect_refused({"--append", std::string(2048, 'x')}, "command line");
  expect_refused({"--initrd", "/nonexistent"}, "No such file or directory");
  expect_refused({"--disk", "/nonexistent"}, "No such file or directory");
  const ShortDirectory directory;
  std::ofstream(directory / "initrd") << std::string(64 << 20, 'x');
  expect_refused({"--node", "96M", "--initrd", directory / "initrd"}, "initrd does not fit");
}

}  // namespace
}  // namespace vmspace::test
