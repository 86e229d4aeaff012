// SPDX-License-Identifier: Apache-2.0
//
// Threads that work in rounds, and rest between them.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "activity.hpp"

namespace vmspace::soak {

/// A thread for each activity, from construction to destruction. Between rounds all of them wait.
class Rounds {
 public:
  explicit Rounds(std::vector<std::unique_ptr<Activity>> activities);
  Rounds(const Rounds&) = delete;
  Rounds& operator=(const Rounds&) = delete;
  ~Rounds();

  // One round. When something has gone wrong, these do nothing more. The activities begin in their order,
  // and finish in the opposite one.
  void begin(unsigned round);
  /// Everybody works for so long, then ends the step it is in. An activity that does not ends the program.
  void work(std::chrono::milliseconds length);
  void finish();

  /// Calls it, and notes what it throws for wrong(), with the name.
  void attempt(std::string_view name, const std::function<void()>& call);
  /// The first thing that has gone wrong, if anything has: in which activity, and how.
  [[nodiscard]] const std::optional<std::string>& wrong() const { return wrong_; }

  /// How many steps each activity has taken, as lines.
  [[nodiscard]] std::string steps() const;

 private:
  struct Worker {
    std::unique_ptr<Activity> activity;
    std::atomic<std::uint64_t> steps = 0;
    bool is_working = false;
    std::thread thread = {};
  };
  void run(Worker& worker);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<bool> is_over_ = true;
  std::mutex mutex_;  ///< of all below, and of Worker::is_working
  std::condition_variable changed_;
  bool is_to_end_ = false;
  std::optional<std::string> wrong_;
};

}  // namespace vmspace::soak
