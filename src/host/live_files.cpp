// SPDX-License-Identifier: Apache-2.0

#include "host/live_files.hpp"

#include <mutex>
#include <set>

#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

struct LiveFiles {
  std::mutex mutex;
  std::set<int> descriptors;
};

/// Never destroyed: a Backing may be a static object and outlive any other.
LiveFiles& live_files() {
  static auto* const files = new LiveFiles;
  return *files;
}

}  // namespace

void remember_file(int fd) {
  LiveFiles& files = live_files();
  const std::lock_guard lock(files.mutex);
  files.descriptors.insert(fd);
}

void forget_file(int fd) noexcept {
  LiveFiles& files = live_files();
  const std::lock_guard lock(files.mutex);
  files.descriptors.erase(fd);
}

Result<bool> is_live_file(const char* operation, const struct stat& file) {
  LiveFiles& files = live_files();
  // Held throughout, so that no descriptor is closed and its number reused meanwhile.
  const std::lock_guard lock(files.mutex);
  for (const int fd : files.descriptors) {
    struct stat other {};
    if (retry([&] { return kernel().fstat(fd, &other); }) != 0) {
      return fail_os(operation, {}, "fstat of the memory's file");
    }
    if (other.st_dev == file.st_dev && other.st_ino == file.st_ino) return true;
  }
  return false;
}

}  // namespace vmspace::detail
