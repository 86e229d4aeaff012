// SPDX-License-Identifier: Apache-2.0

#include "load_linux.hpp"

#include <asm/bootparam.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/memory/endian.hpp"

namespace boot_linux {

using namespace vmspace::literals;
using vmspace::AllocPolicy;
using vmspace::E820Entry;
using vmspace::E820Type;
using vmspace::Errc;
using vmspace::Error;
using vmspace::fail;
using vmspace::GuestAddress;
using vmspace::GuestMemory;
using vmspace::GuestRange;
using vmspace::IntervalTree;
using vmspace::Le32;
using vmspace::Le64;
using vmspace::Operand;
using vmspace::Range;
using vmspace::Result;

namespace {

constexpr const char* operation = "load_linux";
constexpr GuestAddress start_info_at{0x6000};
constexpr GuestAddress module_list_at{0x6800};
constexpr GuestAddress memory_list_at{0x7000};
constexpr GuestAddress page_tables_at{0x9000};
constexpr GuestAddress command_line_at{0x2'0000};
constexpr GuestAddress reset_vector_at{0xf'fff0};
constexpr std::uint64_t longest_command_line = 2047;  // COMMAND_LINE_SIZE of x86, less the null
constexpr std::uint64_t initrd_limit = 2_GiB;         // initrd_addr_max of a bzImage

// xen/interface/hvm/start_info.h
struct StartInfo {
  Le32 magic;
  Le32 version;
  Le32 flags;
  Le32 modules;
  Le64 module_list;
  Le64 command_line;
  Le64 rsdp;
  Le64 memory_list;
  Le32 memory_entries;
  Le32 reserved;
};
static_assert(sizeof(StartInfo) == 56);
struct Module {
  Le64 where;
  Le64 size;
  Le64 command_line;
  Le64 reserved;
};
struct MemoryEntry {
  Le64 where;
  Le64 size;
  Le32 type;
  Le32 reserved;
};

/// The guest's RAM, of which what is loaded takes its part.
Result<IntervalTree<>> find_ram(std::span<const E820Entry> e820) {
  IntervalTree<> ram;
  for (const E820Entry& entry : e820) {
    if (entry.type != E820Type::ram) continue;
    const Range range = VMSPACE_TRY(Range::from_base_size(entry.base.value(), entry.size));
    VMSPACE_TRY(ram.insert(range));
  }
  return ram;
}

Result<void> load_kernel(const GuestMemory& memory, const Boot& boot, IntervalTree<>& ram) {
  for (const Segment& segment : boot.kernel.segments()) {
    const Range range = VMSPACE_TRY(Range::from_base_size(segment.where.value(), segment.size));
    if (const auto taken = ram.allocate_at(range); !taken) {
      Error error = taken.error().in(operation);
      error.reason = "the guest has no RAM where the kernel has to be";
      return fail(error);
    }
    // The rest of the segment is zeros, as fresh memory is.
    VMSPACE_TRY(memory.write_slice(segment.where, segment.bytes));
  }
  return {};
}

/// As high as a kernel takes it, so that nothing that grows upwards meets it.
Result<GuestRange> load_initrd(const GuestMemory& memory, const Boot& boot, IntervalTree<>& ram) {
  if (boot.initrd.empty()) return GuestRange{};
  const auto taken = ram.allocate({.size = boot.initrd.size(),
                                   .min = boot.kernel.end().value(),
                                   .max = initrd_limit - 1,
                                   .align = 4_KiB,
                                   .policy = AllocPolicy::last_match});
  if (!taken) {
    Error error = taken.error().in(operation);
    error.reason = "the initrd does not fit between the kernel and the end of the RAM below 2 GiB";
    return fail(error);
  }
  const GuestRange place{GuestAddress(taken->min()), taken->size()};
  VMSPACE_TRY(memory.write_slice(place.base, boot.initrd));
  return place;
}

Result<void> load_command_line(const GuestMemory& memory, std::string_view text) {
  if (text.size() > longest_command_line) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::size(text.size()),
                 .second = Operand::size(longest_command_line),
                 .reason = "Linux cuts longer command lines"});
  }
  // The null behind it is there already.
  return memory.write_slice(command_line_at, std::as_bytes(std::span(text)));
}

/// Where a PC's firmware begins, and Linux jumps in real mode to restart a machine with reduced hardware
/// and without EFI.
Result<void> load_reset_vector(const GuestMemory& memory) {
  constexpr std::array<std::uint8_t, 5> code = {0xba, power_port & 0xff, power_port >> 8,  // mov dx
                                                0xee,   // out dx, al
                                                0xf4};  // hlt
  return memory.write(reset_vector_at, code);
}

Result<Entry> prepare_pvh(const GuestMemory& memory, const Boot& boot, GuestRange initrd) {
  for (std::size_t i = 0; i < boot.e820.size(); ++i) {
    const E820Entry& entry = boot.e820[i];
    VMSPACE_TRY(memory.write(GuestAddress(memory_list_at.value() + i * sizeof(MemoryEntry)),
                             MemoryEntry{.where = entry.base.value(),
                                         .size = entry.size,
                                         .type = static_cast<std::uint32_t>(entry.type),
                                         .reserved = 0}));
  }
  VMSPACE_TRY(memory.write(
      module_list_at,
      Module{.where = initrd.base.value(), .size = initrd.size, .command_line = 0, .reserved = 0}));
  VMSPACE_TRY(memory.write(start_info_at,
                           StartInfo{.magic = 0x336e'c578,
                                     .version = 1,
                                     .flags = 0,
                                     .modules = initrd.size != 0 ? 1U : 0U,
                                     .module_list = module_list_at.value(),
                                     .command_line = command_line_at.value(),
                                     .rsdp = rsdp_at.value(),
                                     .memory_list = memory_list_at.value(),
                                     .memory_entries = static_cast<std::uint32_t>(boot.e820.size()),
                                     .reserved = 0}));
  return Entry{.mode = Entry::Mode::protected_32,
               .code = *boot.kernel.pvh_entry(),
               .argument = start_info_at,
               .page_tables = {}};
}

/// Each of the first 4 GiB of addresses to itself, in pages of 2 MiB.
Result<void> write_page_tables(const GuestMemory& memory) {
  using Table = std::array<std::uint64_t, 512>;
  constexpr std::uint64_t present = 1 << 0, writable = 1 << 1, large = 1 << 7;
  constexpr std::uint64_t open = present | writable;
  const auto table_at = [](std::uint64_t i) {
    return GuestAddress(page_tables_at.value() + i * sizeof(Table));
  };
  VMSPACE_TRY(memory.write(table_at(0), Table{table_at(1).value() | open}));
  Table directories{};
  for (std::uint64_t gib = 0; gib < 4; ++gib) {
    directories[gib] = table_at(2 + gib).value() | open;
    Table pages;
    for (std::uint64_t i = 0; i < pages.size(); ++i)
      pages[i] = (gib * 1_GiB + i * 2_MiB) | open | large;
    VMSPACE_TRY(memory.write(table_at(2 + gib), pages));
  }
  return memory.write(table_at(1), directories);
}

Result<Entry> prepare_64_bit(const GuestMemory& memory, const Boot& boot, GuestRange initrd) {
  boot_params params{};
  params.hdr.type_of_loader = 0xff;
  params.hdr.boot_flag = 0xaa55;
  params.hdr.header = 0x5372'6448;  // "HdrS"
  params.hdr.cmd_line_ptr = static_cast<std::uint32_t>(command_line_at.value());
  params.hdr.cmdline_size = static_cast<std::uint32_t>(boot.command_line.size());
  params.hdr.ramdisk_image = static_cast<std::uint32_t>(initrd.base.value());
  params.hdr.ramdisk_size = static_cast<std::uint32_t>(initrd.size);
  params.acpi_rsdp_addr = rsdp_at.value();
  const std::size_t entries = std::min(boot.e820.size(), std::size(params.e820_table));
  params.e820_entries = static_cast<std::uint8_t>(entries);
  for (std::size_t i = 0; i < entries; ++i) {
    params.e820_table[i] = {.addr = boot.e820[i].base.value(),
                            .size = boot.e820[i].size,
                            .type = static_cast<std::uint32_t>(boot.e820[i].type)};
  }
  VMSPACE_TRY(memory.write_slice(start_info_at, std::as_bytes(std::span(&params, 1))));
  VMSPACE_TRY(write_page_tables(memory));
  return Entry{.mode = Entry::Mode::long_64,
               .code = boot.kernel.entry(),
               .argument = start_info_at,
               .page_tables = page_tables_at};
}

}  // namespace

Result<Entry> load_linux(const GuestMemory& memory, const Boot& boot) {
  IntervalTree<> ram = VMSPACE_TRY(find_ram(boot.e820));
  VMSPACE_TRY(load_kernel(memory, boot, ram));
  const GuestRange initrd = VMSPACE_TRY(load_initrd(memory, boot, ram));
  VMSPACE_TRY(load_command_line(memory, boot.command_line));
  VMSPACE_TRY(load_acpi(memory, boot.srat, boot.device));
  VMSPACE_TRY(load_reset_vector(memory));
  return boot.use_pvh && boot.kernel.pvh_entry() ? prepare_pvh(memory, boot, initrd)
                                                 : prepare_64_bit(memory, boot, initrd);
}

}  // namespace boot_linux
