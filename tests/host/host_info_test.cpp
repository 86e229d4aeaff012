// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/host_info.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::host_info_test {
namespace {

using namespace literals;

TEST(HostMemorySize, IsAWholeNumberOfPages) {
  const auto size = host_memory_size();
  ASSERT_THAT(size, IsOk());
  EXPECT_GT(*size, 16_MiB);
  EXPECT_EQ(*size % 1_KiB, 0U);
}

TEST(HostMemorySize, IsKnownInAJailWithoutProc) {
  // mkdtemp(3) replaces the six letters at the end.
  std::string root = (std::filesystem::temp_directory_path() / "vmspace-jail-XXXXXX").string();
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  enum { known, unknown, no_jail };
  const pid_t child = ::fork();
  if (child == 0)
    ::_exit(::chroot(root.c_str()) != 0 ? no_jail : host_memory_size() ? known : unknown);
  int status = -1;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  std::filesystem::remove(root);
  ASSERT_TRUE(WIFEXITED(status));
  // chroot(2) takes CAP_SYS_CHROOT.
  if (WEXITSTATUS(status) == no_jail) GTEST_SKIP() << "may not chroot(2)";
  EXPECT_EQ(WEXITSTATUS(status), known);
}

}  // namespace
}  // namespace vmspace::host_info_test
