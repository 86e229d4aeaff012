// SPDX-License-Identifier: Apache-2.0

#include "kernel_image.hpp"

#include <asm/bootparam.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include <elf.h>

#include "decompress.hpp"
#include "read_file.hpp"

namespace boot_linux {

using vmspace::Errc;
using vmspace::fail;
using vmspace::GuestAddress;
using vmspace::Operand;
using vmspace::Result;

namespace {

constexpr const char* operation = "KernelImage::read";
constexpr std::uint64_t largest_kernel = std::uint64_t{1} << 30;

auto corrupt(const char* reason, Operand first = {}) {
  return fail({.code = Errc::corrupt, .operation = operation, .first = first, .reason = reason});
}

/// The structure that lies at an offset of the file.
template <typename T>
Result<T> structure_at(std::span<const std::byte> file, std::uint64_t offset, const char* reason) {
  if (offset > file.size() || file.size() - offset < sizeof(T)) return corrupt(reason);
  T value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

bool is_elf(std::span<const std::byte> file) {
  return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

/// The compressed kernel within a bzImage.
Result<std::span<const std::byte>> payload_of(std::span<const std::byte> file) {
  constexpr std::uint64_t header_offset = offsetof(boot_params, hdr);
  const auto header =
      VMSPACE_TRY(structure_at<setup_header>(file, header_offset, "too short to be a kernel"));
  constexpr std::uint32_t magic = 0x5372'6448;  // "HdrS"
  constexpr std::uint16_t first_with_payload = 0x0208;
  if (header.header != magic) return corrupt("neither a bzImage nor an ELF file");
  if (header.version < first_with_payload) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = Operand::number(header.version),
                 .reason = "the boot protocol must be 2.08 (0x208, Linux 2.6.26) or newer"});
  }
  constexpr std::uint64_t sector = 512;
  const std::uint64_t setup_sectors = header.setup_sects == 0 ? 4 : header.setup_sects;
  const std::uint64_t begin = (setup_sectors + 1) * sector + header.payload_offset;
  if (begin > file.size() || header.payload_length > file.size() - begin) {
    return corrupt("the file ends before its compressed kernel does",
                   Operand::span(begin, header.payload_length));
  }
  return file.subspan(begin, header.payload_length);
}

/// The 32-bit entry that a note of Xen's names, if there is one.
Result<std::optional<GuestAddress>> find_pvh_entry(std::span<const std::byte> notes) {
  constexpr std::uint32_t phys32_entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
  constexpr const char* truncated = "a note reaches past the end of its segment";
  const auto padded = [](std::uint64_t size) { return (size + 3) / 4 * 4; };
  while (!notes.empty()) {
    const auto note = VMSPACE_TRY(structure_at<Elf64_Nhdr>(notes, 0, truncated));
    const std::uint64_t name_size = padded(note.n_namesz);
    const std::uint64_t size = sizeof note + name_size + padded(note.n_descsz);
    if (size > notes.size()) return corrupt(truncated);
    const bool is_xen =
        note.n_namesz == 4 && std::memcmp(notes.data() + sizeof note, "Xen", 4) == 0;
    if (is_xen && note.n_type == phys32_entry) {
      const auto where = VMSPACE_TRY(
          structure_at<std::uint32_t>(notes, sizeof note + name_size, "the PVH note is too short"));
      return std::optional(GuestAddress(where));
    }
    notes = notes.subspan(size);
  }
  return std::optional<GuestAddress>();
}

}  // namespace

Result<KernelImage> KernelImage::read(const std::string& path) {
  KernelImage image;
  image.elf_ = VMSPACE_TRY(read_file(path, largest_kernel));
  if (!is_elf(image.elf_)) {
    const auto payload = VMSPACE_TRY(payload_of(image.elf_));
    auto unpacked = VMSPACE_TRY(decompress(payload, largest_kernel));
    image.compression_ = unpacked.format;
    image.elf_ = std::move(unpacked.bytes);
  }
  VMSPACE_TRY(image.parse());
  return image;
}

Result<void> KernelImage::parse() {
  const std::span<const std::byte> file = elf_;
  const auto header =
      VMSPACE_TRY(structure_at<Elf64_Ehdr>(file, 0, "the kernel is too short to be an ELF file"));
  if (!is_elf(file) || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_type != ET_EXEC ||
      header.e_machine != EM_X86_64 || header.e_phentsize != sizeof(Elf64_Phdr)) {
    return corrupt("not a kernel: an ELF executable for x86-64, at fixed addresses, is one");
  }
  entry_ = GuestAddress(header.e_entry);
  std::uint64_t notes_left = std::uint64_t{1} << 20;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    if (header.e_phoff > file.size()) return corrupt("the program headers are truncated");
    const auto part = VMSPACE_TRY(structure_at<Elf64_Phdr>(
        file, header.e_phoff + i * sizeof(Elf64_Phdr), "the program headers are truncated"));
    if (part.p_type != PT_LOAD && part.p_type != PT_NOTE) continue;
    if (part.p_offset > file.size() || part.p_filesz > file.size() - part.p_offset) {
      return corrupt("a segment reaches past the end of the file",
                     Operand::span(part.p_offset, part.p_filesz));
    }
    const auto bytes = file.subspan(part.p_offset, part.p_filesz);
    if (part.p_type == PT_NOTE) {
      // Each of many headers may name the same, large notes.
      if (bytes.size() > notes_left) return corrupt("the kernel has more notes than any has");
      notes_left -= bytes.size();
      const auto found = VMSPACE_TRY(find_pvh_entry(bytes));
      if (found) pvh_entry_ = found;
      continue;
    }
    if (part.p_memsz < part.p_filesz || part.p_memsz > largest_kernel ||
        part.p_paddr > std::numeric_limits<std::uint64_t>::max() - largest_kernel) {
      return corrupt("a segment has an impossible size or address",
                     Operand::span(part.p_paddr, part.p_memsz));
    }
    if (part.p_memsz != 0) segments_.push_back({GuestAddress(part.p_paddr), bytes, part.p_memsz});
  }
  if (segments_.empty()) return corrupt("the kernel has nothing to load");
  return {};
}

GuestAddress KernelImage::end() const {
  std::uint64_t end = 0;
  for (const Segment& segment : segments_)
    end = std::max(end, segment.where.value() + segment.size);
  return GuestAddress(end);
}

}  // namespace boot_linux
