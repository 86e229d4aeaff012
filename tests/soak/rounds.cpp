// SPDX-License-Identifier: Apache-2.0

#include "rounds.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <utility>

#include <fmt/format.h>

namespace vmspace::soak {

namespace {

// No step takes more than seconds, even on a machine with other things to do.
constexpr std::chrono::minutes patience{5};

}  // namespace

Rounds::Rounds(std::vector<std::unique_ptr<Activity>> activities) {
  for (auto& activity : activities) {
    workers_.push_back(std::make_unique<Worker>());
    workers_.back()->activity = std::move(activity);
  }
  for (const auto& worker : workers_)
    worker->thread = std::thread([this, &worker = *worker] { run(worker); });
}

Rounds::~Rounds() {
  {
    const std::lock_guard lock(mutex_);
    is_to_end_ = true;
  }
  changed_.notify_all();
  for (const auto& worker : workers_)
    worker->thread.join();
}

void Rounds::attempt(std::string_view name, const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& thrown) {
    is_over_ = true;
    const std::lock_guard lock(mutex_);
    if (!wrong_) wrong_ = fmt::format("{}: {}", name, thrown.what());
  }
}

void Rounds::run(Worker& worker) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return is_to_end_ || worker.is_working; });
    if (is_to_end_) return;
    lock.unlock();
    attempt(worker.activity->name(), [&] {
      do {
        worker.activity->step();
        ++worker.steps;
      } while (!is_over_);
    });
    lock.lock();
    worker.is_working = false;
    changed_.notify_all();
  }
}

void Rounds::begin(unsigned round) {
  for (const auto& worker : workers_) {
    if (!wrong_) attempt(worker->activity->name(), [&] { worker->activity->begin(round); });
  }
}

void Rounds::work(std::chrono::milliseconds length) {
  std::unique_lock lock(mutex_);
  if (wrong_) return;
  is_over_ = false;
  for (const auto& worker : workers_)
    worker->is_working = true;
  changed_.notify_all();
  changed_.wait_for(lock, length, [this] { return wrong_.has_value(); });
  is_over_ = true;
  const auto all_rest = [this] {
    return std::ranges::none_of(workers_, [](const auto& worker) { return worker->is_working; });
  };
  if (changed_.wait_for(lock, patience, all_rest)) return;
  if (wrong_) fmt::print(stderr, "soak: {}\n", *wrong_);
  for (const auto& worker : workers_) {
    if (worker->is_working)
      fmt::print(stderr, "soak: {} does not come to an end\n", worker->activity->name());
  }
  std::abort();  // the core shows where
}

void Rounds::finish() {
  for (auto worker = workers_.rbegin(); worker != workers_.rend(); ++worker) {
    Activity& activity = *(*worker)->activity;
    if (!wrong_) attempt(activity.name(), [&] { activity.finish(); });
  }
}

std::string Rounds::steps() const {
  std::string text;
  for (const auto& worker : workers_)
    text += fmt::format("  {:<20}{:>10}\n", worker->activity->name(), worker->steps.load());
  return text;
}

}  // namespace vmspace::soak
