// SPDX-License-Identifier: Apache-2.0
//
// A whole Linux, in a QEMU that emulates its processor, has vhost_user_blk for its disk: it makes a
// file system, and writes, reads back and compares in rounds, while memory is added and removed, and
// the device's process is killed and started again. In the end the disk is what the guest says it is.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/process.hpp"
#include "clients/qemu.hpp"

namespace vmspace::test {
namespace {

using namespace std::chrono_literals;

constexpr int rounds = 12;

/// The guest's first program. It loads the drivers, and prints a line for each thing that it has done.
const std::string init = R"sh(#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
$b mount -t proc none /proc
$b mount -t sysfs none /sys
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
  $b insmod /lib/$module.ko
done
$b mke2fs /dev/vda > /dev/null
$b mount -t ext4 /dev/vda /mnt && echo "guest: mounted"
round=1
while [ $round -le )sh" + std::to_string(rounds) +
                         R"sh( ]; do
  $b dd if=/dev/urandom of=/mnt/$round bs=64k count=32 2> /dev/null
  $b sync
  before=$($b md5sum < /mnt/$round)
  echo 3 > /proc/sys/vm/drop_caches
  after=$($b md5sum < /mnt/$round)
  [ "$before" = "$after" ] && echo "guest: round $round is right, $($b grep -c . /proc/iomem) ranges"
  round=$(($round + 1))
done
$b umount /mnt && echo "guest: disk $($b md5sum < /dev/vda)"
$b poweroff -f
)sh";

TEST(VhostUserBlkLinux, UsesOurDiskWhileMemoryComesAndGoesAndTheDeviceIsKilled) {
  const std::string missing = missing_for_linux({"qemu-system-x86_64", "md5sum"});
  if (!missing.empty()) GTEST_SKIP() << missing;
  const auto kernel = DebianKernel::find();

  const ShortDirectory directory;
  Archive initrd;
  for (const char* name : {"bin", "dev", "proc", "sys", "mnt", "lib"})
    initrd.add_directory(name);
  initrd.add_file("bin/busybox", "/bin/busybox");
  initrd.add_program("init", init);
  for (const std::string name :
       {"virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"}) {
    initrd.add_file("lib/" + name + ".ko", kernel.modules / "drivers/virtio" / (name + ".ko"));
  }
  initrd.add_file("lib/virtio_blk.ko", kernel.modules / "drivers/block/virtio_blk.ko");
  initrd.write(directory / "initrd");

  const std::string image = directory / "disk";
  std::ofstream(image).put('\0');
  fs::resize_file(image, 64 << 20);
  const std::string socket = directory / "device";
  const auto start_device = [&] {
    return Process({VMSPACE_VHOST_USER_BLK, "--socket", socket, "--image", image});
  };
  Process device = start_device();
  ASSERT_TRUE(device.output.find("waiting at", 20s)) << device.output.all();

  Process qemu = start_qemu(directory, ",reconnect=1",
                            {"-kernel", kernel.image, "-initrd", directory / "initrd", "-append",
                             "console=ttyS0 panic=-1 quiet no_timer_check", "-no-reboot", "-serial",
                             "stdio", "-device", "vhost-user-blk-pci,chardev=device,num-queues=1"});
  Monitor monitor(directory / "monitor");
  ASSERT_TRUE(qemu.output.find("guest: mounted", 120s)) << qemu.output.all();

  for (int round = 1; round <= rounds; ++round) {
    ASSERT_TRUE(qemu.output.find("guest: round " + std::to_string(round) + " is right", 60s))
        << qemu.output.all() << device.output.all();
    switch (round) {
      case 2:
        monitor.expect(
            R"({"execute": "object-add", "arguments": {"qom-type": "memory-backend-memfd", "id": "more", "size": 134217728, "share": true}})");
        monitor.expect(
            R"({"execute": "device_add", "arguments": {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}})");
        EXPECT_TRUE(device.output.find(" 384 MiB of memory", 20s)) << device.output.all();
        break;
      case 5:
        // The guest has not put it to use, and lets it go.
        monitor.expect(R"({"execute": "device_del", "arguments": {"id": "dimm"}})");
        EXPECT_TRUE(monitor.wait_for_event("DEVICE_DELETED", 30s)) << qemu.output.all();
        EXPECT_TRUE(device.output.find(" 256 MiB of memory", 20s)) << device.output.all();
        break;
      case 7:
        device.kill();  // in the middle of the next round
        device = start_device();
        EXPECT_TRUE(device.output.find("connected", 30s)) << device.output.all();
        break;
      default: break;
    }
  }
  const auto disk = qemu.output.find("guest: disk ", 60s);
  ASSERT_TRUE(disk) << qemu.output.all();
  EXPECT_EQ(qemu.wait(30s), 0) << qemu.output.all();
  EXPECT_TRUE(device.output.find("disconnected", 20s)) << device.output.all();
  EXPECT_THAT(device.output.all(), testing::Not(testing::HasSubstr("stopped")));
  device.kill();
  EXPECT_EQ(disk->substr(std::string("guest: disk ").size()), md5_of(image));
}

}  // namespace
}  // namespace vmspace::test
