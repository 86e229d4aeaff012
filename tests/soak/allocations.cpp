// SPDX-License-Identifier: Apache-2.0
//
// The allocator beside a std::map, and leases of the numbers that the machine's slots are taken from.

#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

class Allocations final : public Activity {
 public:
  Allocations(Machine& machine, std::uint64_t seed)
      : Activity("allocations", seed), machine_(machine) {
    must(tree_.insert(whole));
  }

  void step() override {
    for (int i = 0; i < 100; ++i) {
      if (taken_.size() < 500 && random(2) == 0) {
        allocate();
      } else if (!taken_.empty()) {
        free();
      }
    }
    must(tree_.check_invariants());
    lease();
  }

 private:
  static constexpr Range whole = Range::of(0, (std::uint64_t{1} << 30) - 1);

  void allocate() {
    const std::uint64_t align = std::uint64_t{1} << random(16);
    const auto value = random(1'000'000);
    const Range range = must(tree_.allocate({.size = 1 + random(1 << 16), .align = align}, value));
    require(range.min() % align == 0, "what is allocated is aligned");
    // Its neighbours end before it, and begin behind it.
    const auto next = taken_.lower_bound(range.min());
    require(next == taken_.end() || next->first > range.max(), "what is allocated was free");
    require(next == taken_.begin() || std::prev(next)->second.range.max() < range.min(),
            "what is allocated was free");
    must_refuse(tree_.allocate_at(range), Errc::bad_state);
    taken_.insert({range.min(), {range, value}});
  }
  void free() {
    const auto chosen = std::next(taken_.begin(), static_cast<long>(random(taken_.size())));
    const auto [range, value] = chosen->second;
    require(must(tree_.free(range)) == value, "what is freed has its value");
    must_refuse(tree_.free(range), Errc::bad_state);
    taken_.erase(chosen);
  }
  void lease() {
    std::vector<Lease> leases;
    for (int i = 0; i < 8; ++i) {
      leases.push_back(must(machine_.slot_numbers.acquire({.size = 1 + random(4), .min = 256},
                                                          "lease " + std::to_string(i))));
      must_refuse(machine_.slot_numbers.acquire_at(leases.back().range(), "another"),
                  Errc::bad_state);
    }
    must(leases[random(leases.size())].release());
    must_refuse(machine_.slot_numbers.acquire({.size = 509}, "too many"), Errc::no_space);
  }

  struct Taken {
    Range range;
    std::uint64_t value;
  };
  Machine& machine_;
  IntervalTree<std::uint64_t> tree_;
  std::map<std::uint64_t, Taken> taken_;
};

}  // namespace

std::unique_ptr<Activity> make_allocations(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Allocations>(machine, seed);
}

}  // namespace vmspace::soak
