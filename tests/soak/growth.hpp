// SPDX-License-Identifier: Apache-2.0
//
// Whether a process grows: what it holds, sampled again and again at moments that are alike.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace vmspace::soak {

/// What the kernel and malloc have for this process.
struct Sample {
  std::uint64_t resident = 0;   ///< bytes; pages that are mapped several times count once
  std::uint64_t allocated = 0;  ///< bytes that malloc has given out
  std::uint64_t descriptors = 0;
  std::uint64_t mappings = 0;  ///< of files and shared memory, memfds among them
  std::uint64_t threads = 0;

  /// Of a process at rest. Memory that is free is given back to the kernel first.
  static Sample now();
};

/// How many there are of each thing that has a name: targets of descriptors, mappings by file and size.
using Listing = std::map<std::string, std::size_t>;
Listing open_descriptors();
/// Without private anonymous ones, whose number is up to the allocator; their pages are resident memory.
Listing mappings();

/// Judges samples that were taken at equal distances.
///
/// The first fifth is warm-up. Of the rest, the lowest of the last third must not be above the lowest of
/// the first third by more than the slack. The lowest, because a process that does not grow comes back to
/// it however its samples vary, and one that does never.
class GrowthCheck {
 public:
  /// Below this many samples nothing is judged.
  static constexpr std::size_t least_samples = 30;

  /// Takes a sample, with what it consists of. `most` samples are coming: room for them is made now, so
  /// that the check itself does not grow.
  explicit GrowthCheck(std::size_t most) { samples_.reserve(most); }
  void add(const Sample& sample);

  /// What has grown, by how much, and which descriptors and mappings there are more of; nothing when
  /// nothing has, or there are too few samples.
  [[nodiscard]] std::optional<std::string> grown() const;

  [[nodiscard]] const std::vector<Sample>& samples() const { return samples_; }

 private:
  std::vector<Sample> samples_;
  Listing first_descriptors_;
  Listing first_mappings_;
};

}  // namespace vmspace::soak
