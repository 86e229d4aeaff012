// SPDX-License-Identifier: Apache-2.0

#include "growth.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include <fmt/format.h>
#include <malloc.h>

// In programs with a sanitizer, whose malloc is another. Not every compiler has the header for these.
extern "C" {
[[gnu::weak]] std::size_t __sanitizer_get_current_allocated_bytes();
[[gnu::weak]] void __sanitizer_purge_allocator();
}

namespace vmspace::soak {

namespace {

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;

struct Measure {
  const char* name;
  std::uint64_t Sample::*value;
  std::uint64_t slack;
};

// Threads, descriptors and mappings are ours to count. malloc's bytes are, too, but for what the C and C++
// libraries cache. Pages stay resident in free lists of the allocator, and in what a sanitizer notes of
// stacks and threads, which takes minutes to level off.
constexpr Measure measures[] = {
    {"resident memory", &Sample::resident, 32 * mebibyte},
    {"allocated memory", &Sample::allocated, mebibyte / 4},
    {"descriptors", &Sample::descriptors, 0},
    {"mappings", &Sample::mappings, 0},
    {"threads", &Sample::threads, 0},
};

std::uint64_t allocated_bytes() {
  if (__sanitizer_get_current_allocated_bytes != nullptr)
    return __sanitizer_get_current_allocated_bytes();
  const struct mallinfo2 info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

void give_back_free_memory() {
  if (__sanitizer_purge_allocator != nullptr)
    __sanitizer_purge_allocator();
  else
    ::malloc_trim(0);
}

/// The number behind `name:` in a file of /proc. Throws without one, which would never grow.
std::uint64_t field(const char* path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return std::stoull(line.substr(name.size()));
  }
  throw std::runtime_error(fmt::format("{} does not say \"{}\"", path, name));
}

std::uint64_t count(const Listing& listing) {
  std::uint64_t sum = 0;
  for (const auto& [name, times] : listing)
    sum += times;
  return sum;
}

/// What there is more of, and less.
std::string difference(const Listing& before, const Listing& after) {
  std::string text;
  const auto compare = [&](const Listing& names, bool also_in_before) {
    for (const auto& [name, times] : names) {
      const auto find = [&name = name](const Listing& listing) {
        const auto found = listing.find(name);
        return found == listing.end() ? 0 : static_cast<long>(found->second);
      };
      if (also_in_before && before.contains(name)) continue;
      const long change = find(after) - find(before);
      if (change != 0) text += fmt::format("  {:+} {}\n", change, name);
    }
  };
  compare(before, false);
  compare(after, true);
  return text;
}

std::uint64_t lowest(std::span<const Sample> samples, std::uint64_t Sample::*value) {
  return std::ranges::min(samples, {}, value).*value;
}

}  // namespace

Listing open_descriptors() {
  Listing listing;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;  // the directory that is being read
    std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    if (gone || target.ends_with("/fd")) continue;
    // Sockets and pipes have numbers, which differ each time.
    if (const auto number = target.find(":["); number != std::string::npos) target.resize(number);
    ++listing[target];
  }
  return listing;
}

Listing mappings() {
  Listing listing;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    char dash = 0;
    std::string rights;
    std::string offset;
    std::string device;
    std::string inode;
    std::string name;
    words >> std::hex >> from >> dash >> to >> rights >> offset >> device >> inode >> std::ws;
    std::getline(words, name);
    if (name.empty() && rights.ends_with('p')) continue;
    ++listing[fmt::format("{} {} KiB {}", rights, (to - from) / 1024, name)];
  }
  return listing;
}

Sample Sample::now() {
  give_back_free_memory();
  return {.resident = field("/proc/self/smaps_rollup", "Pss:") * 1024,
          .allocated = allocated_bytes(),
          .descriptors = count(open_descriptors()),
          .mappings = count(soak::mappings()),
          .threads = field("/proc/self/status", "Threads:")};
}

void GrowthCheck::add(const Sample& sample) {
  samples_.push_back(sample);
  // Where the warm-up ends is not known before the last sample; by now everything has been done once.
  if (samples_.size() != least_samples / 5) return;
  first_descriptors_ = open_descriptors();
  first_mappings_ = mappings();
}

std::optional<std::string> GrowthCheck::grown() const {
  if (samples_.size() < least_samples) return {};
  const auto judged = std::span(samples_).subspan(samples_.size() / 5);
  const std::size_t third = judged.size() / 3;
  std::string text;
  for (const Measure& measure : measures) {
    const std::uint64_t before = lowest(judged.first(third), measure.value);
    const std::uint64_t after = lowest(judged.last(third), measure.value);
    if (after <= before + measure.slack) continue;
    text += fmt::format("{} grew from {} to {}, where {} more would pass\n", measure.name, before,
                        after, measure.slack);
  }
  if (text.empty()) return {};
  return text + "descriptors since the beginning:\n" +
         difference(first_descriptors_, open_descriptors()) + "mappings since the beginning:\n" +
         difference(first_mappings_, mappings());
}

}  // namespace vmspace::soak
