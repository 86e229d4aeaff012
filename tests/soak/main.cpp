// SPDX-License-Identifier: Apache-2.0
//
// soak [<minutes> [<seed>]]
//
// A virtual machine as a VMM has it for months, in minutes: everything happens to it at once, on a thread
// each, for so long (5). Ends with 1 and a message when an answer was wrong, or when the process has grown
// in memory, descriptors, mappings or threads. Needs /proc; what else is missing (/dev/kvm, userfaultfd)
// it says and goes without.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "activity.hpp"
#include "growth.hpp"
#include "machine.hpp"
#include "rounds.hpp"

namespace vmspace::soak {
namespace {

using Clock = std::chrono::steady_clock;

/// In the order in which they begin, and back in which they finish. What is saved is saved before a live
/// snapshot or a scan has the memory; the machine is handed over when neither has it any more, and before
/// it loses its devices and blocks.
std::vector<std::unique_ptr<Activity>> all_activities(Machine& machine, std::uint64_t seed) {
  std::vector<std::unique_ptr<Activity>> activities;
  for (const auto make :
       {make_allocations, make_devices, make_blocks, make_hotplug, make_resizing, make_moving,
        make_decoding, make_pages, make_queues, make_translations, make_vhost_user,
        make_hostile_front_end, make_bad_input, make_processor, make_handover, make_snapshots,
        make_migration, make_live_snapshots, make_dirty_scan}) {
    if (auto activity = make(machine, seed++)) activities.push_back(std::move(activity));
  }
  return activities;
}

void print(unsigned round, const Sample& sample) {
  fmt::print("{:>6} {:>14} {:>15} {:>12} {:>9} {:>8}\n", round, sample.resident, sample.allocated,
             sample.descriptors, sample.mappings, sample.threads);
  std::fflush(stdout);
}

int run(double minutes, std::uint64_t seed) {
  using namespace std::chrono_literals;
  const auto length = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double, std::ratio<60>>(minutes));
  // Rounds are short where there is little time, so that there are enough of them.
  const auto a_round =
      std::clamp(std::chrono::duration_cast<std::chrono::milliseconds>(length / 60),
                 std::chrono::milliseconds(100), std::chrono::milliseconds(2000));
  fmt::print("soak: {} minutes, seed {}\n", minutes, seed);
  Machine machine;
  Rounds rounds(all_activities(machine, seed));
  GrowthCheck growth(static_cast<std::size_t>(length / a_round) + 1);
  fmt::print(" round resident bytes allocated bytes  descriptors  mappings  threads\n");
  const auto begin = Clock::now();
  auto next_row = begin;
  unsigned round = 0;
  std::optional paused = must(machine.gate->pause_vcpus());
  for (bool is_last = false; !is_last; ++round) {
    rounds.begin(round);
    paused.reset();
    rounds.work(a_round);
    paused = must(machine.gate->pause_vcpus());
    rounds.finish();
    if (rounds.wrong()) break;
    rounds.attempt("the machine at rest", [&] { machine.check(); });
    if (rounds.wrong()) break;
    growth.add(Sample::now());
    const auto now = Clock::now();
    is_last = now >= begin + length;
    if (now < next_row && !is_last) continue;
    print(round, growth.samples().back());
    next_row += length / 10;
  }
  auto wrong = rounds.wrong();
  if (!wrong) wrong = growth.grown();
  fmt::print("steps:\n{}", rounds.steps());
  std::fflush(stdout);
  if (wrong) {
    fmt::print(stderr, "soak: FAILED in round {}, seed {}: {}\n", round, seed, *wrong);
    return EXIT_FAILURE;
  }
  fmt::print("soak: {} rounds passed{}\n", round,
             round < GrowthCheck::least_samples ? ", too few to judge growth" : "");
  return EXIT_SUCCESS;
}

/// A text that is a number, and nothing else.
template <typename Number>
std::optional<Number> number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

int run(int argc, char** argv) {
  std::optional<double> minutes = 5;
  std::optional<std::uint64_t> seed = std::random_device()();
  if (argc > 1) minutes = number<double>(argv[1]);
  if (argc > 2) seed = number<std::uint64_t>(argv[2]);
  // At most some two months.
  if (argc > 3 || !minutes || !seed || !(*minutes > 0 && *minutes <= 100'000)) {
    std::fprintf(stderr, "usage: soak [<minutes> [<seed>]]\n");
    return EXIT_FAILURE;
  }
  return run(*minutes, *seed);
}

}  // namespace
}  // namespace vmspace::soak

/// Less of what a sanitizer keeps for its reports: whether this process grows is the question here.
extern "C" const char* __asan_default_options() {
  return "malloc_context_size=12:quarantine_size_mb=32";
}

int main(int argc, char** argv) {
  // Helpers of the tests check by GoogleTest; what they find is thrown to the activity that uses them.
  testing::InitGoogleTest();
  GTEST_FLAG_SET(throw_on_failure, true);
  try {
    if (argc > 1 && std::string_view(argv[1]) == "--take-over") return vmspace::soak::take_over(0);
    return vmspace::soak::run(argc, argv);
  } catch (const std::exception& thrown) {
    std::fprintf(stderr, "soak: %s\n", thrown.what());
    return EXIT_FAILURE;
  }
}
