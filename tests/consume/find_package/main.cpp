// SPDX-License-Identifier: Apache-2.0
//
// A program that uses fmt and the formatters.

#include <fmt/core.h>

#include "vmspace/allocator.hpp"
#include "vmspace/fmt.hpp"

int main() {
  const std::string text = fmt::format("{}", vmspace::Range::of(0x100, 0x1ff));
  return text == "[0x100-0x1ff]" ? 0 : 1;
}
