// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the spec layer. Include text.hpp, which has all of them.

#pragma once

#include <string>

#include "vmspace/spec.hpp"
#include "vmspace/text/base.hpp"

namespace vmspace {

/// The bits as in /proc/PID/maps: `rw-`, `r-x`, `---`.
[[nodiscard]] inline std::string to_text(Protection protection) {
  const auto bit = [&](Protection wanted, const char* letter) {
    return allows(protection, wanted) ? letter : "-";
  };
  return detail::concat(bit(Protection::read, "r"), bit(Protection::write, "w"),
                        bit(Protection::execute, "x"));
}

/// Its name_of(): `shmem`.
[[nodiscard]] inline std::string to_text(MemorySource source) {
  return std::string(name_of(source));
}

/// The enumerator's name: `by_source`, `map_shared`, `map_private`.
[[nodiscard]] inline std::string to_text(Sharing sharing) {
  switch (sharing) {
    case Sharing::by_source: return "by_source";
    case Sharing::map_shared: return "map_shared";
    case Sharing::map_private: return "map_private";
  }
  return "?";
}

/// The source, and whatever differs from the default:
/// `file /srv/disk offset 0x1000 page_size 0x200000 map_private discardable`.
[[nodiscard]] inline std::string to_text(const BackingSpec& backing) {
  std::string text = to_text(backing.source);
  if (!backing.path.empty()) text.append(" ").append(backing.path);
  if (backing.fd) text.append(" fd ").append(std::to_string(*backing.fd));
  if (backing.offset != 0) text.append(" offset ").append(detail::hex(backing.offset));
  if (backing.page_size != 0) text.append(" page_size ").append(detail::hex(backing.page_size));
  if (backing.sharing != Sharing::by_source) text.append(" ").append(to_text(backing.sharing));
  if (backing.discardable) text.append(" discardable");
  return text;
}

}  // namespace vmspace
