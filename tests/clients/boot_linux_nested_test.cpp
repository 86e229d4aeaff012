// SPDX-License-Identifier: Apache-2.0
//
// boot_linux under a KVM that uses a processor's virtualization, on any machine: QEMU emulates a processor
// of AMD's with SVM and nested paging. In it, Debian's cloud kernel loads kvm-amd, and its first program
// starts boot_linux, twice. What runs in boot_linux's guest is that kernel again, to its user space: its
// own drivers walk our rings, and take our interrupts.

#include <chrono>
#include <filesystem>
#include <fstream>
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

/// The host's first program.
const std::string host_init = R"sh(#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
$b mount -t proc none /proc
$b mount -t sysfs none /sys
for module in irqbypass kvm kvm-amd; do
  $b insmod /lib/$module.ko
done
export LD_LIBRARY_PATH=/lib
boot() {
  echo "host: before $($b md5sum < /disk)"
  /bin/boot_linux --kernel /kernel --disk /disk --seconds 250 \
    --append 'console=ttyS0 earlyprintk=ttyS0 panic=-1' "$@"
  echo "host: status $?"
  echo "host: after $($b md5sum < /disk)"
}
boot --initrd /poweroff --node 2G --node 3G
boot --initrd /reboot --node 512M --memory anon --64-bit-entry
$b poweroff -f
)sh";

/// The libraries that a program is linked to, and their loader.
std::vector<fs::path> libraries_of(const std::string& program) {
  std::vector<fs::path> found;
  Process ldd({"ldd", program});
  while (const auto line = ldd.output.next(10s)) {
    const std::size_t path = line->find('/');
    if (path != std::string::npos)
      found.emplace_back(line->substr(path, line->find(' ', path) - path));
  }
  return found;
}

void write_host(const ShortDirectory& directory, const DebianKernel& kernel) {
  Archive initrd;
  for (const char* name : {"bin", "dev", "proc", "sys", "lib", "lib64"})
    initrd.add_directory(name);
  initrd.add_file("bin/busybox", "/bin/busybox");
  initrd.add_program("init", host_init);
  initrd.add_file("lib/irqbypass.ko", kernel.modules / "virt/lib/irqbypass.ko");
  for (const std::string name : {"kvm", "kvm-amd"})
    initrd.add_file("lib/" + name + ".ko", kernel.modules / "arch/x86/kvm" / (name + ".ko"));
  initrd.add_file("bin/boot_linux", VMSPACE_BOOT_LINUX);
  for (const fs::path& library : libraries_of(VMSPACE_BOOT_LINUX)) {
    const bool is_loader = library.parent_path() == "/lib64";
    initrd.add_file((is_loader ? "lib64" : "lib") / library.filename(), library);
  }
  initrd.add_file("kernel", kernel.image);
  initrd.add_program("disk", std::string(8 << 20, 'd'));
  for (const std::string ending : {"poweroff", "reboot"}) {
    write_initrd(directory / ending, kernel, ending);
    initrd.add_file(ending, directory / ending);
  }
  initrd.write(directory / "initrd");
}

/// What one run of boot_linux has printed, and the host about it.
struct Boot {
  Log log;
  std::string status, before, after;
};

/// The next run in the host's output.
Boot next_boot(Process& qemu) {
  const std::string status = "host: status ", before = "host: before ", after = "host: after ";
  Boot boot;
  while (const auto line = qemu.output.next(120s)) {
    if (line->starts_with(before)) boot.before = line->substr(before.size());
    if (line->starts_with(status)) boot.status = line->substr(status.size());
    if (line->starts_with(after)) {
      boot.after = line->substr(after.size());
      break;
    }
    boot.log.lines.push_back(*line);
  }
  return boot;
}

TEST(BootLinuxNested, ReachesInitThatUsesOurMachine) {
  const std::string missing = missing_for_linux({"qemu-system-x86_64", "ldd"});
  // What the test starts is installed by `bootstrap.sh clients` alone.
  if (!missing.empty()) GTEST_SKIP() << missing;
  const auto kernel = DebianKernel::find();

  const ShortDirectory directory;
  write_host(directory, kernel);
  // The emulated SVM is at odds with XSAVE about the size of its state; and on a busy machine the host's
  // kernel would miss the ticks by which it looks for its timer.
  Process qemu({"qemu-system-x86_64",
                "-accel",
                "tcg",
                "-cpu",
                "max,xsave=off",
                "-machine",
                "q35",
                "-nodefaults",
                "-display",
                "none",
                "-m",
                "1536M",
                "-kernel",
                kernel.image,
                "-initrd",
                directory / "initrd",
                "-append",
                "console=ttyS0 panic=-1 loglevel=1 no_timer_check",
                "-no-reboot",
                "-serial",
                "stdio"});
  {
    const Boot boot = next_boot(qemu);
    SCOPED_TRACE(boot.log.text());
    EXPECT_EQ(boot.status, "0");
    expect_kernel_sees_our_map(boot.log);
    expect_kernel_sees_our_memory(boot.log, {2ULL << 30, 3ULL << 30});
    expect_init_used_our_machine(boot.log, boot.before, boot.after);
    EXPECT_NE(boot.before, boot.after);
  }
  {
    const Boot boot = next_boot(qemu);
    SCOPED_TRACE(boot.log.text());
    EXPECT_EQ(boot.status, "0");
    EXPECT_EQ(boot.log.find("^boot_linux: loaded; .* in 64-bit mode").size(), 1U);
    expect_kernel_sees_our_map(boot.log);
    expect_kernel_sees_our_memory(boot.log, {512ULL << 20});
    expect_init_used_our_machine(boot.log, boot.before, boot.after);
  }
  EXPECT_EQ(qemu.wait(30s), 0) << qemu.output.all();
}

}  // namespace
}  // namespace vmspace::test
