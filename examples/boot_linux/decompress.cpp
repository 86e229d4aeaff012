// SPDX-License-Identifier: Apache-2.0

#include "decompress.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string_view>

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "vmspace/base/try.hpp"

namespace boot_linux {

using vmspace::Errc;
using vmspace::fail;
using vmspace::Operand;
using vmspace::Result;

namespace {

using Bytes = std::span<const std::byte>;
using Target = std::span<std::byte>;
using namespace std::string_view_literals;

constexpr const char* operation = "decompress";

/// Each unpacks all of a payload into a target of just the right size.
using Unpack = bool (*)(Bytes from, Target to);

bool unpack_gzip(Bytes from, Target to) {
  constexpr int with_gzip_header = 16 + MAX_WBITS;
  z_stream stream{};
  if (inflateInit2(&stream, with_gzip_header) != Z_OK) return false;
  // The library does not write to its input; its type is older than const.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = reinterpret_cast<Bytef*>(to.data());
  stream.avail_out = static_cast<uInt>(to.size());
  const bool done = inflate(&stream, Z_FINISH) == Z_STREAM_END && stream.avail_out == 0;
  inflateEnd(&stream);
  return done;
}

bool unpack_xz(Bytes from, Target to) {
  std::uint64_t memory = std::uint64_t{256} << 20;
  std::size_t read = 0;
  std::size_t written = 0;
  const lzma_ret done = lzma_stream_buffer_decode(
      &memory, 0, nullptr, reinterpret_cast<const std::uint8_t*>(from.data()), &read, from.size(),
      reinterpret_cast<std::uint8_t*>(to.data()), &written, to.size());
  return done == LZMA_OK && written == to.size();
}

bool unpack_zstd(Bytes from, Target to) {
  const std::size_t frame = ZSTD_findFrameCompressedSize(from.data(), from.size());
  if (ZSTD_isError(frame) != 0) return false;
  return ZSTD_decompress(to.data(), to.size(), from.data(), frame) == to.size();
}

/// The "legacy" format of the lz4 tool: blocks, each after its size.
bool unpack_lz4(Bytes from, Target to) {
  from = from.subspan(sizeof(std::uint32_t));
  while (!to.empty()) {
    std::uint32_t size = 0;
    if (from.size() < sizeof size) return false;
    std::memcpy(&size, from.data(), sizeof size);
    from = from.subspan(sizeof size);
    if (size > from.size() || size > std::numeric_limits<int>::max()) return false;
    const int done = LZ4_decompress_safe(reinterpret_cast<const char*>(from.data()),
                                         reinterpret_cast<char*>(to.data()), static_cast<int>(size),
                                         static_cast<int>(to.size()));
    if (done <= 0) return false;
    from = from.subspan(size);
    to = to.subspan(static_cast<std::size_t>(done));
  }
  return true;
}

struct Format {
  const char* name;
  std::string_view magic;
  Unpack unpack;          ///< null where no library of the system is asked for it
  bool size_is_appended;  ///< behind the compressed data; gzip has it within
};

constexpr std::array formats{
    Format{"gzip", "\x1f\x8b"sv, unpack_gzip, false},
    Format{"xz",
           "\xfd"
           "7zXZ\0"sv,
           unpack_xz, true},
    Format{"zstd", "\x28\xb5\x2f\xfd"sv, unpack_zstd, true},
    Format{"lz4", "\x02\x21\x4c\x18"sv, unpack_lz4, true},
    Format{"bzip2", "BZh"sv, nullptr, true},
    Format{"lzma", "\x5d\0\0"sv, nullptr, true},
    Format{"lzo", "\x89LZO"sv, nullptr, true},
};

}  // namespace

Result<Decompressed> decompress(Bytes payload, std::uint64_t limit) {
  const auto refuse = [](Errc code, const char* reason, std::string_view name = {}) {
    return fail({.code = code, .operation = operation, .reason = reason, .text = {{}, name}});
  };
  const auto* const format = std::ranges::find_if(formats, [&](const Format& known) {
    return payload.size() > known.magic.size() + sizeof(std::uint32_t) &&
           std::memcmp(payload.data(), known.magic.data(), known.magic.size()) == 0;
  });
  if (format == formats.end()) {
    return refuse(Errc::unsupported, "the kernel is compressed in a format that is not known here");
  }
  if (format->unpack == nullptr) {
    return refuse(Errc::unsupported, "kernels compressed in this format are not unpacked here",
                  format->name);
  }
  std::uint32_t size = 0;
  std::memcpy(&size, payload.data() + payload.size() - sizeof size, sizeof size);
  if (size > limit) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::size(size),
                 .second = Operand::size(limit)});
  }
  if (format->size_is_appended) payload = payload.first(payload.size() - sizeof size);
  Decompressed result{format->name, std::vector<std::byte>(size)};
  if (!format->unpack(payload, result.bytes)) {
    return refuse(Errc::corrupt, "the compressed kernel is damaged", format->name);
  }
  return result;
}

}  // namespace boot_linux
