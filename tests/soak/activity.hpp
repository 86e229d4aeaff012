// SPDX-License-Identifier: Apache-2.0
//
// Something that goes on in the machine, on a thread of its own, again and again.

#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "vmspace/base/error.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/text/base.hpp"

namespace vmspace::soak {

/// One of the things that a long-lived VMM does. What it finds wrong, it throws, as a std::exception.
///
///   rest     begin(): nobody else works
///   round    step() again and again, while all others do theirs
///   rest     finish(): nobody else works; nothing of the activity is under way when it returns, and what
///            it holds then is the same each time, or nearly, or it would seem to grow
class Activity {
 public:
  Activity(std::string_view name, std::uint64_t seed) : name_(name), random_(seed) {}
  Activity(const Activity&) = delete;
  Activity& operator=(const Activity&) = delete;
  virtual ~Activity() = default;

  virtual void begin(unsigned /*round*/) {}
  virtual void step() = 0;
  virtual void finish() {}

  [[nodiscard]] std::string_view name() const { return name_; }

 protected:
  /// Below `bound`.
  std::uint64_t random(std::uint64_t bound) { return random_() % bound; }

 private:
  std::string_view name_;
  std::mt19937_64 random_;
};

/// Where a check stands: what its caller's place is, as a default argument. (std::source_location is not for
/// every compiler that builds this.)
struct Place {
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

[[noreturn]] inline void wrong(const std::string& what, const Place& place) {
  throw std::runtime_error(std::string(place.file) + ":" + std::to_string(place.line) + ": " +
                           what);
}

/// Throws unless the sentence holds.
inline void require(bool holds, std::string_view sentence, const Place& place = {}) {
  if (!holds) wrong("this should hold: " + std::string(sentence), place);
}

/// The value of a result, or throws its error.
template <typename R>
typename std::remove_cvref_t<R>::value_type must(R&& result, const Place& place = {}) {
  if (!result) wrong(result.error().message(), place);
  return detail::take_value(std::forward<R>(result));
}

/// Throws unless it was refused with this code.
template <typename T>
void must_refuse(const Result<T>& result, Errc code, const Place& place = {}) {
  if (result) wrong("was not refused with " + to_text(code), place);
  if (result.error().code != code)
    wrong("refused, but not with " + to_text(code) + ": " + result.error().message(), place);
}

/// Throws unless the error says that the kernel, or the rights of this process, lack something: another
/// one is a bug.
inline void require_missing(const Error& error, const Place& place = {}) {
  if (error.code != Errc::unsupported && error.code != Errc::access_denied)
    wrong(error.message(), place);
}

/// Says what the soak goes without, and why, as require_missing() has it.
inline void go_without(const char* what, const Error& error, const Place& place = {}) {
  require_missing(error, place);
  std::printf("without %s: %s\n", what, error.message().c_str());
}

class Machine;

// In one file each. Those whose kernel or rights are missing say so, and are null.
std::unique_ptr<Activity> make_allocations(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_hotplug(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_resizing(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_moving(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_decoding(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_blocks(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_devices(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_pages(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_queues(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_translations(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_vhost_user(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_hostile_front_end(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_bad_input(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_processor(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_migration(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_dirty_scan(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_snapshots(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_live_snapshots(Machine& machine, std::uint64_t seed);
std::unique_ptr<Activity> make_handover(Machine& machine, std::uint64_t seed);

/// The other process of a handover: takes the guest from the socket, checks it, and gives it back.
int take_over(int socket);

}  // namespace vmspace::soak
