// SPDX-License-Identifier: Apache-2.0
//
// KernelImage: what distributions make of a kernel is read, and a file that is none, is cut off
// anywhere, or lies about its sizes is an error.

#include "kernel_image.hpp"

#include <asm/bootparam.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "vmspace/testing.hpp"

namespace boot_linux {
namespace {

using vmspace::Errc;
using vmspace::Error;
using vmspace::GuestAddress;
using vmspace::HasError;
using vmspace::HasErrorThat;
using vmspace::IsOk;

template <typename T>
std::string bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

/// An ELF file of one segment, 24 bytes of code and 8 of zeros, and one note.
struct Elf {
  Elf64_Ehdr header{};
  Elf64_Phdr code{};
  Elf64_Phdr note{};
  std::string note_bytes = bytes_of(Elf64_Nhdr{4, 4, 18}) + std::string("Xen\0", 4) +
                           bytes_of(std::uint32_t{0x100'0850});
  std::string code_bytes = "the kernel's instructions";

  Elf() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phoff = sizeof header;
    header.e_phnum = 2;
    header.e_entry = 0x100'0000;
    code.p_type = PT_LOAD;
    code.p_offset = sizeof header + 2 * sizeof(Elf64_Phdr);
    code.p_paddr = 0x100'0000;
    code.p_filesz = code_bytes.size();
    code.p_memsz = code_bytes.size() + 8;
    note.p_type = PT_NOTE;
    note.p_offset = code.p_offset + code.p_filesz;
    note.p_filesz = note_bytes.size();
  }
  [[nodiscard]] std::string file() const {
    return bytes_of(header) + bytes_of(code) + bytes_of(note) + code_bytes + note_bytes;
  }
};

vmspace::Result<KernelImage> read(const std::string& contents) {
  std::string name = "vmspace-kernel-XXXXXX";  // mkstemp(3) replaces the X
  const int fd = ::mkstemp(name.data());
  EXPECT_EQ(::write(fd, contents.data(), contents.size()), static_cast<ssize_t>(contents.size()));
  ::close(fd);
  auto image = KernelImage::read(name);
  ::unlink(name.c_str());
  return image;
}

std::string gzip(const std::string& text) {
  std::string out(text.size() + 100, '\0');
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;  // with the size at its end
}

std::string with_size(std::string compressed, const std::string& text) {
  return compressed + bytes_of(static_cast<std::uint32_t>(text.size()));
}

std::string xz(const std::string& text) {
  std::string out(text.size() + 1000, '\0');
  std::size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr,
                                    reinterpret_cast<const std::uint8_t*>(text.data()), text.size(),
                                    reinterpret_cast<std::uint8_t*>(out.data()), &size, out.size()),
            LZMA_OK);
  out.resize(size);
  return with_size(out, text);
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 19));
  return with_size(out, text);
}

std::string lz4(const std::string& text) {
  std::string out = std::string("\x02\x21\x4c\x18", 4);
  // In two blocks, as larger kernels have many.
  for (const std::string& part : {text.substr(0, 50), text.substr(50)}) {
    std::string block(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(part.size()))),
                      '\0');
    const int size = LZ4_compress_default(part.data(), block.data(), static_cast<int>(part.size()),
                                          static_cast<int>(block.size()));
    out += bytes_of(static_cast<std::uint32_t>(size)) +
           block.substr(0, static_cast<std::size_t>(size));
  }
  return with_size(out, text);
}

std::string bzimage(const std::string& payload,
                    const std::function<void(setup_header&)>& change = {}) {
  setup_header header{};
  header.setup_sects = 1;
  header.header = 0x5372'6448;
  header.version = 0x020f;
  header.payload_offset = 16;
  header.payload_length = static_cast<std::uint32_t>(payload.size());
  if (change) change(header);
  std::string file(offsetof(boot_params, hdr), '\0');
  file += bytes_of(header);
  file.resize(1024 + 16);
  return file + payload;
}

TEST(KernelImage, ReadsAVmlinux) {
  const Elf elf;
  const auto image = read(elf.file());
  ASSERT_THAT(image, IsOk());
  EXPECT_EQ(image->pvh_entry(), GuestAddress(0x100'0850));
  EXPECT_EQ(image->entry(), GuestAddress(0x100'0000));
  ASSERT_EQ(image->segments().size(), 1U);
  const Segment& segment = image->segments().front();
  EXPECT_EQ(segment.where, GuestAddress(0x100'0000));
  EXPECT_EQ(segment.size, elf.code.p_memsz);
  EXPECT_EQ(
      std::string_view(reinterpret_cast<const char*>(segment.bytes.data()), segment.bytes.size()),
      elf.code_bytes);
}

TEST(KernelImage, UnpacksEveryFormat) {
  const std::string elf = Elf().file();
  for (const auto& [name, payload] : {std::pair("gzip", gzip(elf)), std::pair("xz", xz(elf)),
                                      std::pair("zstd", zstd(elf)), std::pair("lz4", lz4(elf))}) {
    const auto image = read(bzimage(payload));
    ASSERT_THAT(image, IsOk()) << name;
    EXPECT_STREQ(image->compression(), name);
    EXPECT_EQ(image->pvh_entry(), GuestAddress(0x100'0850));
  }
}

TEST(KernelImage, HasNoPvhEntryWithoutTheNote) {
  Elf elf;
  elf.note.p_type = PT_NULL;
  const auto image = read(elf.file());
  ASSERT_THAT(image, IsOk());
  EXPECT_FALSE(image->pvh_entry());
}

TEST(KernelImage, RefusesAFileThatIsCutOffAnywhere) {
  const std::string elf = Elf().file();
  for (const std::string& whole :
       {elf, bzimage(gzip(elf)), bzimage(xz(elf)), bzimage(zstd(elf)), bzimage(lz4(elf))}) {
    for (std::size_t size = 0; size < whole.size(); ++size)
      EXPECT_FALSE(read(whole.substr(0, size))) << size << " of " << whole.size();
  }
}

// Whatever a byte is changed to, reading ends, and stays within the file (a sanitizer would tell).
TEST(KernelImage, SurvivesEveryByteAltered) {
  const std::string elf = Elf().file();
  for (const std::string& whole :
       {elf, bzimage(gzip(elf)), bzimage(xz(elf)), bzimage(zstd(elf)), bzimage(lz4(elf))}) {
    for (std::size_t at = 0; at < whole.size(); ++at) {
      if (whole.size() > elf.size() && at < offsetof(boot_params, hdr)) continue;
      std::string altered = whole;
      for (const char value : {'\0', '\x7f', '\xff'}) {
        altered[at] = value;
        static_cast<void>(read(altered));
      }
    }
  }
}

TEST(KernelImage, RefusesMoreNotesThanAnyKernelHas) {
  Elf elf;
  const std::string note = bytes_of(Elf64_Nhdr{4, 0, 1}) + std::string("GNU\0", 4);
  elf.note_bytes.clear();
  for (int i = 0; i < 1 << 15; ++i)  // half of what is allowed
    elf.note_bytes += note;
  elf.note.p_filesz = elf.note_bytes.size();
  VMSPACE_EXPECT_OK(read(elf.file()));
  // Two headers more that name the same notes.
  elf.header.e_phnum = 4;
  elf.code.p_offset += 2 * sizeof(Elf64_Phdr);
  elf.note.p_offset += 2 * sizeof(Elf64_Phdr);
  const std::string twice = bytes_of(elf.note) + bytes_of(elf.note);
  EXPECT_THAT(
      read(elf.file().insert(elf.header.e_phoff + sizeof(Elf64_Phdr), twice)),
      HasErrorThat(::testing::Property(&Error::message, ::testing::HasSubstr("more notes"))));
}

TEST(KernelImage, RefusesWhatItCannotBe) {
  const std::string elf = Elf().file();
  EXPECT_THAT(read(std::string(4096, 'x')), HasError(Errc::corrupt));
  EXPECT_THAT(read(""), HasError(Errc::corrupt));
  EXPECT_THAT(read(bzimage("BZh" + std::string(100, 'x'))), HasError(Errc::unsupported));
  EXPECT_THAT(read(bzimage(std::string(100, 'x'))), HasError(Errc::unsupported));
  EXPECT_THAT(read(bzimage(gzip(elf), [](setup_header& header) { header.version = 0x0207; })),
              HasError(Errc::unsupported));
  const std::string huge =
      "\x28\xb5\x2f\xfd" + std::string(8, 'x') + bytes_of(std::uint32_t{0xffff'ffff});
  EXPECT_THAT(read(bzimage(huge)), HasError(Errc::limit_exceeded));
  EXPECT_THAT(
      read(bzimage(gzip("not an ELF file, and long enough to have all of its header......"))),
      HasError(Errc::corrupt));
  EXPECT_THAT(KernelImage::read("/nonexistent"), HasError(Errc::os));
}

}  // namespace
}  // namespace boot_linux
