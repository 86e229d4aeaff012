// SPDX-License-Identifier: Apache-2.0

#include "vmspace/spec/backing_spec.hpp"

#include <array>
#include <utility>

#include "vmspace/base/literals.hpp"

#include "os/page_size.hpp"

namespace vmspace {

using namespace literals;

namespace {

constexpr std::array<std::pair<std::string_view, MemorySource>, 9> source_names{{
    {"none", MemorySource::none},
    {"anon", MemorySource::anon},
    {"shmem", MemorySource::shmem},
    {"hugeanon", MemorySource::hugeanon},
    {"hugeshmem", MemorySource::hugeshmem},
    {"hugetlbfs", MemorySource::hugetlbfs},
    {"file", MemorySource::file},
    {"device", MemorySource::device},
    {"external", MemorySource::external},
}};

}  // namespace

bool BackingSpec::is_hugetlb() const noexcept {
  return source == MemorySource::hugeanon || source == MemorySource::hugeshmem ||
         source == MemorySource::hugetlbfs;
}

std::uint64_t BackingSpec::effective_page_size() const noexcept {
  if (page_size != 0) return page_size;
  if (is_hugetlb()) return 2_MiB;
  return detail::base_page_size();
}

bool BackingSpec::is_shared() const noexcept {
  if (sharing != Sharing::by_source) return sharing == Sharing::map_shared;
  return source != MemorySource::anon && source != MemorySource::hugeanon;
}

Result<MemorySource> parse_memory_source(std::string_view name) {
  for (const auto& [known, source] : source_names) {
    if (name == known) return source;
  }
  return fail({.code = Errc::invalid_argument,
               .operation = "parse_memory_source",
               .reason = "the sources are none, anon, shmem, hugeanon, hugeshmem, hugetlbfs, file, "
                         "device, external",
               .text = name});
}

std::string_view name_of(MemorySource source) noexcept {
  for (const auto& [name, known] : source_names) {
    if (source == known) return name;
  }
  return "unknown";
}

}  // namespace vmspace
