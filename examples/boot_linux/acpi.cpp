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

/// "Fixed ACPI Description Table" (section 5.2.9) of a machine that has none of the hardware of ACPI.
Bytes fadt(GuestAddress dsdt) {
  Bytes table = header("FACP", 6);
  table.pad_to(276);
  constexpr std::uint16_t no_vga = 1 << 2, no_cmos_clock = 1 << 5;
  constexpr std::uint32_t hardware_reduced = 1 << 20;
  table.set(109, static_cast<std::uint16_t>(no_vga | no_cmos_clock));
  table.set(112, hardware_reduced);
  table.set(131, std::uint8_t{5});  // the minor version
  table.set(140, dsdt.value());
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

/// A package's length, and its contents (section 20.2.4); below 4 KiB.
Bytes package(std::uint8_t op, const Bytes& contents) {
  const std::size_t length = contents.size() + 2;
  Bytes made;
  made.add(op).add(static_cast<std::uint8_t>(0x40 | (length & 15)));
  return made.add(static_cast<std::uint8_t>(length >> 4)).add(contents);
}

/// "Differentiated System Description Table": where the device is, as Linux's virtio_mmio looks for
/// it. In ACPI's own language:
///
///   Scope (\_SB) { Device (VR00) {
///     Name (_HID, "LNRO0005")
///     Name (_UID, Zero)
///     Name (_CRS, ResourceTemplate () {
///       Memory32Fixed (ReadWrite, <base>, <size>)
///       Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { <interrupt> } }) } }
Bytes dsdt(const MmioDevice* device) {
  constexpr std::uint8_t scope = 0x10, extended = 0x5b, device_op = 0x82, name = 0x08, text = 0x0d,
                         buffer = 0x11, byte_number = 0x0a, zero = 0x00;
  Bytes table = header("DSDT", 2);
  if (device == nullptr) return finish(std::move(table));
  Bytes resources;
  resources.add(std::uint8_t{0x86}).add(std::uint16_t{9}).add(std::uint8_t{1});
  resources.add(static_cast<std::uint32_t>(device->base.value())).add(device->size);
  resources.add(std::uint8_t{0x89}).add(std::uint16_t{6}).add(std::uint8_t{1}).add(std::uint8_t{1});
  resources.add(device->interrupt).add(std::uint8_t{0x79}).add(std::uint8_t{0});
  Bytes sized;
  sized.add(byte_number).add(static_cast<std::uint8_t>(resources.size())).add(resources);
  Bytes contents;
  contents.add("VR00");
  contents.add(name).add("_HID").add(text).add("LNRO0005").add(std::uint8_t{0});
  contents.add(name).add("_UID").add(zero);
  contents.add(name).add("_CRS").add(package(buffer, sized));
  Bytes in_scope;
  in_scope.add("\\_SB_").add(extended).add(package(device_op, contents));
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
