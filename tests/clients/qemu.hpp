// SPDX-License-Identifier: Apache-2.0
//
// What tests with QEMU have in common: where it and a kernel are, its monitor, and archives for its
// guests.

#pragma once

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "clients/process.hpp"

namespace vmspace::test {

namespace fs = std::filesystem;

/// Whether the shell would find a program.
inline bool has_program(const std::string& name) {
  std::istringstream directories(std::getenv("PATH"));
  for (std::string directory; std::getline(directories, directory, ':');) {
    if (::access((fs::path(directory) / name).c_str(), X_OK) == 0) return true;
  }
  return false;
}

/// The kernel that bootstrap.sh has unpacked, or that is installed; empty when there is none.
struct DebianKernel {
  fs::path image;
  fs::path modules;  ///< /lib/modules/<version>/kernel

  static DebianKernel find() {
    DebianKernel newest;
    for (const fs::path& root : {fs::path("/"), fs::path(VMSPACE_CLIENTS_DIR) / "kernel"}) {
      std::error_code none;
      for (const auto& entry : fs::directory_iterator(root / "boot", none)) {
        const std::string name = entry.path().filename();
        if (!name.starts_with("vmlinuz-") || !name.ends_with("-cloud-amd64")) continue;
        if (entry.path().filename() <= newest.image.filename()) continue;
        const std::string version = name.substr(std::string("vmlinuz-").size());
        newest = {entry.path(), root / "lib/modules" / version / "kernel"};
      }
    }
    return newest;
  }
};

/// What a test lacks that boots Debian's kernel with these programs and busybox; empty when nothing.
inline std::string missing_for_linux(std::initializer_list<const char*> programs) {
  for (const char* program : programs) {
    if (!has_program(program))
      return std::string(program) + " is not installed (bootstrap.sh clients)";
  }
  if (!fs::exists("/bin/busybox")) return "busybox-static is not installed";
  if (DebianKernel::find().image.empty())
    return "no Debian cloud kernel (bootstrap.sh clients gets one)";
  return {};
}

/// The machine protocol of QEMU's monitor.
class Monitor {
 public:
  explicit Monitor(const std::string& path)
      : connection_(connect_to(path, std::chrono::seconds(20))) {
    connection_.find("QMP", std::chrono::seconds(20));
    command(R"({"execute": "qmp_capabilities"})");
  }

  /// Sends a command, and gives its answer; events are passed over.
  std::string command(const std::string& text) {
    send(text);
    while (auto line = connection_.next(std::chrono::seconds(30))) {
      if (line->find("\"return\"") != std::string::npos ||
          line->find("\"error\"") != std::string::npos) {
        return *line;
      }
    }
    return "no answer";
  }
  void expect(const std::string& text) {
    const std::string answer = command(text);
    EXPECT_NE(answer.find("\"return\""), std::string::npos) << text << " gives " << answer;
  }
  bool wait_for_event(const std::string& name, std::chrono::seconds limit) {
    return connection_.find('"' + name + '"', limit).has_value();
  }

 private:
  void send(const std::string& text) {
    const std::string line = text + "\n";
    EXPECT_EQ(::write(connection_.fd(), line.data(), line.size()),
              static_cast<ssize_t>(line.size()));
  }

  Lines connection_;
};

/// An initrd: files in the "newc" format of cpio(5).
class Archive {
 public:
  void add_directory(const std::string& name) { add(name, S_IFDIR | 0755, ""); }
  void add_program(const std::string& name, const std::string& contents) {
    add(name, S_IFREG | 0755, contents);
  }
  void add_file(const std::string& name, const fs::path& source) {
    std::ifstream file(source, std::ios::binary);
    std::ostringstream contents;
    contents << file.rdbuf();
    EXPECT_FALSE(contents.str().empty()) << source;
    add_program(name, contents.str());
  }
  void write(const fs::path& path) {
    add("TRAILER!!!", 0, "");
    std::ofstream(path, std::ios::binary) << bytes_;
  }

 private:
  void add(const std::string& name, unsigned mode, const std::string& contents) {
    char header[111];
    std::snprintf(header, sizeof header,
                  "070701%08x%08x%08x%08x%08x%08x%08zx%08x%08x%08x%08x%08zx%08x", ++inode_, mode,
                  0U, 0U, 1U, 0U, contents.size(), 0U, 0U, 0U, 0U, name.size() + 1, 0U);
    bytes_ += header + name + '\0';
    pad();
    bytes_ += contents;
    pad();
  }
  void pad() { bytes_.resize((bytes_.size() + 3) / 4 * 4); }

  std::string bytes_;
  unsigned inode_ = 0;
};

/// A directory of its own, short enough for the paths of sockets, and removed at the end.
class ShortDirectory {
 public:
  ShortDirectory() {
    std::string name = "/tmp/vmspace-XXXXXX";
    path_ = ::mkdtemp(name.data()) != nullptr ? name : ".";
  }
  ShortDirectory(const ShortDirectory&) = delete;
  ShortDirectory& operator=(const ShortDirectory&) = delete;
  ~ShortDirectory() { fs::remove_all(path_); }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// What a guest's md5sum prints of its disk, of which this is the file.
inline std::string md5_of(const std::string& path) {
  Process program({"sh", "-c", "md5sum < " + path});
  return program.output.next(std::chrono::seconds(60)).value_or("none");
}

/// A PC of 256 MiB, emulated, with room for a DIMM, its monitor at `monitor`, and a disk of which the
/// device's process is at the other end of `device` (and options of its chardev).
inline Process start_qemu(const ShortDirectory& directory, const std::string& device,
                          const std::vector<std::string>& more) {
  std::vector<std::string> arguments{"qemu-system-x86_64",
                                     "-accel",
                                     "tcg",
                                     "-machine",
                                     "q35",
                                     "-nodefaults",
                                     "-display",
                                     "none",
                                     "-m",
                                     "256M,slots=2,maxmem=1G",
                                     "-object",
                                     "memory-backend-memfd,id=ram,size=256M,share=on",
                                     "-numa",
                                     "node,memdev=ram",
                                     "-qmp",
                                     "unix:" + (directory / "monitor") + ",server=on,wait=off",
                                     "-chardev",
                                     "socket,id=device,path=" + (directory / "device") + device};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return Process(arguments);
}

}  // namespace vmspace::test
