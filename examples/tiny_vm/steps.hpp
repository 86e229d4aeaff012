// SPDX-License-Identifier: Apache-2.0
//
// How the demo tells what it does: one line a step, and an exception where a step does not hold.
// The library itself never throws; how its errors travel is its caller's choice.

#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "vmspace/base/result.hpp"

namespace tiny_vm {

/// Prints one step.
template <typename... Args>
void say(std::string_view topic, fmt::format_string<Args...> text, Args&&... args) {
  fmt::print("{:<9}{}\n", topic, fmt::format(text, std::forward<Args>(args)...));
  std::fflush(stdout);  // the guest may take its time
}

/// The value of a result, or its error as an exception.
template <typename T>
T need(vmspace::Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message());
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

/// Goes on only when `holds`.
inline void check(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error("this does not hold: " + what);
}

}  // namespace tiny_vm
