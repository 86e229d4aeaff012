// SPDX-License-Identifier: Apache-2.0

#pragma once

#include "vmspace/spec/backing_spec.hpp"

namespace vmspace::detail {

/// What a spec lacks for its source, or has although its source can't use it; null when all is well.
/// Of source `none`, and of what the numbers must be, it says nothing.
[[nodiscard]] const char* broken_rule(const BackingSpec& backing) noexcept;

}  // namespace vmspace::detail
