// SPDX-License-Identifier: Apache-2.0
//
// The demo's output: one line per step, and an error if a step fails.

#pragma once

#include <cstdio>
#include <string_view>
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

/// An error when `holds` is false; `what` states the condition that should have held.
[[nodiscard]] inline vmspace::Result<void> expect(bool holds, std::string_view what) {
  if (holds) return {};
  return vmspace::fail({.code = vmspace::Errc::bad_state,
                        .operation = "tiny_vm",
                        .reason = "expectation failed",
                        .text = {{}, what}});
}

}  // namespace tiny_vm
