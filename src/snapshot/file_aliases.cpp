// SPDX-License-Identifier: Apache-2.0

#include "snapshot/file_aliases.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

/// What a region has of a file: [begin, end).
struct FilePart {
  dev_t device;
  ino_t inode;
  std::uint64_t begin;
  std::uint64_t end;
  const MemoryRegion* region;

  [[nodiscard]] bool is_written() const { return allows(region->protection(), Protection::write); }
  [[nodiscard]] bool meets(const FilePart& next) const {
    return device == next.device && inode == next.inode && next.begin < end;
  }
};

}  // namespace

Result<void> refuse_file_aliases(const char* operation, const GuestMemory& memory) {
  std::vector<FilePart> parts;
  for (const MemoryRegionPtr& region : memory.regions()) {
    const Backing& backing = region->backing();
    if (!backing.is_shared() || backing.is_anonymous() || backing.is_external()) continue;
    struct stat file {};
    if (retry([&] { return kernel().fstat(backing.fd(), &file); }) != 0)
      return fail_os(operation, operand(region->guest_range()), "fstat");
    const std::uint64_t begin = region->mapping().file_offset();
    parts.push_back({file.st_dev, file.st_ino, begin, begin + region->size(), region.get()});
  }
  std::ranges::sort(parts, {}, [](const FilePart& part) {
    return std::tuple(part.device, part.inode, part.begin);
  });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (std::size_t j = i + 1; j < parts.size() && parts[i].meets(parts[j]); ++j) {
      if (!parts[i].is_written() && !parts[j].is_written()) continue;
      const auto [low, high] =
          std::minmax(parts[i].region, parts[j].region,
                      [](const auto* a, const auto* b) { return a->base() < b->base(); });
      return fail({.code = Errc::overlap,
                   .operation = operation,
                   .first = operand(low->guest_range()),
                   .second = operand(high->guest_range()),
                   .reason =
                       "both are the same part of a file, and what is written by one address can't "
                       "be seen by the other: leave one of them out",
                   .text = high->description().name()});
    }
  }
  return {};
}

}  // namespace vmspace::detail
