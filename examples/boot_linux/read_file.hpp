// SPDX-License-Identifier: Apache-2.0
//
// A whole file as bytes.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace boot_linux {

/// All of a file, unless it is empty or has more than `limit` bytes.
inline vmspace::Result<std::vector<std::byte>> read_file(const std::string& path,
                                                         std::uint64_t limit) {
  const auto refuse = [&](vmspace::Errc code, const char* reason, int error = 0) {
    return vmspace::fail({.code = code,
                          .operation = "read_file",
                          .reason = reason,
                          .os_errno = error,
                          .text = {{}, path}});
  };
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return refuse(vmspace::Errc::os, "open", errno);
  const auto size = static_cast<std::int64_t>(file.tellg());
  if (size <= 0) return refuse(vmspace::Errc::corrupt, "the file is empty, or not a regular file");
  if (static_cast<std::uint64_t>(size) > limit) {
    return refuse(vmspace::Errc::limit_exceeded, "the file is too large to be what it should be");
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), size)) {
    return refuse(vmspace::Errc::os, "read", errno);
  }
  return bytes;
}

}  // namespace boot_linux
