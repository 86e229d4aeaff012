// SPDX-License-Identifier: Apache-2.0

#include "acpi.hpp"

#include <concepts>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

#include "serial_port.hpp"

namespace boot_linux {

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::Operand;
using vmspace::Result;

namespace {

/// Bytes of a table, least significant first.
class Bytes {
 public:
  template <std::integral Number>
  Bytes& add(Number value) {
    for (std::size_t i = 0; i < sizeof value; ++i)
      bytes_.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i)));
    return *this;
  }
  Bytes& add(std::string_view text) {
    for (const char letter : text)
      add(static_cast<std::uint8_t>(letter));
    return *this;
  }
  Bytes& add(const Bytes& other) {
    bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
    return *this;
  }
  Bytes& pad_to(std::size_t size) {
    bytes_.resize(size);
    return *this;
  }
  template <typename Number>
  void set(std::size_t offset, Number value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof value);
  }
  /// Makes the sum of the first `size` bytes 0.
  void set_checksum(std::size_t offset, std::size_t size) {
    unsigned sum = 0;
    for (const std::byte byte : std::span(bytes_).first(size))
      sum += std::to_integer<unsigned>(byte);
    bytes_[offset] = static_cast<std::byte>(0U - sum);
  }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  [[nodiscard]] std::span<const std::byte> view() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// A table's header (section 5.2.6); finish() completes it.
Bytes header(std::string_view signature, std::uint8_t revision) {
  Bytes table;
  table.add(signature).add(std::uint32_t{0}).add(revision).add(std::uint8_t{0});
  return table.add("VMSPAC")
      .add("BOOTLINX")
      .add(std::uint32_t{1})
      .add("VMSP")
      .add(std::uint32_t{1});
}
Bytes finish(Bytes table) {
  table.set(4, static_cast<std::uint32_t>(table.size()));
  table.set_checksum(9, table.size());
  return table;
}

/// "Fixed ACPI Description Table" (section 5.2.9) of a machine that has none of the hardware of ACPI,
/// but a port by which it is reset and switched off.
Bytes fadt(GuestAddress dsdt) {
  Bytes table = header("FACP", 6);
  table.pad_to(276);
  constexpr std::uint16_t no_vga = 1 << 2, no_cmos_clock = 1 << 5;
  constexpr std::uint32_t has_reset = 1 << 10, hardware_reduced = 1 << 20;
  const auto set_port = [&](std::size_t offset, std::uint16_t port) {
    constexpr std::uint8_t in_ports = 1, bits = 8, byte_access = 1;
    table.set(offset, in_ports);
    table.set(offset + 1, bits);
    table.set(offset + 3, byte_access);
    table.set(offset + 4, std::uint64_t{port});
  };
  table.set(109, static_cast<std::uint16_t>(no_vga | no_cmos_clock));
  table.set(112, has_reset | hardware_reduced);
  set_port(116, power_port);        // RESET_REG; the value for it is 0
  table.set(131, std::uint8_t{5});  // the minor version
  table.set(140, dsdt.value());
  set_port(244, power_port);      // SLEEP_CONTROL_REG
  set_port(256, power_port + 1);  // SLEEP_STATUS_REG, which a system that can sleep needs to have
  return finish(std::move(table));
}

/// "Multiple APIC Description Table" (section 5.2.12): a processor, and KVM's I/O APIC.
Bytes madt() {
  constexpr std::uint32_t local_apic = 0xfee0'0000, io_apic = 0xfec0'0000, is_enabled = 1;
  Bytes table = header("APIC", 5);
  table.add(local_apic).add(std::uint32_t{0});
  table.add(std::uint8_t{0}).add(std::uint8_t{8}).add(std::uint16_t{0}).add(is_enabled);
  table.add(std::uint8_t{1}).add(std::uint8_t{12}).add(std::uint16_t{0}).add(io_apic);
  table.add(std::uint32_t{0});  // its first interrupt
  return finish(std::move(table));
}

/// What `op` makes of `contents`, with their length before them (section 20.2.4); below 4 KiB.
Bytes package(std::uint8_t op, const Bytes& contents) {
  Bytes made;
  made.add(op);
  if (contents.size() < 63) {
    made.add(static_cast<std::uint8_t>(contents.size() + 1));
  } else {
    const std::size_t length = contents.size() + 2;
    made.add(static_cast<std::uint8_t>(0x40 | (length & 15)));
    made.add(static_cast<std::uint8_t>(length >> 4));
  }
  return made.add(contents);
}

/// An interrupt among a device's resources, and their end (section 6.4.3.6).
Bytes interrupt(bool is_edge, std::uint32_t number) {
  constexpr std::uint8_t consumer = 1, edge = 2;
  Bytes resource;
  resource.add(std::uint8_t{0x89}).add(std::uint16_t{6});
  resource.add(static_cast<std::uint8_t>(consumer | (is_edge ? edge : 0)));
  resource.add(std::uint8_t{1}).add(number);
  return resource.add(std::uint8_t{0x79}).add(std::uint8_t{0});
}

/// A device in the DSDT: its name, what drivers know it by, and where it is.
Bytes device(std::string_view id, const Bytes& hid, const Bytes& resources) {
  constexpr std::uint8_t extended = 0x5b, device_op = 0x82, name = 0x08, buffer = 0x11,
                         byte_number = 0x0a, zero = 0x00;
  Bytes sized;
  sized.add(byte_number).add(static_cast<std::uint8_t>(resources.size())).add(resources);
  Bytes contents;
  contents.add(id);
  contents.add(name).add("_HID").add(hid);
  contents.add(name).add("_UID").add(zero);
  contents.add(name).add("_CRS").add(package(buffer, sized));
  Bytes made;
  return made.add(extended).add(package(device_op, contents));
}

/// "Differentiated System Description Table": the state that switches the machine off, and where its
/// devices are, as Linux's drivers 8250_pnp and virtio_mmio look for them. A machine with reduced
/// hardware has no interrupts but those that it names here. In ACPI's own language:
///
///   Name (_S5, Package () { 5 })
///   Scope (_SB) {
///     Device (COM1) {
///       Name (_HID, EisaId ("PNP0501"))
///       Name (_UID, Zero)
///       Name (_CRS, ResourceTemplate () {
///         IO (Decode16, 0x3f8, 0x3f8, 0, 8)
///         Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 } }) }
///     Device (VR00) {
///       Name (_HID, "LNRO0005")
///       Name (_UID, Zero)
///       Name (_CRS, ResourceTemplate () {
///         Memory32Fixed (ReadWrite, <base>, <size>)
///         Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { <interrupt> } }) } }
Bytes dsdt(const MmioDevice* disk) {
  constexpr std::uint8_t scope = 0x10, name = 0x08, text = 0x0d, package_op = 0x12,
                         byte_number = 0x0a, double_number = 0x0c;
  Bytes state;
  state.add(std::uint8_t{1}).add(byte_number).add(std::uint8_t{5});  // one element
  Bytes table = header("DSDT", 2);
  table.add(name).add("_S5_").add(package(package_op, state));

  constexpr std::uint32_t pnp0501 = 0x0105'd041;
  Bytes serial_id, serial;
  serial_id.add(double_number).add(pnp0501);
  serial.add(std::uint8_t{0x47}).add(std::uint8_t{1}).add(SerialPort::base).add(SerialPort::base);
  serial.add(std::uint8_t{0}).add(std::uint8_t{SerialPort::registers});
  serial.add(interrupt(true, SerialPort::irq));
  Bytes in_scope;
  in_scope.add("_SB_").add(device("COM1", serial_id, serial));
  if (disk != nullptr) {
    Bytes virtio_id, virtio;
    virtio_id.add(text).add("LNRO0005").add(std::uint8_t{0});
    virtio.add(std::uint8_t{0x86}).add(std::uint16_t{9}).add(std::uint8_t{1});
    virtio.add(static_cast<std::uint32_t>(disk->base.value())).add(disk->size);
    virtio.add(interrupt(false, disk->interrupt));
    in_scope.add(device("VR00", virtio_id, virtio));
  }
  return finish(std::move(table.add(package(scope, in_scope))));
}

}  // namespace

Result<void> load_acpi(const vmspace::GuestMemory& memory, std::span<const std::byte> srat,
                       const MmioDevice* device) {
  constexpr GuestAddress xsdt_at{0xe'0040}, dsdt_at{0xe'0100}, fadt_at{0xe'0200}, madt_at{0xe'0400},
      srat_at{0xe'0500};
  if (srat.size() > 64_KiB) {
    return vmspace::fail({.code = vmspace::Errc::no_space,
                          .operation = "load_acpi",
                          .first = Operand::size(srat.size()),
                          .second = Operand::size(64_KiB),
                          .reason = "the SRAT has too many entries for this example"});
  }
  Bytes rsdp;
  rsdp.add("RSD PTR ").add(std::uint8_t{0}).add("VMSPAC").add(std::uint8_t{2});
  rsdp.add(std::uint32_t{0}).add(std::uint32_t{36}).add(xsdt_at.value()).add(std::uint32_t{0});
  rsdp.set_checksum(8, 20);
  rsdp.set_checksum(32, 36);
  Bytes xsdt = header("XSDT", 1);
  for (const GuestAddress table : {fadt_at, madt_at, srat_at})
    xsdt.add(table.value());
  VMSPACE_TRY(memory.write_slice(rsdp_at, rsdp.view()));
  VMSPACE_TRY(memory.write_slice(xsdt_at, finish(std::move(xsdt)).view()));
  VMSPACE_TRY(memory.write_slice(dsdt_at, dsdt(device).view()));
  VMSPACE_TRY(memory.write_slice(fadt_at, fadt(dsdt_at).view()));
  VMSPACE_TRY(memory.write_slice(madt_at, madt().view()));
  return memory.write_slice(srat_at, srat);
}

}  // namespace boot_linux
