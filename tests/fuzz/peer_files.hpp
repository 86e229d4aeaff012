// SPDX-License-Identifier: Apache-2.0
//
// What fuzz targets of protocols have in common: a check that ends the run, and files to hand over.

#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace vmspace::fuzz {

inline void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

inline int memory_file(off_t size, int seals) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  check(fd >= 0 && ::ftruncate(fd, size) == 0, "memfd_create");
  check(seals == 0 || ::fcntl(fd, F_ADD_SEALS, seals) == 0, "sealing");
  return fd;
}

}  // namespace vmspace::fuzz
