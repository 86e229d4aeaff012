// SPDX-License-Identifier: Apache-2.0
//
// Files that stand for those of a VMM: a kernel, firmware, an initrd.

#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>

#include "vmspace/exit_on_error.hpp"

namespace example {

/// A temporary folder, which becomes the current one, so that no file of that name elsewhere is
/// overwritten. Removed at the end.
class SampleFiles {
 public:
  // The X are where mkdtemp(3) puts a name of its own.
  SampleFiles() : folder_((std::filesystem::temp_directory_path() / "vmspace-XXXXXX").string()) {
    vmspace::exit_unless(::mkdtemp(folder_.data()) != nullptr && ::chdir(folder_.c_str()) == 0,
                         "a temporary folder can be made");
  }
  SampleFiles(const SampleFiles&) = delete;
  SampleFiles& operator=(const SampleFiles&) = delete;
  ~SampleFiles() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  void write(const std::string& name, std::string_view contents) const {
    std::ofstream file(folder_ + "/" + name, std::ios::binary);
    file << contents;
    vmspace::exit_unless(static_cast<bool>(file.flush()), "the sample file can be written");
  }

 private:
  std::string folder_;
};

}  // namespace example
