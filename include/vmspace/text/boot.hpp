// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the boot layer. Include text.hpp, which has all of them.

#pragma once

#include <string>

#include "vmspace/boot.hpp"
#include "vmspace/text/address_space.hpp"

namespace vmspace {

/// The enumerator's name: `ram`, `reserved`.
[[nodiscard]] inline std::string to_text(E820Type type) {
  switch (type) {
    case E820Type::ram: return "ram";
    case E820Type::reserved: return "reserved";
  }
  return "?";
}

/// `reserved 0x9fc00+0x60400`.
[[nodiscard]] inline std::string to_text(const E820Entry& entry) {
  return detail::concat(to_text(entry.type), " ",
                        detail::base_and_size(entry.base.value(), entry.size));
}

}  // namespace vmspace
