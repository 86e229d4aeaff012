// SPDX-License-Identifier: Apache-2.0
//
// The version has one place, vmspace/base/version.hpp, which everything else reads. A vcpkg port can't: its
// manifest has a copy, which must be the same.

#include "vmspace/base/version.hpp"

#include <fstream>
#include <iterator>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmspace::lint {
namespace {

TEST(Version, OfTheVcpkgPortIsTheLibrarys) {
  std::ifstream in(VMSPACE_SOURCE_DIR "/cmake/packaging/vcpkg/vcpkg.json");
  const std::string manifest{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  const std::string number = std::to_string(version.major) + "." + std::to_string(version.minor) +
                             "." + std::to_string(version.patch);
  EXPECT_THAT(manifest, testing::HasSubstr("\"version-semver\": \"" + number + "\""));
}

}  // namespace
}  // namespace vmspace::lint
