// SPDX-License-Identifier: Apache-2.0
//
// Makes system calls of the memory layer fail.
//
// An Injector stands in the place of the kernel for as long as it lives: every call is numbered and
// named, and the one that a test has picked fails with the errno it has picked, once. A loop over
// all numbers and errnos shows what any failure does. To make a call of a test's own take part, use
// `replace`.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"

namespace vmspace::test {

class Injector {
 public:
  Injector() {
    route<&detail::SystemCalls::mmap>("mmap");
    route<&detail::SystemCalls::munmap>("munmap");
    route<&detail::SystemCalls::mremap>("mremap");
    route<&detail::SystemCalls::mprotect>("mprotect");
    route<&detail::SystemCalls::madvise>("madvise");
    route<&detail::SystemCalls::msync>("msync");
    route<&detail::SystemCalls::mlock>("mlock");
    route<&detail::SystemCalls::munlock>("munlock");
    route<&detail::SystemCalls::mincore>("mincore");
    route<&detail::SystemCalls::mbind>("mbind");
    route<&detail::SystemCalls::get_mempolicy>("get_mempolicy");
    route<&detail::SystemCalls::prctl>("prctl");
    route<&detail::SystemCalls::sched_getaffinity>("sched_getaffinity");
    route<&detail::SystemCalls::sched_setaffinity>("sched_setaffinity");
    route<&detail::SystemCalls::memfd_create>("memfd_create");
    route<&detail::SystemCalls::open>("open");
    route<&detail::SystemCalls::getentropy>("getentropy");
    route<&detail::SystemCalls::unlink>("unlink");
    route<&detail::SystemCalls::close>("close");
    route<&detail::SystemCalls::fcntl>("fcntl");
    route<&detail::SystemCalls::fstat>("fstat");
    route<&detail::SystemCalls::fstatfs>("fstatfs");
    route<&detail::SystemCalls::ftruncate>("ftruncate");
    route<&detail::SystemCalls::fallocate>("fallocate");
    route<&detail::SystemCalls::lseek>("lseek");
    route<&detail::SystemCalls::read>("read");
    route<&detail::SystemCalls::write>("write");
    route<&detail::SystemCalls::pread>("pread");
    route<&detail::SystemCalls::pwrite>("pwrite");
    route<&detail::SystemCalls::preadv2>("preadv2");
    route<&detail::SystemCalls::pwritev2>("pwritev2");
    route<&detail::SystemCalls::userfaultfd>("userfaultfd");
    route<&detail::SystemCalls::eventfd>("eventfd");
    route<&detail::SystemCalls::membarrier>("membarrier");
    route<&detail::SystemCalls::ioctl>("ioctl");
    route<&detail::SystemCalls::sendmsg>("sendmsg");
    route<&detail::SystemCalls::recvmsg>("recvmsg");
    route<&detail::SystemCalls::poll>("poll");
    route<&detail::SystemCalls::shutdown>("shutdown");
    route<&detail::SystemCalls::getsockopt>("getsockopt");
    route<&detail::SystemCalls::sysinfo>("sysinfo");
    route<&detail::SystemCalls::pthread_create>("pthread_create");
    start({});
    detail::current_system_calls.store(&calls_);
  }
  Injector(const Injector&) = delete;
  Injector& operator=(const Injector&) = delete;
  ~Injector() { detail::current_system_calls.store(&detail::real_system_calls); }

  /// From now on call number `index` (from 0) fails with `error`.
  void fail_call(std::size_t index, int error) { start({.index = index, .error = error}); }
  /// From now on the next call of this name fails with `error`, or every one.
  void fail_next(std::string name, int error) { start({.name = std::move(name), .error = error}); }
  void fail_always(std::string name, int error) {
    start({.name = std::move(name), .error = error, .always = true});
  }
  /// Nothing fails; counts from 0 again.
  void fail_none() { start({}); }

  /// The names of the calls made since then.
  [[nodiscard]] std::vector<std::string> calls() const {
    const std::lock_guard lock(mutex());
    return state().calls;
  }
  [[nodiscard]] std::size_t count(const std::string& name) const {
    const auto all = calls();
    return static_cast<std::size_t>(std::count(all.begin(), all.end(), name));
  }
  /// Whether the failure that was asked for has happened.
  [[nodiscard]] bool has_failed() const { return !failed_call().empty(); }
  /// The name of the call that failed: where threads call the kernel, that of a number differs from
  /// one run to the next.
  [[nodiscard]] std::string failed_call() const {
    const std::lock_guard lock(mutex());
    return state().failed;
  }

  /// From now on no file of /proc or /sys can be opened, as in a jail that has neither. Lasts as long
  /// as the injector; the calls to open are not counted any more.
  void hide_proc_and_sys() {
    calls_.open = [](const char* path, int flags, mode_t mode) {
      const std::string_view name(path);
      if (name.starts_with("/proc/") || name.starts_with("/sys/")) {
        errno = ENOENT;
        return -1;
      }
      return detail::real_system_calls.open(path, flags, mode);
    };
  }

  /// From now on no advice makes pages present, as before Linux 5.14. Lasts as long as the injector; the
  /// calls to madvise are not counted any more.
  void forget_populating() {
    calls_.madvise = [](void* start, std::size_t size, int advice) {
      if (advice != MADV_POPULATE_READ && advice != MADV_POPULATE_WRITE)
        return detail::real_system_calls.madvise(start, size, advice);
      errno = EINVAL;
      return -1;
    };
  }

  /// The table in force, for a test that needs a call to do something else.
  [[nodiscard]] detail::SystemCalls& table() { return calls_; }

 private:
  struct State {
    std::size_t index = 0;
    std::string name = {};
    int error = 0;
    bool always = false;
    std::string failed = {};
    std::vector<std::string> calls = {};
  };

  static State& state() {
    static State state;
    return state;
  }
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  /// Kept for ever: a thread of the library may be about to make a call by it when the injector goes.
  static detail::SystemCalls& make_table() {
    static std::deque<detail::SystemCalls> all;
    const std::lock_guard lock(mutex());
    return all.emplace_back(detail::real_system_calls);
  }
  static void start(State next) {
    const std::lock_guard lock(mutex());
    state() = std::move(next);
  }

  /// Notes a call, and tells the errno that it shall fail with; 0: none.
  static int error_for(const char* name) {
    const std::lock_guard lock(mutex());
    State& now = state();
    const bool picked = now.name.empty() ? now.calls.size() == now.index : now.name == name;
    now.calls.emplace_back(name);
    if (now.error == 0 || !picked || (!now.failed.empty() && !now.always)) return 0;
    now.failed = name;
    return now.error;
  }

  /// Whether a descriptor is of /proc/self/pagemap.
  static bool is_pagemap(int fd) {
    std::array<char, 64> path{};
    const auto size =
        ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path.data(), path.size());
    return size > 0 &&
           std::string_view(path.data(), static_cast<std::size_t>(size)).ends_with("/pagemap");
  }

  template <auto member>
  struct Route;

  template <typename R, typename... A, R (*detail::SystemCalls::*member)(A...)>
  struct Route<member> {
    static inline const char* name = "";

    /// Before Linux 6.7 page tables are read where they are scanned later, and other calls stand in for
    /// both; for a pread of a file none does.
    static const char* name_of(A... arguments) {
      if constexpr (std::is_same_v<decltype(member), decltype(&detail::SystemCalls::pread)>) {
        if (is_pagemap(std::get<0>(std::tie(arguments...)))) return "pread of pagemap";
      }
      return name;
    }

    static R call(A... arguments) {
      const int error = error_for(name_of(arguments...));
      if (error == 0) return (detail::real_system_calls.*member)(arguments...);
      // What the errors of these two mean: the descriptor is closed all the same (close(2)), and
      // there is no errno (pthread_create(3)).
      if constexpr (std::is_same_v<decltype(member), decltype(&detail::SystemCalls::close)>) {
        // userfaultfd(2) has the same type, and opens.
        if (member == &detail::SystemCalls::close)
          (detail::real_system_calls.*member)(arguments...);
      }
      if constexpr (sizeof...(A) == 4 && (std::is_same_v<A, pthread_t*> || ...)) return error;
      errno = error;
      if constexpr (std::is_pointer_v<R>) {
        return MAP_FAILED;
      } else {
        return -1;
      }
    }
  };

  template <auto member>
  void route(const char* name) {
    Route<member>::name = name;
    calls_.*member = &Route<member>::call;
  }

  detail::SystemCalls& calls_ = make_table();
};

}  // namespace vmspace::test
