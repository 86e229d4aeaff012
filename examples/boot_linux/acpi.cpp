// SPDX-License-Identifier: Apache-2.0

#include "acpi.hpp"

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/memory/endian.hpp"

namespace boot_linux {

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::Le32;
using vmspace::Le64;
using vmspace::Operand;
using vmspace::Result;

namespace {

constexpr GuestAddress xsdt_at{0xe'0040};
constexpr GuestAddress srat_at{0xe'0100};

using Text4 = std::array<char, 4>;
using Text6 = std::array<char, 6>;
using Text8 = std::array<char, 8>;

struct [[gnu::packed]] Rsdp {
  Text8 signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};
  std::uint8_t checksum = 0;  // of the first 20 bytes
  Text6 oem = {'V', 'M', 'S', 'P', 'A', 'C'};
  std::uint8_t revision = 2;
  std::uint32_t rsdt = 0;
  std::uint32_t length = 36;
  std::uint64_t xsdt = xsdt_at.value();
  std::uint8_t whole_checksum = 0;
  std::array<std::uint8_t, 3> reserved = {};
};
static_assert(sizeof(Rsdp) == 36);

struct [[gnu::packed]] Xsdt {
  Text4 signature = {'X', 'S', 'D', 'T'};
  std::uint32_t length = 44;
  std::uint8_t revision = 1;
  std::uint8_t checksum = 0;
  Text6 oem = {'V', 'M', 'S', 'P', 'A', 'C'};
  Text8 oem_table = {'B', 'O', 'O', 'T', 'L', 'I', 'N', 'X'};
  std::uint32_t oem_revision = 1;
  Text4 creator = {'V', 'M', 'S', 'P'};
  std::uint32_t creator_revision = 1;
  std::uint64_t srat = srat_at.value();
};
static_assert(sizeof(Xsdt) == 44);

/// What makes the sum of the bytes 0.
std::uint8_t checksum(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (const std::byte byte : bytes)
    sum += std::to_integer<unsigned>(byte);
  return static_cast<std::uint8_t>(0U - sum);
}

}  // namespace

Result<void> load_acpi(const vmspace::GuestMemory& memory, std::span<const std::byte> srat) {
  if (srat.size() > 64_KiB) {
    return vmspace::fail({.code = vmspace::Errc::no_space,
                          .operation = "load_acpi",
                          .first = Operand::size(srat.size()),
                          .second = Operand::size(64_KiB),
                          .reason = "the SRAT has too many entries for this example"});
  }
  Rsdp rsdp;
  const auto rsdp_bytes = std::as_bytes(std::span(&rsdp, 1));
  rsdp.checksum = checksum(rsdp_bytes.first(20));
  rsdp.whole_checksum = checksum(rsdp_bytes);
  Xsdt xsdt;
  const auto xsdt_bytes = std::as_bytes(std::span(&xsdt, 1));
  xsdt.checksum = checksum(xsdt_bytes);
  VMSPACE_TRY(memory.write_slice(rsdp_at, rsdp_bytes));
  VMSPACE_TRY(memory.write_slice(xsdt_at, xsdt_bytes));
  return memory.write_slice(srat_at, srat);
}

}  // namespace boot_linux
