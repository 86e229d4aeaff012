// SPDX-License-Identifier: Apache-2.0
//
// The files that memory of this process is made from, so that none of them is overwritten.
//
// A file is identified by its device and inode, never by its path or descriptor: one file may be
// open many times and have many names. Every Backing registers its descriptor for as long as it
// lives, and a mapping holds its Backing. Files that were opened by anything else are not known.

#pragma once

#include <sys/stat.h>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// Registers an open descriptor, which must stay open until it is forgotten. From any thread.
void remember_file(int fd);
/// Undoes remember_file(). Allocates nothing.
void forget_file(int fd) noexcept;

/// Whether any registered descriptor refers to this file. Errors: `os` (fstat(2)). A system call
/// for each descriptor.
[[nodiscard]] Result<bool> is_live_file(const char* operation, const struct stat& file);

}  // namespace vmspace::detail
