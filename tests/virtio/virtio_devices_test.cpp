// SPDX-License-Identifier: Apache-2.0
//
// The block and the network device of examples/, served to drivers that divide their buffers as they
// like, and to hostile ones.

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "virtio/driver.hpp"
#include "virtio/packed_driver.hpp"
#include "virtio_blk.hpp"
#include "virtio_net.hpp"

namespace vmspace::virtio_devices_test {
namespace {

using ::testing::Optional;
using namespace test;
using example::BlkDevice;
using example::BlkHeader;
using example::NetDevice;
using example::NetHeader;

constexpr std::uint64_t data = Driver::data;
constexpr std::uint64_t sectors = 16;

using Drivers = ::testing::Types<Driver, PackedDriver>;

template <typename AnyDriver>
class VirtioBlk : public ::testing::Test {
 protected:
  VirtioBlk() {
    EXPECT_EQ(ftruncate(disk, sectors * 512), 0);
    contents_of_disk = pattern(sectors * 512, 3);
    EXPECT_EQ(pwrite(disk, contents_of_disk.data(), contents_of_disk.size(), 0),
              static_cast<ssize_t>(contents_of_disk.size()));
  }
  ~VirtioBlk() override { close(disk); }

  /// A header, `size` bytes at data + 0x1000, and a status at data + 0x100, one descriptor each.
  void request(std::uint32_t type, std::uint64_t sector, std::uint32_t size) {
    VMSPACE_EXPECT_OK(
        driver.memory.write(at(data), BlkHeader{.type = type, .reserved = 0, .sector = sector}));
    VMSPACE_EXPECT_OK(driver.memory.write(at(data + 0x100), std::uint8_t{0xff}));
    driver.offer(std::vector<Buffer>{
        {data, 16}, {data + 0x1000, size, type != BlkHeader::out}, {data + 0x100, 1, true}});
  }
  std::uint8_t status() { return *driver.memory.template read<std::uint8_t>(at(data + 0x100)); }

  int disk = memfd_create("disk", MFD_CLOEXEC);
  std::vector<std::byte> contents_of_disk;
  AnyDriver driver{8};
  typename AnyDriver::Queue queue = driver.queue();
  BlkDevice device{disk, sectors};
};
TYPED_TEST_SUITE(VirtioBlk, Drivers);

TYPED_TEST(VirtioBlk, ReadsAndWritesSectors) {
  this->request(BlkHeader::in, 3, 1024);
  ASSERT_THAT(this->device.serve(this->driver.memory, this->queue), IsOkAndHolds(true));
  EXPECT_EQ(this->status(), 0);
  EXPECT_THAT(this->driver.take_used(), Optional(Used{.id = 0, .length = 1025}));
  EXPECT_EQ(contents(this->driver.memory, data + 0x1000, 1024),
            std::vector<std::byte>(this->contents_of_disk.begin() + 3 * 512,
                                   this->contents_of_disk.begin() + 5 * 512));
  const auto bytes = pattern(512, 77);
  ASSERT_THAT(this->driver.memory.write_slice(at(data + 0x1000), bytes), IsOk());
  this->request(BlkHeader::out, 15, 512);
  ASSERT_THAT(this->device.serve(this->driver.memory, this->queue), IsOkAndHolds(true));
  EXPECT_EQ(this->status(), 0);
  std::vector<std::byte> now(512);
  ASSERT_EQ(pread(this->disk, now.data(), now.size(), 15 * 512), 512);
  EXPECT_EQ(now, bytes);
}

TYPED_TEST(VirtioBlk, TakesARequestInWhateverPieces) {
  ASSERT_THAT(this->driver.memory.write(at(data), BlkHeader{.type = 0, .reserved = 0, .sector = 1}),
              IsOk());
  // The header in 7 and 9 bytes; the status as the last byte of the second piece of data.
  this->driver.offer(std::vector<Buffer>{
      {data, 7}, {data + 7, 9}, {data + 0x2000, 500, true}, {data + 0x1000, 13, true}});
  ASSERT_THAT(this->device.serve(this->driver.memory, this->queue), IsOkAndHolds(true));
  EXPECT_EQ(contents(this->driver.memory, data + 0x2000, 500),
            std::vector<std::byte>(this->contents_of_disk.begin() + 512,
                                   this->contents_of_disk.begin() + 1012));
  EXPECT_EQ(*this->driver.memory.template read<std::uint8_t>(at(data + 0x1000 + 12)), 0);
  EXPECT_THAT(this->driver.take_used(), Optional(Used{.id = 0, .length = 513}));
}

TYPED_TEST(VirtioBlk, SaysWhatItCanNotDo) {
  for (const auto& [type, sector, size, expected] : {std::tuple{BlkHeader::in, sectors, 512U, 1},
                                                     {BlkHeader::in, sectors - 1, 1024U, 1},
                                                     {BlkHeader::in, top, 512U, 1},
                                                     {BlkHeader::out, top / 512 + 1, 512U, 1},
                                                     {BlkHeader::in, std::uint64_t{0}, 100U, 1},
                                                     {99U, std::uint64_t{0}, 512U, 2}}) {
    this->request(type, sector, size);
    ASSERT_THAT(this->device.serve(this->driver.memory, this->queue), IsOk());
    EXPECT_EQ(this->status(), expected) << type << " " << sector;
  }
}

TYPED_TEST(VirtioBlk, RefusesRequestsWithoutAHeaderOrAStatus) {
  this->driver.offer(std::vector<Buffer>{{data, 15}});
  EXPECT_THAT(this->device.serve(this->driver.memory, this->queue), HasError(Errc::out_of_bounds));
  EXPECT_THAT(this->device.serve(this->driver.memory, this->queue), IsOk())
      << "the bad one is still out";
}

template <typename AnyDriver>
class VirtioNet : public ::testing::Test {};
TYPED_TEST_SUITE(VirtioNet, Drivers);

TYPED_TEST(VirtioNet, MovesOnePacketARequest) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends), 0);
  NetDevice device(ends[0]);
  TypeParam transmit(8);
  auto queue = transmit.queue();
  const auto packet = pattern(100, 9);
  ASSERT_THAT(transmit.memory.write_slice(at(data + 12), packet), IsOk());
  transmit.offer(std::vector<Buffer>{{data, 40}, {data + 40, 72}});
  ASSERT_THAT(device.send(transmit.memory, queue), IsOkAndHolds(true));
  std::vector<std::byte> got(200);
  ASSERT_EQ(recv(ends[1], got.data(), got.size(), 0), 100);
  got.resize(100);
  EXPECT_EQ(got, packet);

  TypeParam receive(8);
  queue = receive.queue();
  receive.offer(std::vector<Buffer>{{data, 12, true}, {data + 0x1000, 1500, true}});
  EXPECT_THAT(device.receive(receive.memory, queue), IsOk()) << "no packet yet";
  ASSERT_EQ(send(ends[1], packet.data(), packet.size(), 0), 100);
  ASSERT_EQ(send(ends[1], packet.data(), 50, 0), 50);
  ASSERT_THAT(device.receive(receive.memory, queue), IsOk());
  EXPECT_THAT(receive.take_used(), Optional(Used{.id = 0, .length = 112}));
  EXPECT_EQ(receive.take_used(), std::nullopt) << "there was one buffer";
  EXPECT_EQ(contents(receive.memory, data + 0x1000, 100), packet);
  EXPECT_EQ(receive.memory.template read<NetHeader>(at(data))->buffers, 1);
  close(ends[0]);
  close(ends[1]);
}

// Whatever a driver writes, and while the device looks, what comes is a request or an error.
template <typename AnyDriver>
class HostileDriver : public ::testing::Test {};
TYPED_TEST_SUITE(HostileDriver, Drivers);

/// Writes something anywhere into a queue.
void scribble(Driver& driver, std::minstd_rand& random) {
  const auto index = static_cast<std::uint16_t>(random() % 17);
  const std::uint64_t begin = driver.options.descriptors.value();
  const std::uint64_t address =
      random() % 4 == 0 ? begin + random() % 256 : data + random() % 0x2000;
  driver.describe(index, address, static_cast<std::uint32_t>(random() % 600),
                  static_cast<std::uint16_t>(random() % 8),
                  static_cast<std::uint16_t>(random() % 17));
  static_cast<void>(driver.memory.write(
      at(driver.options.available.value() + 4 + random() % 16 * 2), Le16(index)));
  driver.set_available_index(
      static_cast<std::uint16_t>(driver.available + static_cast<std::uint16_t>(random() % 3)));
}
void scribble(PackedDriver& driver, std::minstd_rand& random) {
  const std::uint64_t begin = driver.options.descriptors.value();
  const std::uint64_t address =
      random() % 4 == 0 ? begin + random() % 256 : data + random() % 0x2000;
  const auto lap = static_cast<std::uint16_t>(random() % 8 == 0 ? random() % 2 << 15 : 0x8000);
  driver.describe(static_cast<std::uint16_t>(lap | random() % 16), address,
                  static_cast<std::uint32_t>(random() % 600),
                  static_cast<std::uint16_t>(random() % 8), static_cast<std::uint16_t>(random()));
  driver.set_event(static_cast<std::uint16_t>(random()), static_cast<std::uint16_t>(random()));
}

/// A queue of a device that was reset: it begins where the driver is.
SplitQueue reset_queue(const Driver& driver) {
  const std::uint16_t index = *driver.memory.load<Le16>(at(driver.options.available.value() + 2),
                                                        std::memory_order_acquire);
  return driver.queue({.next_available = index, .next_used = index});
}
PackedQueue reset_queue(const PackedDriver& driver) {
  return driver.queue();
}

TYPED_TEST(HostileDriver, ChangesEverythingWhileItIsRead) {
  TypeParam driver(16, true, true);
  const int disk = memfd_create("disk", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(disk, sectors * 512), 0);
  std::atomic<bool> done = false;
  std::thread guest([&] {
    std::minstd_rand random(1);
    while (!done.load(std::memory_order_relaxed))
      scribble(driver, random);
  });
  BlkDevice device(disk, sectors);
  auto queue = driver.queue();
  int served = 0;
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    const auto result = device.serve(driver.memory, queue);
    ++(result ? served : refused);
    if (!result) queue = reset_queue(driver);
    if (i % 64 == 0) std::this_thread::yield();
  }
  done = true;
  guest.join();
  EXPECT_EQ(served + refused, 20000);
  close(disk);
}

}  // namespace
}  // namespace vmspace::virtio_devices_test
