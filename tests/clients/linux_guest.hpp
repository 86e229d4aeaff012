// SPDX-License-Identifier: Apache-2.0
//
// What the tests of boot_linux have in common: an initrd for its guest, and what must be in the log of
// a guest that sees our memory, and has used our disk.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <regex>
#include <string>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/qemu.hpp"

namespace vmspace::test {

/// What boot_linux and its guest have printed, line by line.
struct Log {
  std::vector<std::string> lines;

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

/// A range of addresses from the first to the last, and what it is or belongs to.
struct Stretch {
  std::uint64_t first, last;
  std::string what;

  bool operator==(const Stretch&) const = default;
  friend void PrintTo(const Stretch& stretch, std::ostream* out) {
    *out << std::hex << stretch.first << '-' << stretch.last << ' ' << stretch.what;
  }
};

/// Of each line that matches, the stretch in its groups: first and last address, and what is there; or
/// that first.
inline std::vector<Stretch> find_stretches(const Log& log, const std::string& pattern,
                                           bool is_what_first = false) {
  std::vector<Stretch> found;
  for (auto groups : log.find(pattern)) {
    if (is_what_first) std::rotate(groups.begin(), groups.begin() + 1, groups.end());
    found.push_back({std::stoull(groups[0], nullptr, 16), std::stoull(groups[1], nullptr, 16),
                     groups.size() > 2 ? groups[2] : ""});
  }
  return found;
}

/// The pieces of RAM in the map that boot_linux prints, and their nodes.
inline std::vector<Stretch> pieces_of(const Log& log) {
  return find_stretches(log, "^([0-9a-f]{12})-([0-9a-f]{12}) +ram of node ([0-9]+)");
}

/// In the kernel's own log: its e820 map, and the nodes that have its memory, are what boot_linux says.
inline void expect_kernel_sees_our_map(const Log& log) {
  const auto ours =
      find_stretches(log, R"(^boot_linux: e820 \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] (\w+))");
  auto theirs = find_stretches(log, R"(BIOS-e820: \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] (\w+))");
  for (Stretch& stretch : theirs) {
    if (stretch.what == "usable") stretch.what = "ram";
  }
  EXPECT_THAT(ours, testing::Not(testing::IsEmpty()));
  EXPECT_EQ(theirs, ours);
}

/// In the kernel's own log: all of the memory is there, each piece in its node.
inline void expect_kernel_sees_our_memory(const Log& log, std::vector<std::uint64_t> nodes) {
  EXPECT_EQ(find_stretches(log, R"(SRAT: Node ([0-9]+) PXM [0-9]+ \[mem 0x(\w+)-0x(\w+)\])", true),
            pieces_of(log));
  EXPECT_EQ(log.find("Initmem setup node ([0-9]+) ").size(), nodes.size());
  // Of what the nodes have, the kernel leaves out what lies below 1 MiB and is not RAM.
  const std::uint64_t bytes = std::accumulate(nodes.begin(), nodes.end(), std::uint64_t{0});
  const auto total = log.find("Memory: [0-9]+K/([0-9]+)K available");
  ASSERT_EQ(total.size(), 1U) << "the kernel did not get to its memory";
  const std::uint64_t seen = std::stoull(total[0][0]) << 10;
  EXPECT_LE(seen, bytes);
  EXPECT_GE(seen, bytes - (1 << 20));
}

/// Writes an initrd whose first program tells what it finds of memory, makes a file system on the disk,
/// uses it, and ends with `ending`: poweroff or reboot.
inline void write_initrd(const fs::path& path, const DebianKernel& kernel,
                         const std::string& ending) {
  const std::string init = R"sh(#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
$b mount -t proc none /proc
$b mount -t sysfs none /sys
for module in virtio_ring virtio virtio_mmio virtio_blk; do
  $b insmod /lib/$module.ko
done
echo 1 > /proc/sys/kernel/printk  # the lines below are this program's alone
$b sed -n 's/^\([0-9a-f].* : \)/guest: iomem \1/p' /proc/iomem
echo "guest: block size $($b cat /sys/devices/system/memory/block_size_bytes)"
cd /sys/devices/system/node
for node in node*; do
  echo "guest: $node has" $node/memory[0-9]*
done
echo "guest: found $($b md5sum < /dev/vda)"
$b mke2fs /dev/vda > /dev/null
$b mount -t ext4 /dev/vda /mnt && echo "guest: mounted"
$b dd if=/dev/urandom of=/mnt/file bs=64k count=32 2> /dev/null
$b sync
before=$($b md5sum < /mnt/file)
echo 3 > /proc/sys/vm/drop_caches
after=$($b md5sum < /mnt/file)
[ "$before" = "$after" ] && echo "guest: the file is right"
$b umount /mnt
echo 3 > /proc/sys/vm/drop_caches
echo "guest: left $($b md5sum < /dev/vda)"
$b awk '/virtio0|ttyS0/ { print "guest: " $2 " interrupts of " $NF }' /proc/interrupts
echo "guest: done"
$b sleep 1  # the line has not all gone out
)sh" + ("$b " + ending + " -f\n");
  Archive initrd;
  for (const char* name : {"bin", "dev", "proc", "sys", "mnt", "lib"})
    initrd.add_directory(name);
  initrd.add_file("bin/busybox", "/bin/busybox");
  initrd.add_program("init", init);
  for (const std::string name : {"virtio_ring", "virtio", "virtio_mmio"})
    initrd.add_file("lib/" + name + ".ko", kernel.modules / "drivers/virtio" / (name + ".ko"));
  initrd.add_file("lib/virtio_blk.ko", kernel.modules / "drivers/block/virtio_blk.ko");
  initrd.write(path);
}

/// The guest's first program has run to its end: it saw our memory where it is, its disk was `before`
/// and is now `after` (what md5sum prints of the file), and the devices' interrupts arrived.
inline void expect_init_used_our_machine(const Log& log, const std::string& before,
                                         const std::string& after) {
  EXPECT_EQ(log.find("^guest: done").size(), 1U);
  EXPECT_EQ(log.find("^boot_linux: the guest shut down").size(), 1U);

  // The kernel keeps the first page to itself.
  auto ram = find_stretches(log, R"(^boot_linux: e820 \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] ram)");
  if (!ram.empty()) ram.front().first = 0x1000;
  EXPECT_EQ(find_stretches(log, "^guest: iomem ([0-9a-f]+)-([0-9a-f]+) : System RAM"), ram);
  const auto disk = log.find("^boot_linux: disk at 0x([0-9a-f]+), ");
  ASSERT_EQ(disk.size(), 1U);
  EXPECT_EQ(log.find("^guest: iomem " + disk[0][0] + "-.*LNRO0005").size(), 1U);

  // A node has each block of memory of which it has a piece.
  const auto block_size = log.find("^guest: block size ([0-9a-f]+)");
  ASSERT_EQ(block_size.size(), 1U);
  const std::uint64_t size = std::stoull(block_size[0][0], nullptr, 16);
  std::vector<std::vector<std::string>> blocks;
  for (const Stretch& piece : pieces_of(log)) {
    for (std::uint64_t block = piece.first / size; block <= piece.last / size; ++block)
      blocks.push_back({piece.what, std::to_string(block)});
  }
  std::vector<std::vector<std::string>> seen;
  for (const auto& node : log.find("^guest: node([0-9]+) has (.*)")) {
    std::istringstream words(node[1]);
    for (std::string word; words >> word;)
      seen.push_back({node[0], word.substr(word.rfind("memory") + std::string("memory").size())});
  }
  EXPECT_THAT(seen, testing::UnorderedElementsAreArray(blocks));

  using testing::ElementsAre;
  EXPECT_THAT(log.find("^guest: found (.*)"), ElementsAre(ElementsAre(before)));
  EXPECT_EQ(log.find("^guest: mounted").size(), 1U);
  EXPECT_EQ(log.find("^guest: the file is right").size(), 1U);
  EXPECT_THAT(log.find("^guest: left (.*)"), ElementsAre(ElementsAre(after)));
  for (const char* device : {"virtio0", "ttyS0"}) {
    const auto interrupts = log.find("^guest: ([0-9]+) interrupts of " + std::string(device));
    ASSERT_EQ(interrupts.size(), 1U) << device;
    EXPECT_NE(interrupts[0][0], "0") << device;
  }
}

}  // namespace vmspace::test
