// SPDX-License-Identifier: Apache-2.0
//
// vhost_user_blk as QEMU's device, with a test in the place of the guest's driver: what a driver may
// do wrong, memory that comes and goes, and a migration that has what the device wrote.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/process.hpp"
#include "clients/qemu.hpp"
#include "clients/qtest.hpp"

namespace vmspace::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr std::uint64_t header_at = 0x20'0000;
constexpr std::uint64_t status_at = header_at + 0x100;
constexpr std::uint64_t data_at = 0x30'0000;
constexpr std::uint16_t has_next = 1, writable = 2, indirect = 4;
constexpr std::size_t sector = 512;

class VhostUserBlk : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_program("qemu-system-x86_64")) {
      GTEST_SKIP() << "qemu-system-x86_64 is not installed (bootstrap.sh clients)";
    }
    std::ofstream(image()) << std::string(1 << 20, 'i');
    device_ = Process(
        {VMSPACE_VHOST_USER_BLK, "--socket", directory_ / "device", "--image", image(), "--once"});
    ASSERT_TRUE(device_.output.find("waiting at", 20s)) << device_.output.all();
    // Firmware that halts: `cli; hlt; jmp` at the reset vector.
    std::string firmware(64 << 10, '\xf4');
    firmware.replace(0xfff0, 4, "\xfa\xf4\xeb\xfd");
    std::ofstream(directory_ / "firmware", std::ios::binary) << firmware;
    qemu_ = start_qemu(
        directory_, "",
        {"-bios", directory_ / "firmware", "-qtest",
         "unix:" + (directory_ / "qtest") + ",server=on,wait=off", "-qtest-log", "/dev/null",
         "-device",
         "vhost-user-blk-pci,chardev=device,num-queues=1,queue-size=64,addr=4,event_idx=off"});
    machine_ = std::make_unique<Qtest>(directory_ / "qtest");
    monitor_ = std::make_unique<Monitor>(directory_ / "monitor");
    disk_ = std::make_unique<VirtioPci>(*machine_, 4);
  }

  [[nodiscard]] std::string image() const { return directory_ / "disk"; }
  Qtest& machine() { return *machine_; }
  VirtioPci& disk() { return *disk_; }
  Monitor& monitor() { return *monitor_; }
  Process& device() { return device_; }
  Process& qemu() { return qemu_; }
  std::string path(const std::string& name) { return directory_ / name; }

  void write_header(bool is_write, std::uint64_t first_sector) {
    machine().write32(header_at, is_write ? 1 : 0);
    machine().write32(header_at + 4, 0);
    machine().write64(header_at + 8, first_sector);
    machine().write8(status_at, 0xff);
  }
  /// One request of a page; gives its status, 0xfe when there is no answer.
  unsigned request(bool is_write, std::uint64_t first_sector, std::uint64_t where,
                   std::uint32_t length = 4096, std::chrono::milliseconds limit = 10s) {
    write_header(is_write, first_sector);
    disk().describe(VirtioPci::descriptors, 0, header_at, 16, has_next, 1);
    disk().describe(VirtioPci::descriptors, 1, where, length,
                    static_cast<std::uint16_t>(has_next | (is_write ? 0 : writable)), 2);
    disk().describe(VirtioPci::descriptors, 2, status_at, 1, writable, 0);
    disk().offer(0);
    if (!disk().take_used(limit)) return 0xfe;
    return machine().read8(status_at);
  }
  [[nodiscard]] std::string disk_contents(std::size_t offset, std::size_t size) const {
    std::ifstream file(image());
    file.seekg(static_cast<std::streamoff>(offset));
    std::string contents(size, '\0');
    file.read(contents.data(), static_cast<std::streamsize>(size));
    return contents;
  }

 private:
  const ShortDirectory directory_;
  Process device_{{"true"}};
  Process qemu_{{"true"}};
  std::unique_ptr<Qtest> machine_;
  std::unique_ptr<Monitor> monitor_;
  std::unique_ptr<VirtioPci> disk_;
};

TEST_F(VhostUserBlk, ReadsAndWritesTheMemoryThatQemuSees) {
  disk().start();
  EXPECT_EQ(machine().read32(disk().device_config()), (1U << 20) / sector) << "its capacity";
  EXPECT_EQ(request(false, 0, data_at), 0U);
  EXPECT_EQ(machine().read(data_at, 4096), std::string(4096, 'i'));
  const std::string text = "what the guest has written, and our GuestMemory reads";
  machine().fill(data_at, 4096, 'w');
  machine().write(data_at, text);
  EXPECT_EQ(request(true, 8, data_at), 0U);
  EXPECT_EQ(disk_contents(8 * sector, text.size()), text);
  EXPECT_EQ(request(false, 1 << 20, data_at), 1U) << "past the end of the disk: an I/O error";
}

TEST_F(VhostUserBlk, SeesMemoryComeAndGo) {
  disk().start();
  monitor().expect(
      R"({"execute": "object-add", "arguments": {"qom-type": "memory-backend-memfd", "id": "more", "size": 134217728, "share": true}})");
  monitor().expect(
      R"({"execute": "device_add", "arguments": {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}})");
  ASSERT_TRUE(device().output.find("MiB of memory in 4 regions", 20s)) << device().output.all();
  constexpr std::uint64_t dimm = std::uint64_t{4} << 30;
  EXPECT_EQ(request(false, 0, dimm + 4096), 0U);
  EXPECT_EQ(machine().read(dimm + 4096, 4096), std::string(4096, 'i'));

  monitor().expect(R"({"execute": "device_del", "arguments": {"id": "dimm"}})");
  machine().out32(0xa00, 0);  // ACPI's registers of memory hotplug: which slot, and its ejection
  machine().out8(0xa14, 8);
  ASSERT_TRUE(device().output.find("MiB of memory in 3 regions", 20s)) << device().output.all();
  EXPECT_EQ(request(false, 0, data_at), 0U) << "the ring goes on";
  EXPECT_EQ(request(false, 0, dimm + 4096, 4096, 500ms), 0xfeU)
      << "a buffer where no memory is any more";
  EXPECT_TRUE(device().output.find("the ring is stopped", 20s)) << device().output.all();
}

TEST_F(VhostUserBlk, RefusesEveryRingThatBreaksTheRulesAndGoesOnWithTheNext) {
  constexpr std::uint64_t table = 0x28'0000;
  struct Case {
    const char* name;
    std::uint32_t features;
    std::function<void(VirtioPci&)> offer;
  };
  constexpr std::uint32_t with_indirect = 1U << 28;
  const Case cases[] = {
      {"a buffer that wraps", 0,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, ~std::uint64_t{0} - 7, 16, 0, 0);
         disk.offer(0);
       }},
      {"lengths that sum above 2^32", 0,
       [](VirtioPci& disk) {
         for (std::uint16_t i = 0; i < 3; ++i)
           disk.describe(VirtioPci::descriptors, i, data_at, 0xffff'ffff, has_next,
                         static_cast<std::uint16_t>(i + 1));
         disk.describe(VirtioPci::descriptors, 3, status_at, 1, writable, 0);
         disk.offer(0);
       }},
      {"a loop", 0,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, header_at, 16, has_next, 1);
         disk.describe(VirtioPci::descriptors, 1, data_at, 16, has_next, 0);
         disk.offer(0);
       }},
      {"a next descriptor past the end", 0,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, header_at, 16, has_next, VirtioPci::size);
         disk.offer(0);
       }},
      {"a head past the end", 0, [](VirtioPci& disk) { disk.offer(0xffff); }},
      {"an index too far ahead", 0,
       [](VirtioPci& disk) { disk.set_available(VirtioPci::size + 1); }},
      {"a writable buffer before a readable one", 0,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, data_at, 16, has_next | writable, 1);
         disk.describe(VirtioPci::descriptors, 1, header_at, 16, 0, 0);
         disk.offer(0);
       }},
      {"indirect that was not agreed on", 0,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, table, 48, indirect, 0);
         disk.offer(0);
       }},
      {"an indirect table in an indirect table", with_indirect,
       [](VirtioPci& disk) {
         disk.describe(table, 0, table, 16, indirect, 0);
         disk.describe(VirtioPci::descriptors, 0, table, 16, indirect, 0);
         disk.offer(0);
       }},
      {"an indirect table of half a descriptor", with_indirect,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, table, 24, indirect, 0);
         disk.offer(0);
       }},
      {"a request without room for its status", 0,
       [](VirtioPci& disk) {
         disk.describe(VirtioPci::descriptors, 0, header_at, 16, 0, 0);
         disk.offer(0);
       }},
  };
  for (const Case& wrong : cases) {
    SCOPED_TRACE(wrong.name);
    disk().start(wrong.features);
    wrong.offer(disk());
    EXPECT_TRUE(device().output.find("the ring is stopped", 20s)) << device().output.all();
    disk().start();  // reset by its driver, it works
    EXPECT_EQ(request(false, 0, data_at), 0U);
  }
}

TEST_F(VhostUserBlk, HasInTheMigrationWhatItWroteDuringIt) {
  disk().start();
  // Pages that are sent before: the first pass has them all, and takes a while.
  constexpr std::uint64_t filler = 0x40'0000;
  machine().fill(filler, 24 << 20, 0x5a);
  const std::string before = "what was there before the migration";
  const std::string after(100, 'i');  // what the disk has
  machine().write(data_at, before);

  monitor().expect(
      R"({"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 4194304}})");
  const std::string stream = path("stream");
  monitor().expect(R"({"execute": "migrate", "arguments": {"uri": "exec:cat > )" + stream +
                   R"("}})");
  const auto sent = [&] {
    std::ifstream file(stream, std::ios::binary);
    std::ostringstream all;
    all << file.rdbuf();
    return all.str();
  };
  ASSERT_TRUE(device().output.find("logged", 20s)) << device().output.all();
  for (const auto end = steady_clock::now() + 20s; sent().find(before) == std::string::npos;) {
    ASSERT_LT(steady_clock::now(), end) << "the page is not sent";
    std::this_thread::sleep_for(50ms);
  }
  // Written by the device alone: QEMU knows it by the device's log.
  ASSERT_EQ(request(false, 0, data_at), 0U);
  EXPECT_EQ(sent().find(after), std::string::npos);
  monitor().expect(
      R"({"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1073741824}})");
  bool is_complete = false;
  for (const auto end = steady_clock::now() + 60s; !is_complete && steady_clock::now() < end;) {
    const std::string status = monitor().command(R"({"execute": "query-migrate"})");
    ASSERT_EQ(status.find("failed"), std::string::npos) << status;
    is_complete = status.find("completed") != std::string::npos;
    std::this_thread::sleep_for(50ms);
  }
  EXPECT_TRUE(is_complete);
  EXPECT_NE(sent().find(after), std::string::npos) << "the page that the device wrote is missing";
}

TEST_F(VhostUserBlk, EndsWhenQemuIsKilled) {
  disk().start();
  EXPECT_EQ(request(false, 0, data_at), 0U);
  write_header(false, 0);
  disk().offer(0);  // in the middle of a request
  qemu().kill();
  EXPECT_EQ(device().wait(20s), 0) << device().output.all();
  EXPECT_TRUE(device().output.find("disconnected", 5s)) << device().output.all();
}

TEST(VhostUserBlkProcess, RefusesASocketThatSpeaksAnotherProtocol) {
  const ShortDirectory directory;
  std::ofstream(directory / "disk") << std::string(4096, 'i');
  Process device(
      {VMSPACE_VHOST_USER_BLK, "--socket", directory / "device", "--image", directory / "disk"});
  ASSERT_TRUE(device.output.find("waiting at", 20s)) << device.output.all();
  for (const std::string& noise :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(5000, '\xff'), std::string(3, 'x')}) {
    {
      const Lines peer = connect_to(directory / "device", 20s);
      EXPECT_EQ(::send(peer.fd(), noise.data(), noise.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(noise.size()));
      ::shutdown(peer.fd(), SHUT_WR);
      EXPECT_TRUE(device.output.find("disconnected", 20s)) << device.output.all();
    }
  }
  EXPECT_FALSE(device.wait(0s)) << "it waits for the next";
}

/// A message of vhost-user without an answer: its header, of a version, and two numbers.
std::string message_of(std::uint32_t request, std::uint32_t version, std::uint32_t first,
                       std::uint32_t second) {
  const std::array words{request, version, std::uint32_t{8}, first, second};
  return {reinterpret_cast<const char*>(words.data()), sizeof words};
}

TEST(VhostUserBlkProcess, RefusesPeersOfOtherVersionsAndNumbersThatNoRingHas) {
  const ShortDirectory directory;
  std::ofstream(directory / "disk") << std::string(4096, 'i');
  Process device(
      {VMSPACE_VHOST_USER_BLK, "--socket", directory / "device", "--image", directory / "disk"});
  ASSERT_TRUE(device.output.find("waiting at", 20s)) << device.output.all();
  constexpr std::uint32_t set_features = 2, set_num = 8, set_base = 10;
  for (const auto& [refused, reason] :
       {std::pair(message_of(set_num, 2, 0, 256), "version"),
        std::pair(message_of(set_num, 1, 1, 256), "one ring"),
        std::pair(message_of(set_num, 1, 0, 0x1'0100), "a ring has at most 32768 entries"),
        std::pair(message_of(set_base, 1, 0, 0x1'0000), "an index has 16 bits"),
        std::pair(message_of(set_features, 1, 1, 0), "not offered"),
        std::pair(message_of(200, 1, 0, 0), "not offered")}) {
    const Lines peer = connect_to(directory / "device", 20s);
    EXPECT_EQ(::send(peer.fd(), refused.data(), refused.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(refused.size()));
    const auto said = device.output.find(reason, 20s);
    EXPECT_TRUE(said) << reason << ": " << device.output.all();
    EXPECT_TRUE(device.output.find("disconnected", 20s)) << device.output.all();
  }
  EXPECT_FALSE(device.wait(0s)) << "it waits for the next";
}

}  // namespace
}  // namespace vmspace::test
