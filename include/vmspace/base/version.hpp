// SPDX-License-Identifier: Apache-2.0
//
// The library's version. The build system reads the three numbers below: this is their only place.

#pragma once

#include "vmspace/base/cxx20.hpp"

/// Raised by changes that break programs, once it is above 0.
#define VMSPACE_VERSION_MAJOR 0
/// Raised by additions; while MAJOR is 0, by changes that break programs too.
#define VMSPACE_VERSION_MINOR 1
/// Raised by corrections.
#define VMSPACE_VERSION_PATCH 0

namespace vmspace {

/// A version as semantic versioning understands it (https://semver.org).
struct Version {
  int major;  ///< see VMSPACE_VERSION_MAJOR
  int minor;  ///< see VMSPACE_VERSION_MINOR
  int patch;  ///< see VMSPACE_VERSION_PATCH
};

/// The version of the headers that the caller was compiled with.
inline constexpr Version version{VMSPACE_VERSION_MAJOR, VMSPACE_VERSION_MINOR,
                                 VMSPACE_VERSION_PATCH};

}  // namespace vmspace
