// SPDX-License-Identifier: Apache-2.0

#include "host/node_cpus.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <string_view>

#include "os/proc_file.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

/// Adds a list like `0-3,8,10-11` (cpuset(7), "List format"), up to a CPU that the set has no bit
/// for. What is not a list adds what comes before the first mistake.
void add_list(std::string_view text, CpuSet& cpus) {
  const std::size_t limit = cpus.size() * mask_word_bits;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    std::size_t first = 0;
    auto parsed = std::from_chars(at, end, first);
    if (parsed.ec != std::errc{}) return;
    std::size_t last = first;
    if (parsed.ptr != end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      if (parsed.ec != std::errc{}) return;
    }
    for (std::size_t cpu = first; cpu <= last && cpu < limit; ++cpu)
      cpus[cpu / mask_word_bits] |= 1UL << cpu % mask_word_bits;
    if (parsed.ptr == end || *parsed.ptr != ',') return;
    at = parsed.ptr + 1;
  }
}

}  // namespace

CpuSet allowed_cpus() {
  // EINVAL until it has room for as many CPUs as the kernel is built for: 8,192 at most so far.
  constexpr std::size_t most_words = 65536 / mask_word_bits;
  for (CpuSet cpus(1024 / mask_word_bits);; cpus.resize(2 * cpus.size())) {
    if (kernel().sched_getaffinity(0, cpus.size() * sizeof(cpus[0]), cpus.data()) >= 0) return cpus;
    if (errno != EINVAL || cpus.size() >= most_words) return {};
  }
}

CpuSet cpus_near(std::span<const std::uint32_t> nodes, const CpuSet& allowed) {
  CpuSet near(allowed.size());
  std::array<char, 4096> buffer;
  for (const std::uint32_t node : nodes) {
    const std::string path = "/sys/devices/system/node/node" + std::to_string(node) + "/cpulist";
    add_list(read_start(path.c_str(), buffer.data(), buffer.size()), near);
  }
  for (std::size_t i = 0; i < near.size(); ++i)
    near[i] &= allowed[i];
  const bool none = std::ranges::all_of(near, [](unsigned long word) { return word == 0; });
  return none ? allowed : near;
}

}  // namespace vmspace::detail
