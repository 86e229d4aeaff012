// SPDX-License-Identifier: Apache-2.0
//
// The files that memory of this process is made of, so that none of them is written over.
//
// A file is known by its device and inode, never by its path or descriptor: the same one may be
// open many times and have many names. Every Backing registers its descriptor for as long as it
// lives, and a mapping keeps its Backing. Only what this copy of the library has opened is known.

#pragma once

#include <sys/stat.h>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// Registers an open descriptor, which stays open until it is forgotten. From any thread.
void remember_file(int fd);
/// Undoes remember_file(). Allocates nothing.
void forget_file(int fd) noexcept;

/// Whether a registered descriptor is of this file. Errors: `os` (fstat(2)). A system call for each
/// descriptor.
[[nodiscard]] Result<bool> is_live_file(const char* operation, const struct stat& file);

}  // namespace vmspace::detail
