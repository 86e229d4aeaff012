// SPDX-License-Identifier: Apache-2.0
//
// Boots a distribution's Linux in memory that vmspace plans, maps and shows to KVM.
//
// Read in this order: here (options, and the steps), load_linux (what the kernel finds in memory),
// kernel_image and decompress (the kernel's file), machine and serial_port (KVM and its guest), disk and
// virtio_mmio (its disk).

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"
#include "vmspace/vmm.hpp"

#include "disk.hpp"
#include "kernel_image.hpp"
#include "load_linux.hpp"
#include "machine.hpp"
#include "read_file.hpp"

namespace boot_linux {
namespace {

using namespace vmspace::literals;
using vmspace::MemorySource;
using vmspace::Result;
using vmspace::VmMemory;

constexpr std::uint64_t largest_initrd = 1_GiB;

struct Options {
  std::string kernel;
  std::string initrd;
  std::string command_line = "console=ttyS0 earlyprintk=ttyS0";
  std::vector<std::uint64_t> nodes;  ///< bytes of RAM of each of the guest's NUMA nodes
  std::string disk;
  std::string memory = "shmem";
  std::string until;
  std::chrono::seconds limit{60};
  bool use_64_bit_entry = false;
};

template <typename... Args>
void say(fmt::format_string<Args...> text, Args&&... args) {
  fmt::print("boot_linux: {}\n", fmt::format(text, std::forward<Args>(args)...));
  std::fflush(stdout);  // the guest may take its time
}

/// One region of RAM for each piece of the plan.
Result<vmspace::AddressSpaceBase> make_space(const vmspace::AddressSpaceLayout& layout,
                                             std::span<const vmspace::RamPiece> plan,
                                             MemorySource source) {
  vmspace::AddressSpaceBase space(layout);
  for (const vmspace::RamPiece& piece : plan) {
    VMSPACE_TRY(space.insert_region({.name = fmt::format("ram of node {}", piece.node),
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = source}}));
  }
  return space;
}

/// Prints the guest's lines as they end, and looks for one.
class Console {
 public:
  explicit Console(std::string_view until) : until_(until) {}

  /// False when the line was seen.
  bool print(char letter) {
    if (letter == '\r') return true;
    line_ += letter;
    if (letter != '\n') return true;
    fmt::print("{}", line_);
    std::fflush(stdout);
    const bool is_seen = !until_.empty() && line_.find(until_) != std::string::npos;
    line_.clear();
    return !is_seen;
  }

 private:
  std::string_view until_;
  std::string line_;
};

Result<Stopped> boot(const Options& options) {
  const auto kernel = VMSPACE_TRY(KernelImage::read(options.kernel));
  say("{}: {}, {} MiB from {:#x}", options.kernel, kernel.compression(),
      (kernel.end().value() - kernel.segments().front().where.value()) / 1_MiB,
      kernel.segments().front().where.value());
  std::vector<std::byte> initrd;
  if (!options.initrd.empty()) initrd = VMSPACE_TRY(read_file(options.initrd, largest_initrd));

  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto plan = VMSPACE_TRY(layout.plan_ram(options.nodes));
  const auto source = VMSPACE_TRY(vmspace::parse_memory_source(options.memory));
  const auto memory = VMSPACE_TRY(VmMemory::create(VMSPACE_TRY(make_space(layout, plan, source))));
  fmt::print("{}", vmspace::memory_map(memory.map()->space));
  const auto e820 = vmspace::e820(layout, plan);
  for (const vmspace::E820Entry& entry : e820) {
    say("e820 [mem {:#018x}-{:#018x}] {}", entry.base.value(), entry.base.value() + entry.size - 1,
        entry.type);
  }
  const auto srat =
      VMSPACE_TRY(vmspace::srat({{.apic_id = 0, .node = 0}}, vmspace::srat_memory(plan)));

  auto machine = VMSPACE_TRY(Machine::create());
  const auto numbers =
      VMSPACE_TRY(vmspace::RangePool::create("memory slots", {vmspace::Range::of(0, 31)}));
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(machine.vm_fd(), numbers));
  VMSPACE_TRY(memory.add_listener(std::make_shared<vmspace::KvmMemslots>(std::move(slots))));
  const auto manager = VMSPACE_TRY(
      vmspace::ResourceManager::create(std::make_shared<VmMemory>(memory), {.kvm_slots = numbers}));
  std::unique_ptr<Disk> disk;
  std::optional<MmioDevice> device;
  if (!options.disk.empty()) {
    disk = VMSPACE_TRY(Disk::attach(options.disk, manager, memory, machine));
    device = disk->mmio();
    say("disk at {:#x}, interrupt {}", device->base.value(), device->interrupt);
  }

  const auto entry =
      VMSPACE_TRY(load_linux(memory.map()->memory, {.kernel = kernel,
                                                    .initrd = initrd,
                                                    .command_line = options.command_line,
                                                    .e820 = e820,
                                                    .srat = srat,
                                                    .device = device ? &*device : nullptr,
                                                    .use_pvh = !options.use_64_bit_entry}));
  say("loaded; starting at {:#x} in {}", entry.code.value(),
      entry.mode == Entry::Mode::long_64 ? "64-bit mode" : "32-bit mode (PVH)");
  Console console(options.until);
  return machine.run(
      entry, [&](char letter) { return console.print(letter); }, options.limit);
}

int run(int argc, char** argv) {
  CLI::App app("Boots a Linux kernel in memory that vmspace manages.");
  Options options;
  app.add_option("--kernel", options.kernel, "a bzImage (/boot/vmlinuz-...) or a vmlinux")
      ->required();
  app.add_option("--initrd", options.initrd, "an initrd or initramfs");
  app.add_option("--disk", options.disk, "a file for a virtio-mmio block device");
  app.add_option("--append", options.command_line, "the kernel's command line")
      ->capture_default_str();
  app.add_option("--node", options.nodes,
                 "RAM of a NUMA node, as 512M or 5G; once for each node; 512M by default")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--memory", options.memory, "anon, shmem, hugeanon, hugeshmem, hugetlbfs")
      ->capture_default_str();
  app.add_option("--until", options.until, "stop when the guest prints this");
  std::uint64_t seconds = 60;
  app.add_option("--seconds", seconds, "stop after so long")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
  app.add_flag("--64-bit-entry", options.use_64_bit_entry,
               "the 64-bit boot protocol, also where the kernel has a PVH entry");
  CLI11_PARSE(app, argc, argv);
  options.limit = std::chrono::seconds(seconds);
  if (options.nodes.empty()) options.nodes = {512_MiB};

  const auto stopped = boot(options);
  if (!stopped) {
    fmt::print(stderr, "boot_linux: {}\n", stopped.error().message());
    // What the tests take for a skip: this machine lacks something, and nothing is wrong.
    return stopped.error().code == vmspace::Errc::unsupported ? 77 : 1;
  }
  switch (*stopped) {
    case Stopped::by_print: say("\"{}\" was printed", options.until); return 0;
    case Stopped::by_guest: say("the guest shut down"); return options.until.empty() ? 0 : 2;
    case Stopped::by_time:
      say("stopped after {} s", options.limit.count());
      return options.until.empty() ? 0 : 2;
  }
  return 1;
}

}  // namespace
}  // namespace boot_linux

int main(int argc, char** argv) {
  return boot_linux::run(argc, argv);
}
