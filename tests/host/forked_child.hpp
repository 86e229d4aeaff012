// SPDX-License-Identifier: Apache-2.0
//
// A child that has forked, to start a helper, and can't: it ends by std::exit(), which destroys what is
// static, while the parent goes on with it.

#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include <gtest/gtest.h>

namespace vmspace::test {

/// Runs this in a child, and waits for that.
template <typename Body>
void in_a_child(Body body) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(20);  // instead of waiting for threads that it does not have
    body();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

/// Destroys a copy of the object in a child, and in another one by assigning to it.
template <typename T>
void destroy_in_a_child(std::optional<T>& object) {
  in_a_child([&] { object.reset(); });
  in_a_child([&] {
    T from(*std::move(object));
    T to(std::move(from));
    to = std::move(from);
  });
}

}  // namespace vmspace::test
