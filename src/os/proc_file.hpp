// SPDX-License-Identifier: Apache-2.0
//
// The files of /proc and /sys, in which the kernel describes itself. A jail may have neither.

#pragma once

#include <cstddef>
#include <string_view>

namespace vmspace::detail {

/// The first `size` bytes of a file in /proc or /sys; empty when it can't be read.
std::string_view read_start(const char* path, char* buffer, std::size_t size);

}  // namespace vmspace::detail
