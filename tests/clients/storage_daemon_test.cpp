// SPDX-License-Identifier: Apache-2.0
//
// VhostUserMemory against a back-end that nobody here wrote: qemu-storage-daemon serves a file as a
// vhost-user block device, in memory that VmMemory publishes, and that changes while it does.

#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

#include "clients/process.hpp"
#include "clients/qemu.hpp"
#include "virtio/driver.hpp"
#include "vmm/vhost_user_support.hpp"

namespace vmspace::test {
namespace {

using namespace std::chrono_literals;
using namespace literals;
using vmspace::test::Buffer;
using vmspace::test::Driver;

constexpr std::uint64_t sector = 512;

/// Requests of a front-end, beside those about memory.
enum Request : std::uint32_t {
  get_features = 1,
  set_features = 2,
  set_owner = 3,
  set_vring_num = 8,
  set_vring_addr = 9,
  set_vring_base = 10,
  set_vring_kick = 12,
  set_vring_call = 13,
  get_protocol_features = 15,
  set_protocol_features = 16,
  set_vring_enable = 18,
};

std::uint64_t ask(int socket, std::uint32_t request) {
  send_request(socket, request, {});
  const auto reply = VhostUserMessage::receive(socket, 10s);
  EXPECT_THAT(reply, IsOk());
  return reply && reply->is_reply() ? reply->number().value_or(0) : 0;
}

/// A block device's driver in our memory: the ring in the first region, buffers anywhere.
class Disk {
 public:
  Disk(int socket, const VmMemory& memory, const VhostUserMemory& listener)
      : driver_(128), kick_(::eventfd(0, EFD_CLOEXEC)), call_(::eventfd(0, EFD_CLOEXEC)) {
    driver_.memory = memory.map()->memory;
    const auto user_address = [&](GuestAddress where, std::uint64_t size) {
      const auto address = listener.user_address({where, size});
      EXPECT_THAT(address, IsOk());
      return address.value_or(0);
    };
    struct {
      std::uint32_t ring = 0, flags = 0;
      std::uint64_t descriptors, used, available, log = 0;
    } addresses{.descriptors = user_address(driver_.options.descriptors, 128 * 16),
                .used = user_address(driver_.options.used, 6 + 128 * 8),
                .available = user_address(driver_.options.available, 6 + 128 * 2)};
    send_request(socket, set_vring_num, bytes_of(std::uint32_t{0}, std::uint32_t{128}));
    send_request(socket, set_vring_base, bytes_of(std::uint32_t{0}, std::uint32_t{0}));
    send_request(socket, set_vring_addr, bytes_of(addresses));
    send_request(socket, set_vring_call, bytes_of(std::uint64_t{0}), {call_.value()});
    send_request(socket, set_vring_kick, bytes_of(std::uint64_t{0}), {kick_.value()});
    send_request(socket, set_vring_enable, bytes_of(std::uint32_t{0}, std::uint32_t{1}));
  }

  /// One request with the given data; gives its status.
  std::uint8_t request(bool is_write, std::uint64_t first_sector, Buffer data) {
    struct {
      Le32 type, reserved;
      Le64 sector;
    } header{is_write ? 1U : 0U, 0U, first_sector};
    const std::uint64_t header_at = Driver::data;
    const std::uint64_t status_at = Driver::data + sizeof header;
    VMSPACE_EXPECT_OK(memory().write(GuestAddress(header_at), header));
    VMSPACE_EXPECT_OK(memory().write(GuestAddress(status_at), std::uint8_t{0xff}));
    data.writable = !is_write;
    driver_.offer(std::array{Buffer{header_at, sizeof header}, data, Buffer{status_at, 1, true}});
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(kick_.value(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
    // By the used index: the first call may come without a reason.
    const auto end = steady_clock::now() + 20s;
    while (!driver_.take_used()) {
      if (steady_clock::now() > end) return 0xfe;
      std::this_thread::sleep_for(100us);
    }
    return memory().read<std::uint8_t>(GuestAddress(status_at)).value_or(0xfd);
  }

  void use(const VmMemory& memory) { driver_.memory = memory.map()->memory; }
  [[nodiscard]] const GuestMemory& memory() const { return driver_.memory; }

 private:
  Driver driver_;
  Descriptor kick_, call_;
};

TEST(StorageDaemon, ServesADiskInMemoryThatWePublish) {
  if (!has_program("qemu-storage-daemon")) {
    GTEST_SKIP() << "qemu-storage-daemon is not installed (bootstrap.sh clients)";
  }
  const ShortDirectory directory;
  const std::string image = directory / "disk";
  std::ofstream(image) << std::string(1_MiB, 'i');
  const std::string path = directory / "socket";
  Process daemon(
      {"qemu-storage-daemon", "--blockdev", "driver=file,node-name=disk,filename=" + image,
       "--export",
       "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=" +
           path});
  const Lines connection = connect_to(path, 20s);
  const int socket = connection.fd();
  ASSERT_GE(socket, 0) << daemon.output.all();

  constexpr std::uint64_t version_1 = std::uint64_t{1} << 32;
  constexpr std::uint64_t has_protocol_features = std::uint64_t{1} << 30;
  const std::uint64_t features = ask(socket, get_features);
  ASSERT_NE(features & version_1, 0U);
  ASSERT_NE(features & has_protocol_features, 0U);
  send_request(socket, set_owner, {});
  const std::uint64_t protocol =
      ask(socket, get_protocol_features) &
      (VhostUserFeature::reply_ack | VhostUserFeature::configure_mem_slots);
  send_request(socket, set_protocol_features, bytes_of(protocol));
  send_request(socket, set_features, bytes_of(version_1 | has_protocol_features));

  AddressSpaceBase space(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
  VMSPACE_ASSERT_OK(space.insert_region({.name = "ram",
                                         .base = GuestAddress(0),
                                         .size = 16_MiB,
                                         .backing = {.source = MemorySource::shmem}}));
  const auto memory = VmMemory::create(space);
  ASSERT_THAT(memory, IsOk());
  auto created = VhostUserMemory::create(socket, {.name = "disk", .protocol_features = protocol});
  ASSERT_THAT(created, IsOk());
  const std::shared_ptr<VhostUserMemory> listener = *std::move(created);
  VMSPACE_ASSERT_OK(memory->add_listener(listener));

  Disk disk(socket, *memory, *listener);
  const GuestAddress data(8_MiB);
  const auto holds = [&](GuestAddress where, std::byte value) {
    std::vector<std::byte> bytes(sector * 8);
    VMSPACE_EXPECT_OK(disk.memory().read_slice(where, bytes));
    return std::ranges::all_of(bytes, [&](std::byte byte) { return byte == value; });
  };
  EXPECT_EQ(disk.request(false, 0, {data.value(), sector * 8}), 0);
  EXPECT_TRUE(holds(data, std::byte{'i'}));
  VMSPACE_EXPECT_OK(disk.memory().fill({data, sector * 8}, std::byte{'w'}));
  EXPECT_EQ(disk.request(true, 64, {data.value(), sector * 8}), 0);

  if ((protocol & VhostUserFeature::configure_mem_slots) != 0) {
    const auto dimm = memory->plug({.name = "dimm",
                                    .base = GuestAddress(4_GiB),
                                    .size = 128_MiB,
                                    .backing = {.source = MemorySource::shmem}});
    ASSERT_THAT(dimm, IsOk());
    disk.use(*memory);
    const GuestAddress far(4_GiB + 64_MiB);
    EXPECT_EQ(disk.request(false, 64, {far.value(), sector * 8}), 0);
    EXPECT_TRUE(holds(far, std::byte{'w'})) << "what was written from the other region";
    disk.use(*memory);
    // Nothing here uses the old map any more.
    VMSPACE_EXPECT_OK(memory->unplug((*dimm)->shared_description(), 0s));
    EXPECT_FALSE(listener->is_gone());
    disk.use(*memory);
  }
  EXPECT_EQ(disk.request(false, 64, {data.value(), sector * 8}), 0);
  EXPECT_TRUE(holds(data, std::byte{'w'}));

  std::ifstream file(image);
  file.seekg(64 * sector);
  EXPECT_EQ(file.get(), 'w');
}

}  // namespace
}  // namespace vmspace::test
