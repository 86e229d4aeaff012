// SPDX-License-Identifier: Apache-2.0
//
// boot_linux with Debian's cloud kernel: the map that the kernel sees is the one that the layout
// printed, its memory is all there, and its NUMA nodes are ours.
//
// A KVM that emulates kernel-mode code gets no further than that: it lacks instructions. With help
// from the processor the same start goes on to the end of the kernel's own work; the test says which.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/qemu.hpp"

namespace {

namespace fs = std::filesystem;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

/// What a program printed, and its exit status.
struct Output {
  std::vector<std::string> lines;
  int status;

  [[nodiscard]] std::string text() const {
    std::string all;
    for (const std::string& line : lines)
      all += line + '\n';
    return all;
  }
  /// What the expression's groups match, of each line that it matches.
  [[nodiscard]] std::vector<std::vector<std::string>> find(const std::string& pattern) const {
    std::vector<std::vector<std::string>> found;
    const std::regex expression(pattern);
    for (const std::string& line : lines) {
      std::smatch match;
      if (std::regex_search(line, match, expression))
        found.emplace_back(match.begin() + 1, match.end());
    }
    return found;
  }
};

Output run(const std::string& arguments) {
  Output result{};
  // A vCPU that an emulating KVM is busy with takes no other signal.
  const std::string command = "timeout -s KILL 180 " VMSPACE_BOOT_LINUX " " + arguments + " 2>&1";
  std::FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return result;
  std::string line;
  for (int letter = std::getc(pipe); letter != EOF; letter = std::getc(pipe)) {
    if (letter != '\n') {
      line += static_cast<char>(letter);
      continue;
    }
    result.lines.push_back(std::exchange(line, {}));
  }
  if (!line.empty()) result.lines.push_back(line);
  const int status = pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

std::string find_kernel() {
  return vmspace::test::DebianKernel::find().image;
}

constexpr const char* no_kernel =
    "no Debian cloud kernel: `sh cmake/bootstrap.sh clients` gets one";

/// For KVMs that emulate: instructions that they lack, and the kernel would use.
constexpr const char* command_line =
    "console=ttyS0 earlyprintk=ttyS0 noxsave clearcpuid=308,151 panic=-1 reboot=t";

void expect_kernel_sees_our_memory(const std::string& nodes, std::uint64_t bytes,
                                   std::size_t count) {
  const std::string kernel = find_kernel();
  if (kernel.empty()) GTEST_SKIP() << no_kernel;
  const auto boot_until = [&](const char* line) {
    return run("--kernel " + kernel + " " + nodes + " --until '" + line +
               "' --seconds 170 --append '" + command_line + "'");
  };
  const auto begin = std::chrono::steady_clock::now();
  const Output boot = boot_until("Memory:");
  const auto elapsed = std::chrono::steady_clock::now() - begin;
  // Without /dev/kvm there is no guest; the program says what is missing.
  if (boot.status == 77) GTEST_SKIP() << boot.text();
  SCOPED_TRACE(boot.text());

  const auto ours =
      boot.find(R"(^boot_linux: e820 \[mem (0x[0-9a-f]+-0x[0-9a-f]+)\] (ram|reserved))");
  auto theirs = boot.find(R"(BIOS-e820: \[mem (0x[0-9a-f]+-0x[0-9a-f]+)\] (usable|reserved))");
  for (auto& entry : theirs) {
    if (entry[1] == "usable") entry[1] = "ram";
  }
  ASSERT_THAT(ours, Not(IsEmpty()));
  EXPECT_EQ(theirs, ours);

  // The map was checked above; a loaded machine that emulates the guest may need minutes for more.
  if (boot.status == 2)
    GTEST_SKIP() << "this KVM emulates the guest, too slowly for more: " << boot.lines.back();

  // Of what the nodes have, the kernel leaves out what lies below 1 MiB and is not RAM.
  const auto total = boot.find(R"(Memory: [0-9]+K/([0-9]+)K available)");
  ASSERT_EQ(total.size(), 1U) << "the kernel did not get to its memory";
  const std::uint64_t seen = std::stoull(total[0][0]) << 10;
  EXPECT_LE(seen, bytes);
  EXPECT_GE(seen, bytes - (1 << 20));

  std::vector<std::string> listed;
  for (const auto& node : boot.find(R"(Initmem setup node ([0-9]+) )"))
    listed.push_back(node[0]);
  EXPECT_EQ(listed.size(), count);
  EXPECT_EQ(boot.find(R"(SRAT: Node ([0-9]+) PXM)").empty(), false);

  // Emulation takes ten times as long as this, and ends soon after at an instruction that it lacks.
  if (elapsed > std::chrono::seconds(4)) {
    std::cout
        << "this KVM emulates the guest: not tried beyond the kernel's own report of its memory\n";
    return;
  }
  const Output whole = boot_until("VFS: Unable to mount root fs");
  EXPECT_EQ(whole.status, 0) << whole.text();
  std::cout << "the kernel did all of its own work, and missed a root file system\n";
}

TEST(BootLinux, KernelSees512MiB) {
  expect_kernel_sees_our_memory("--node 512M", 512ULL << 20, 1);
}

TEST(BootLinux, KernelSees5GiBAroundTheHoleInTwoNodes) {
  expect_kernel_sees_our_memory("--node 2G --node 3G", 5ULL << 30, 2);
}

TEST(BootLinux, SaysWhatIsWrong) {
  const auto expect_error = [](const std::string& arguments, const std::string& message) {
    const Output refused = run(arguments);
    EXPECT_EQ(refused.status, 1) << refused.text();
    EXPECT_THAT(refused.text(), HasSubstr(message)) << arguments;
  };
  expect_error("--kernel /nonexistent", "No such file or directory");
  expect_error("--kernel /proc/self/exe", "not a kernel");
  const std::string kernel = find_kernel();
  if (kernel.empty()) GTEST_SKIP() << no_kernel;
  expect_error("--kernel " + kernel + " --node 4K", "no RAM where the kernel has to be");
  expect_error("--kernel " + kernel + " --node 64T", "no space");
  expect_error("--kernel " + kernel + " --node 4097", "multiple");
  expect_error("--kernel " + kernel + " --memory floppy", "floppy");
  expect_error("--kernel " + kernel + " --append " + std::string(2048, 'x'), "command line");
  expect_error("--kernel " + kernel + " --initrd /nonexistent", "No such file or directory");
  std::ofstream("initrd") << std::string(64 << 20, 'x');
  expect_error("--kernel " + kernel + " --node 96M --initrd initrd", "initrd does not fit");
  fs::remove("initrd");
}

}  // namespace
