// SPDX-License-Identifier: Apache-2.0

#include "guest.hpp"

#include <span>

#include "vmspace/base/literals.hpp"

// guest.S
extern "C" const std::byte guest_code_begin[];
extern "C" const std::byte guest_code_end[];

namespace tiny_vm {

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::Result;

namespace {

constexpr GuestAddress page_map{0x2000};          // PML4: one entry, 512 GiB
constexpr GuestAddress page_directories{0x3000};  // PDPT: one entry a GiB
constexpr GuestAddress first_directory{0x4000};   // one directory a GiB, of 2 MiB pages
constexpr std::uint64_t mapped_gibibytes = 16;
constexpr GuestAddress code{0x10'0000};

using Table = std::array<std::uint64_t, 512>;

/// Guest virtual addresses are guest physical ones, up to 16 GiB. Pages of 2 MiB, because not every
/// processor has those of 1 GiB.
Result<void> write_page_tables(const vmspace::GuestMemory& memory) {
  constexpr std::uint64_t present = 1 << 0, writable = 1 << 1, user = 1 << 2, large = 1 << 7;
  constexpr std::uint64_t open = present | writable | user;
  Table top{page_directories.value() | open};
  VMSPACE_TRY(memory.write(page_map, top));
  Table directories{};
  for (std::uint64_t gib = 0; gib < mapped_gibibytes; ++gib) {
    const GuestAddress where{first_directory.value() + gib * sizeof(Table)};
    directories[gib] = where.value() | open;
    Table pages;
    for (std::uint64_t i = 0; i < pages.size(); ++i) {
      pages[i] = (gib * 1_GiB + i * 2_MiB) | open | large;
    }
    VMSPACE_TRY(memory.write(where, pages));
  }
  return memory.write(page_directories, directories);
}

}  // namespace

Pattern make_pattern(std::uint64_t seed) {
  Pattern pattern;
  for (std::uint64_t& word : pattern)
    word = seed++;
  return pattern;
}

Pattern inverted(const Pattern& pattern) {
  Pattern result;
  for (std::size_t i = 0; i < pattern.size(); ++i)
    result[i] = ~pattern[i];
  return result;
}

Result<Start> load_guest(const vmspace::GuestMemory& memory, const BootParams& params) {
  VMSPACE_TRY(memory.write(boot_params, params));
  return load_code(memory, std::span(guest_code_begin, guest_code_end));
}

Result<Start> load_code(const vmspace::GuestMemory& memory,
                        std::span<const std::byte> instructions) {
  VMSPACE_TRY(write_page_tables(memory));
  VMSPACE_TRY(memory.write_slice(code, instructions));
  return Start{.code = code, .page_tables = page_map, .argument = boot_params};
}

}  // namespace tiny_vm
