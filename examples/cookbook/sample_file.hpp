// SPDX-License-Identifier: Apache-2.0
//
// A file that stands for one that a VMM is told of: a kernel, firmware, an initrd.

#pragma once

#include <unistd.h>

#include <fstream>
#include <string>
#include <string_view>
#include <utility>

namespace example {

/// A file with these contents in the current directory, removed at the end.
class SampleFile {
 public:
  SampleFile(std::string path, std::string_view contents) : path_(std::move(path)) {
    std::ofstream(path_, std::ios::binary) << contents;
  }
  SampleFile(const SampleFile&) = delete;
  SampleFile& operator=(const SampleFile&) = delete;
  ~SampleFile() { ::unlink(path_.c_str()); }

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace example
