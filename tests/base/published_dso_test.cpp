// SPDX-License-Identifier: Apache-2.0
//
// A published value that is used on both sides of the border of a shared object.

#include <memory>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "vmspace/base/published.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::published_dso_test {
namespace {

using Change = void(const Published<int>*, Result<void>* updated, Result<void>* released);

TEST(PublishedDso, AnEditKnowsItsThreadInEverySharedObject) {
  const std::unique_ptr<void, int (*)(void*)> plugin(
      ::dlopen(VMSPACE_TEST_PLUGIN, RTLD_NOW | RTLD_LOCAL), ::dlclose);
  ASSERT_NE(plugin, nullptr) << ::dlerror();
  auto* const change = reinterpret_cast<Change*>(::dlsym(plugin.get(), "vmspace_test_change"));
  ASSERT_NE(change, nullptr) << ::dlerror();

  const Published<int> number{10};
  Result<void> updated;
  Result<void> released;
  change(&number, &updated, &released);
  EXPECT_TRUE(updated);
  EXPECT_TRUE(released);
  EXPECT_EQ(*number.snapshot(), 11);

  // Two identities for one thread would wait for each other here.
  VMSPACE_EXPECT_OK(number.update([&](int& draft) -> Result<void> {
    change(&number, &updated, &released);
    ++draft;
    return {};
  }));
  ASSERT_FALSE(updated);
  EXPECT_THAT(updated, HasError(Errc::would_deadlock));
  ASSERT_FALSE(released);
  EXPECT_THAT(released, HasError(Errc::would_deadlock));
  EXPECT_EQ(*number.snapshot(), 12);
}

}  // namespace
}  // namespace vmspace::published_dso_test
