// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks of the snapshot layer have in common. Each part of the layer registers its own
// when the program starts.

#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <utility>

#include <benchmark/benchmark.h>

#include "vmspace/base/result.hpp"

namespace vmspace::bench {

template <typename T>
T expect(Result<T> result) {
  if (!result) {
    std::cerr << result.error().message() << '\n';
    std::exit(1);
  }
  return *std::move(result);
}

/// A file without a name, in the directory that VMSPACE_BENCH_DIR names, or the working directory.
class TempFile {
 public:
  TempFile() {
    const char* directory = std::getenv("VMSPACE_BENCH_DIR");
    fd_ = open(directory != nullptr ? directory : ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd_ < 0) {
      std::perror("a file without a name, in VMSPACE_BENCH_DIR or here");
      std::exit(1);
    }
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  ~TempFile() { close(fd_); }
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

}  // namespace vmspace::bench
