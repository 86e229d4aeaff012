// SPDX-License-Identifier: Apache-2.0
//
// What the tests of host memory share: temporary files, pages for hugetlb, and looking at this
// process from outside.

#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/host/memory_mapping.hpp"

namespace vmspace::test {

using literals::operator""_KiB;
using literals::operator""_MiB;
using literals::operator""_GiB;

inline std::uint64_t page_size() {
  return BackingSpec{}.effective_page_size();
}

/// A directory of its own, removed at the end. Not in /tmp, which may be a tmpfs: these tests are
/// about regular files.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    // mkdtemp(3) puts something unused in the place of the six letters.
    std::string name = (std::filesystem::current_path() / "vmspace-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// A file of `size` bytes, all of them `fill`.
  [[nodiscard]] std::string file(const std::string& name, std::uint64_t size, char fill) const {
    std::ofstream(path_ / name) << std::string(size, fill);
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

/// A descriptor that is closed at the end.
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// Whether QEMU's user mode stands in for the kernel. It ignores most advice of madvise(2), and says
/// of any that it was taken.
inline bool is_emulated() {
  return ::madvise(nullptr, 0, -1) == 0;
}

/// Pages in the machine's hugetlb pool for the length of a test. One test program at a time has
/// them: the pool is the machine's.
class HugePages {
 public:
  HugePages(std::uint64_t page_size, std::uint64_t count)
      : path_("/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page_size / 1024) +
              "kB/nr_hugepages"),
        lock_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (lock_.get() < 0 || is_emulated()) return;
    while (::flock(lock_.get(), LOCK_EX) != 0 && errno == EINTR) {
    }
    before_ = read();
    held_ = true;
    write(before_ + count);
    available_ = read() >= before_ + count;
  }
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;
  ~HugePages() {
    if (held_) write(before_);
  }

  /// Whether the pool could be made large enough; if not, the reason to skip is why_not().
  [[nodiscard]] bool available() const { return available_; }
  [[nodiscard]] std::string why_not() const {
    if (is_emulated()) return "QEMU's user mode can't map huge pages";
    return "may not reserve pages through " + path_;
  }
  [[nodiscard]] std::uint64_t free() const {
    std::uint64_t count = 0;
    std::ifstream(std::filesystem::path(path_).replace_filename("free_hugepages")) >> count;
    return count;
  }

 private:
  [[nodiscard]] std::uint64_t read() const {
    std::uint64_t count = 0;
    std::ifstream(path_) >> count;
    return count;
  }
  void write(std::uint64_t count) { std::ofstream(path_) << count << std::flush; }

  std::string path_;
  OwnedFd lock_;
  std::uint64_t before_ = 0;
  bool held_ = false;
  bool available_ = false;
};

/// A hugetlbfs of 2 MiB pages, mounted on a directory for the length of a test.
class HugetlbfsMount {
 public:
  explicit HugetlbfsMount(std::string path)
      : path_(std::move(path)),
        mounted_(::mount("none", path_.c_str(), "hugetlbfs", 0, "pagesize=2M") == 0) {}
  HugetlbfsMount(const HugetlbfsMount&) = delete;
  HugetlbfsMount& operator=(const HugetlbfsMount&) = delete;
  ~HugetlbfsMount() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  [[nodiscard]] bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_;
};

/// The blocks that a file takes, in bytes: what a hole gives back.
inline std::uint64_t allocated_bytes(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) std::abort();
  return static_cast<std::uint64_t>(info.st_blocks) * 512;
}

/// Where a mapping is, as a number.
inline std::uint64_t address_of(const MemoryMapping& mapping) {
  return reinterpret_cast<std::uintptr_t>(mapping.data());
}

inline void fill(const MemoryMapping& mapping, unsigned char value) {
  std::fill_n(mapping.data(), mapping.size(), std::byte{value});
}

/// Whether every byte of the part is `value`.
inline bool holds(const MemoryMapping& mapping, std::uint64_t offset, std::uint64_t size,
                  unsigned char value) {
  const std::span part(mapping.data() + offset, size);
  return std::all_of(part.begin(), part.end(), [&](std::byte b) { return b == std::byte{value}; });
}

/// The open descriptors of this process and what they are.
inline std::map<std::string, std::string> open_descriptors() {
  std::map<std::string, std::string> result;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(entry.path(), gone);
    // The iterator's own descriptor shows itself.
    if (!gone && target.string().find("/proc/") != 0) {
      result[entry.path().filename()] = target;
    }
  }
  return result;
}

/// How much of the address space this process has mapped.
inline std::uint64_t address_space_bytes() {
  std::uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * page_size();
}

/// Whether memory can't be bound to nodes here: mbind(2) is ENOSYS without CONFIG_NUMA, and EPERM under the
/// seccomp filters of containers.
template <typename T>
bool may_not_bind(const Result<T>& bound) {
  return !bound &&
         (bound.error().code == Errc::unsupported || bound.error().code == Errc::access_denied);
}

/// Whether page tables can be scanned (PAGEMAP_SCAN, since Linux 6.7).
inline bool can_scan_page_tables() {
  const int pagemap = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return false;
  std::array<std::uint64_t, 12> nothing{};
  const int result =
      ::ioctl(pagemap, _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof(nothing)), nothing.data());
  const bool is_known = result == 0 || errno != ENOTTY;
  ::close(pagemap);
  return is_known;
}

/// The kernel's area that contains `address`, as /proc/self/maps writes its permissions (`rw-p`);
/// empty where nothing is mapped.
inline std::string permissions_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::size_t at = 0;
    const std::uint64_t start = std::stoull(line, &at, 16);
    const std::uint64_t end = std::stoull(line.substr(at + 1), nullptr, 16);
    if (start <= wanted && wanted < end) return line.substr(line.find(' ') + 1, 4);
  }
  return "";
}

/// What /proc/self/maps calls the memory at `address`; empty where it has no name.
inline std::string name_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::size_t at = 0;
    const std::uint64_t start = std::stoull(line, &at, 16);
    const std::uint64_t end = std::stoull(line.substr(at + 1), nullptr, 16);
    if (start > wanted || wanted >= end) continue;
    // After five fields, and spaces that align it.
    for (int field = 0; field < 5; ++field)
      line.erase(0, line.find(' ') + 1);
    return line.erase(0, std::min(line.find_first_not_of(' '), line.size()));
  }
  return "";
}

/// The kernel's memory policy for the area that contains `address`, from /proc/self/numa_maps.
inline std::string numa_policy_at(const void* address) {
  std::string policy;
  std::ifstream maps("/proc/self/numa_maps");
  for (std::string line; std::getline(maps, line);) {
    if (std::stoull(line, nullptr, 16) > reinterpret_cast<std::uintptr_t>(address)) break;
    policy = line.substr(line.find(' ') + 1);
  }
  return policy;
}

/// The value of the line `name:` in /proc/self/smaps for the area that contains `address`.
inline std::string smaps_value(const void* address, const std::string& name) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    const std::size_t dash = line.find('-');
    if (dash != std::string::npos && line.find(' ') > dash && line.find(':') > dash) {
      std::size_t at = 0;
      const std::uint64_t start = std::stoull(line, &at, 16);
      inside = start <= wanted && wanted < std::stoull(line.substr(at + 1), nullptr, 16);
    } else if (inside && line.rfind(name + ":", 0) == 0) {
      return line.substr(name.size() + 1);
    }
  }
  return "";
}

/// The value in force of a setting like `always [madvise] never`; empty where there is none.
inline std::string thp_setting(const std::string& name) {
  std::string text;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/" + name), text);
  const std::size_t open = text.find('[');
  return open == text.npos ? "" : text.substr(open + 1, text.find(']') - open - 1);
}

/// Whether the kernel's settings can be read. Where they can't, as in many jails, a test that
/// compares with them is skipped.
inline bool sys_is_mounted() {
  return std::filesystem::exists("/sys/kernel/mm");
}

/// vm.overcommit_memory (proc_sys_vm(5)): 0 is a guess, 1 always, 2 never; -1 where /proc is not.
inline int overcommit_policy() {
  int policy = -1;
  std::ifstream("/proc/sys/vm/overcommit_memory") >> policy;
  return policy;
}

/// More than the machine's RAM and swap together, in whole GiB.
inline std::uint64_t more_than_the_host_has() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) std::abort();
  const std::uint64_t bytes = (std::uint64_t{info.totalram} + info.totalswap) * info.mem_unit;
  return (bytes / 1_GiB + 8) * 1_GiB;
}

/// Runs `body` in a child and tells how it ended, as waitpid(2) does.
template <typename Body>
int in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = -1;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

/// A mapping of a fresh backing, or a failed test.
inline MemoryMapping map_or_die(const BackingSpec& spec, MappingOptions options) {
  auto backing = Backing::open(spec, options.offset + options.size, options.protection);
  if (!backing) {
    ADD_FAILURE() << backing.error().message();
    std::abort();
  }
  auto mapping = MemoryMapping::map(*backing, options);
  if (!mapping) {
    ADD_FAILURE() << mapping.error().message();
    std::abort();
  }
  return std::move(*mapping);
}

/// A size of huge pages that the kernel has no pool for: no machine has pools of every size.
inline std::uint64_t missing_huge_page_size() {
  std::uint64_t missing = std::uint64_t{4} << 20;
  while (std::filesystem::exists("/sys/kernel/mm/hugepages/hugepages-" +
                                 std::to_string(missing / 1024) + "kB")) {
    missing *= 2;
  }
  return missing;
}

}  // namespace vmspace::test
