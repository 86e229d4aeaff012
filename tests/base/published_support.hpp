// SPDX-License-Identifier: Apache-2.0
//
// What the tests of Published share: values that tell when they are destroyed.

#pragma once

#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "vmspace/base/published.hpp"

namespace vmspace::test {

/// Remembers which numbers were destroyed, and on which thread.
class Log {
 public:
  void destroyed(int number) {
    numbers_.push_back(number);
    threads_.push_back(std::this_thread::get_id());
  }
  const std::vector<int>& numbers() const { return numbers_; }
  const std::vector<std::thread::id>& threads() const { return threads_; }

 private:
  std::vector<int> numbers_;
  std::vector<std::thread::id> threads_;
};

/// A published value: its number, and a copy is told apart from what it was copied from by
/// `number`.
struct Thing {
  Thing(int n, Log* l) : number(n), log(l) {}
  Thing(const Thing& other) = default;
  Thing(Thing&& other) noexcept : number(other.number), log(std::exchange(other.log, nullptr)) {}
  Thing& operator=(const Thing&) = delete;
  ~Thing() {
    if (log != nullptr) log->destroyed(number);
  }

  int number;
  Log* log;
};

inline Result<void> set(const Published<Thing>& thing, int number) {
  return thing.update([&](Thing& draft) -> Result<void> {
    draft.number = number;
    return {};
  });
}

/// Runs `body` on another thread, to its end.
template <typename Body>
auto elsewhere(Body body) {
  return std::async(std::launch::async, std::move(body)).get();
}

}  // namespace vmspace::test
