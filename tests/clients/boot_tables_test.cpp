// SPDX-License-Identifier: Apache-2.0
//
// boot_linux's tables and its devices, as a guest's code finds them: ACPI's tables from the RSDP on, the
// registers of the virtio-mmio device with a driver of ours behind them, and those of the serial port.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/boot.hpp"
#include "vmspace/testing.hpp"

#include "acpi.hpp"
#include "serial_port.hpp"
#include "virtio/driver.hpp"
#include "virtio_mmio.hpp"

namespace boot_linux {
namespace {

using vmspace::GuestAddress;
using vmspace::GuestMemory;
using vmspace::Le32;
using vmspace::Le64;
using vmspace::test::Buffer;
using vmspace::test::Driver;

std::string bytes_at(const GuestMemory& memory, std::uint64_t where, std::uint64_t size) {
  std::string bytes(size, '\0');
  VMSPACE_EXPECT_OK(
      memory.read_slice(GuestAddress(where), std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

unsigned sum(const std::string& bytes) {
  return std::accumulate(
             bytes.begin(), bytes.end(), 0U,
             [](unsigned total, char byte) { return total + static_cast<unsigned char>(byte); }) &
         0xff;
}

std::uint64_t number(const std::string& bytes, std::size_t offset, std::size_t size) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + offset, size);
  return value;
}

/// A table by its address, its checksum checked.
std::string table_at(const GuestMemory& memory, std::uint64_t where) {
  const std::string table = bytes_at(memory, where, number(bytes_at(memory, where, 8), 4, 4));
  EXPECT_EQ(sum(table), 0U) << table.substr(0, 4);
  return table;
}

TEST(Acpi, LeadsFromTheRsdpToEveryTable) {
  const auto memory =
      GuestMemory::create(std::array{vmspace::GuestRange{GuestAddress(0), std::uint64_t{1} << 20}});
  ASSERT_THAT(memory, vmspace::IsOk());
  const auto srat = vmspace::srat({{.apic_id = 0, .node = 0}}, {});
  const MmioDevice device{.base = GuestAddress(0xc000'0000), .size = 0x1000, .interrupt = 5};
  VMSPACE_ASSERT_OK(load_acpi(*memory, *srat, &device));

  const std::string rsdp = bytes_at(*memory, rsdp_at.value(), 36);
  EXPECT_EQ(rsdp.substr(0, 8), "RSD PTR ");
  EXPECT_EQ(sum(rsdp.substr(0, 20)), 0U);
  EXPECT_EQ(sum(rsdp), 0U);
  const std::string xsdt = table_at(*memory, number(rsdp, 24, 8));
  std::map<std::string, std::string> tables;
  for (std::size_t at = 36; at < xsdt.size(); at += 8) {
    const std::string table = table_at(*memory, number(xsdt, at, 8));
    tables[table.substr(0, 4)] = table;
  }
  ASSERT_EQ(tables.size(), 3U);
  EXPECT_EQ(tables["SRAT"].size(), srat->size());
  EXPECT_EQ(tables["APIC"].size(), 44U + 8 + 12);
  const std::string dsdt = table_at(*memory, number(tables["FACP"], 140, 8));
  EXPECT_EQ(dsdt.substr(0, 4), "DSDT");
  // What ACPICA's compiler makes of the text beside dsdt().
  constexpr unsigned char code[] = {
      0x08, '_',  'S',  '5',  '_',  0x12, 4,    1,    0x0a, 5,        // Name
      0x10, 0x45, 0x07, '_',  'S',  'B',  '_',                        // Scope
      0x5b, 0x82, 0x31, 'C',  'O',  'M',  '1',                        // Device
      0x08, '_',  'H',  'I',  'D',  0x0c, 0x41, 0xd0, 0x05, 0x01,     // Name
      0x08, '_',  'U',  'I',  'D',  0x00,                             // Name
      0x08, '_',  'C',  'R',  'S',  0x11, 0x16, 0x0a, 0x13,           // Name, of a buffer
      0x47, 1,    0xf8, 0x03, 0xf8, 0x03, 0,    8,                    // IO
      0x89, 6,    0,    3,    1,    4,    0,    0,    0,    0x79, 0,  // Interrupt, end
      0x5b, 0x82, 0x3a, 'V',  'R',  '0',  '0',                        // Device
      0x08, '_',  'H',  'I',  'D',  0x0d, 'L',  'N',  'R',  'O',  '0', '0', '0', '5', 0,  // Name
      0x08, '_',  'U',  'I',  'D',  0x00,                                                 // Name
      0x08, '_',  'C',  'R',  'S',  0x11, 0x1a, 0x0a, 0x17,                // Name, of a buffer
      0x86, 9,    0,    1,    0,    0,    0,    0xc0, 0,    0x10, 0,   0,  // Memory32Fixed
      0x89, 6,    0,    1,    1,    5,    0,    0,    0,    0x79, 0};      // Interrupt, end
  EXPECT_EQ(dsdt.substr(36), std::string(std::begin(code), std::end(code)));
  for (const std::size_t reset_or_sleep : {116U, 244U})
    EXPECT_EQ(number(tables["FACP"], reset_or_sleep + 4, 8), power_port);

  VMSPACE_ASSERT_OK(load_acpi(*memory, *srat, nullptr));
  EXPECT_EQ(table_at(*memory, number(tables["FACP"], 140, 8)).size(), 103U) << "no disk";
  EXPECT_THAT(load_acpi(*memory, std::vector<std::byte>(65537), nullptr),
              vmspace::HasError(vmspace::Errc::no_space));
}

/// The device, and a driver that has its registers and its ring.
class VirtioMmio : public ::testing::Test {
 protected:
  static constexpr std::uint64_t sectors = 16;

  VirtioMmio() : disk_(::memfd_create("disk", MFD_CLOEXEC)) {
    const std::string contents(sectors * 512, 'i');
    EXPECT_EQ(::write(disk_, contents.data(), contents.size()),
              static_cast<ssize_t>(contents.size()));
  }
  ~VirtioMmio() override { ::close(disk_); }

  std::uint32_t get(std::uint64_t offset) {
    std::uint32_t value = 0;
    device.read(offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  void set(std::uint64_t offset, std::uint32_t value) {
    device.write(offset, std::as_bytes(std::span(&value, 1)));
  }
  void set_address(std::uint64_t offset, GuestAddress where) {
    set(offset, static_cast<std::uint32_t>(where.value()));
    set(offset + 4, static_cast<std::uint32_t>(where.value() >> 32));
  }
  /// As the specification has it (section 3.1.1).
  void start() {
    set(0x070, 0);
    set(0x070, 3);
    set(0x024, 1);
    set(0x020, 1);  // VIRTIO_F_VERSION_1
    set(0x070, 3 | 8);
    EXPECT_EQ(get(0x070) & 8, 8U);
    set(0x030, 0);
    set(0x038, driver.options.size);
    set_address(0x080, driver.options.descriptors);
    set_address(0x090, driver.options.available);
    set_address(0x0a0, driver.options.used);
    set(0x044, 1);
    EXPECT_EQ(get(0x044), 1U);
    set(0x070, 3 | 8 | 4);
  }
  std::uint8_t request(std::uint32_t type, std::uint64_t sector, Buffer data) {
    struct {
      Le32 type, reserved;
      Le64 sector;
    } header{type, 0U, sector};
    VMSPACE_EXPECT_OK(driver.memory.write(GuestAddress(Driver::data), header));
    driver.offer(std::array{Buffer{Driver::data, 16}, data, Buffer{Driver::data + 16, 1, true}});
    set(0x050, 0);
    EXPECT_TRUE(driver.take_used());
    return driver.memory.read<std::uint8_t>(GuestAddress(Driver::data + 16)).value_or(0xff);
  }

 private:
  int disk_;

 protected:
  Driver driver{16};
  bool interrupt = false;
  VirtioMmioBlk device{driver.memory, disk_, sectors, [this](bool level) { interrupt = level; }};
};

TEST_F(VirtioMmio, IsABlockDeviceOfVersion2) {
  EXPECT_EQ(get(0x000), 0x7472'6976U);
  EXPECT_EQ(get(0x004), 2U);
  EXPECT_EQ(get(0x008), 2U);
  EXPECT_EQ(get(0x034), 256U);
  set(0x014, 1);
  EXPECT_EQ(get(0x010), 1U) << "VIRTIO_F_VERSION_1, and nothing else above bit 31";
  EXPECT_EQ(get(0x100), sectors);
  set(0x030, 1);
  EXPECT_EQ(get(0x034), 0U) << "one queue";
  EXPECT_EQ(get(0x0b0), 0xffff'ffffU) << "no shared memory";
  EXPECT_EQ(get(0x0b4), 0xffff'ffffU);
}

TEST_F(VirtioMmio, AnswersRequestsAndInterrupts) {
  start();
  constexpr std::uint64_t buffer = Driver::data + 0x1000;
  EXPECT_EQ(request(0, 0, {buffer, 512, true}), 0);
  EXPECT_EQ(bytes_at(driver.memory, buffer, 512), std::string(512, 'i'));
  EXPECT_TRUE(interrupt);
  EXPECT_EQ(get(0x060), 1U);
  set(0x064, 1);
  EXPECT_FALSE(interrupt);
  VMSPACE_EXPECT_OK(driver.memory.fill({GuestAddress(buffer), 512}, std::byte{'w'}));
  EXPECT_EQ(request(1, 3, {buffer, 512}), 0);
  EXPECT_EQ(request(0, 3, {buffer + 512, 512, true}), 0);
  EXPECT_EQ(bytes_at(driver.memory, buffer + 512, 512), std::string(512, 'w'));
  EXPECT_EQ(request(0, sectors, {buffer, 512, true}), 1) << "past the end";
}

TEST_F(VirtioMmio, StopsAtARingThatBreaksTheRulesUntilItIsReset) {
  start();
  driver.offer(0xffff);
  set(0x050, 0);
  EXPECT_EQ(get(0x070) & 64, 64U) << "DEVICE_NEEDS_RESET";
  EXPECT_EQ(get(0x060) & 2, 2U);
  EXPECT_EQ(get(0x044), 0U);
  set(0x050, 0);  // nothing happens
  driver = Driver(16);
  start();
  EXPECT_EQ(request(0, 0, {Driver::data + 0x1000, 512, true}), 0);
}

TEST_F(VirtioMmio, RefusesFeaturesAndQueuesThatItDoesNotHave) {
  set(0x024, 0);
  set(0x020, 1);  // of another device
  set(0x070, 3 | 8);
  EXPECT_EQ(get(0x070) & 8, 0U);
  set(0x070, 0);
  set(0x070, 3 | 8);
  EXPECT_EQ(get(0x070) & 8, 0U) << "without VIRTIO_F_VERSION_1";
  set(0x070, 0);
  set(0x038, 100);  // not a power of two
  set(0x044, 1);
  EXPECT_EQ(get(0x044), 0U);
  set(0x038, 512);
  set(0x044, 1);
  EXPECT_EQ(get(0x044), 0U);
  set(0x050, 0);
  // Accesses of other sizes do nothing, and read zeros.
  std::array<std::byte, 1> byte{std::byte{0xff}};
  device.read(0, byte);
  EXPECT_EQ(byte[0], std::byte{0});
  device.write(0x070, byte);
  EXPECT_EQ(get(0x070), 0U);
}

/// A serial port, what it has printed, and its interrupt.
class Serial : public ::testing::Test {
 protected:
  // Registers and bits as linux/serial_reg.h has them.
  static constexpr unsigned tx = 0, ier = 1, iir = 2, lcr = 3, lsr = 5;
  static constexpr std::uint8_t thri = 2, no_interrupt = 1, dlab = 0x80;

  std::string printed;
  bool interrupt = false;
  SerialPort port{[this](char letter) { printed += letter; },
                  [this](bool level) { interrupt = level; }};
};

TEST_F(Serial, AsksForMoreByItsInterrupt) {
  port.write(tx, 'a');
  EXPECT_FALSE(interrupt) << "not enabled";
  port.write(ier, thri);
  EXPECT_TRUE(interrupt) << "the transmitter is empty";
  EXPECT_EQ(port.read(iir) & 0x0f, thri);
  EXPECT_FALSE(interrupt) << "reading what it was acknowledges it";
  EXPECT_EQ(port.read(iir) & 0x0f, no_interrupt);
  port.write(tx, 'b');
  EXPECT_TRUE(interrupt);
  EXPECT_EQ(port.read(lsr) & 0x60, 0x60) << "always ready";
  port.write(ier, 0);
  EXPECT_FALSE(interrupt);
  EXPECT_EQ(printed, "ab");
}

TEST_F(Serial, PrintsNothingOfTheDivisor) {
  port.write(lcr, dlab | 3);
  port.write(tx, 'x');
  port.write(ier, thri);
  EXPECT_EQ(port.read(tx), 'x');
  EXPECT_EQ(port.read(ier), thri);
  port.write(lcr, 3);
  EXPECT_EQ(port.read(ier), 0);
  EXPECT_EQ(printed, "");
  EXPECT_FALSE(interrupt);
}

}  // namespace
}  // namespace boot_linux
