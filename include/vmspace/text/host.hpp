// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the host layer. Include text.hpp, which has all of them.

#pragma once

#include <string>

#include "vmspace/host.hpp"
#include "vmspace/text/base.hpp"

namespace vmspace {

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(PageKind kind) {
  switch (kind) {
    case PageKind::anonymous: return "anonymous";
    case PageKind::shmem: return "shmem";
    case PageKind::hugetlb: return "hugetlb";
    case PageKind::file: return "file";
    case PageKind::external: return "external";
  }
  return "?";
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(Applied applied) {
  return applied == Applied::applied ? "applied" : "not_applicable";
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(Advice advice) {
  switch (advice) {
    case Advice::normal: return "normal";
    case Advice::random: return "random";
    case Advice::sequential: return "sequential";
    case Advice::cold: return "cold";
    case Advice::page_out: return "page_out";
    case Advice::no_huge_pages: return "no_huge_pages";
  }
  return "?";
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(NumaMode mode) {
  switch (mode) {
    case NumaMode::by_default: return "by_default";
    case NumaMode::preferred: return "preferred";
    case NumaMode::bind: return "bind";
  }
  return "?";
}

/// `bind {0, 1}`.
[[nodiscard]] inline std::string to_text(const NumaPolicy& policy) {
  return detail::concat(to_text(policy.mode), " ", detail::list_text(policy.nodes));
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(PopulateAccess access) {
  switch (access) {
    case PopulateAccess::by_mapping: return "by_mapping";
    case PopulateAccess::read: return "read";
    case PopulateAccess::write: return "write";
  }
  return "?";
}

/// `0x200000 resident, 0x0 huge`; `? huge` where that is not known.
[[nodiscard]] inline std::string to_text(const Residency& residency) {
  return detail::concat(detail::hex(residency.resident), " resident, ",
                        residency.huge ? detail::hex(*residency.huge) : "?", " huge");
}

/// `0x1000+0x2000`.
[[nodiscard]] inline std::string to_text(const Extent& extent) {
  return detail::base_and_size(extent.offset, extent.size);
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(PageQuery query) {
  switch (query) {
    case PageQuery::data: return "data";
    case PageQuery::present: return "present";
    case PageQuery::zero: return "zero";
    case PageQuery::written: return "written";
  }
  return "?";
}

}  // namespace vmspace
