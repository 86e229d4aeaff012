// SPDX-License-Identifier: Apache-2.0

#include "vmspace/spec/backing_spec.hpp"

#include <unistd.h>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace {
namespace {

using namespace literals;

constexpr MemorySource all_sources[] = {
    MemorySource::none,     MemorySource::anon,      MemorySource::shmem,
    MemorySource::hugeanon, MemorySource::hugeshmem, MemorySource::hugetlbfs,
    MemorySource::file,     MemorySource::device,    MemorySource::external};

TEST(MemorySource, EveryNameReadsBackAsItsSource) {
  for (const MemorySource source : all_sources) {
    EXPECT_EQ(*parse_memory_source(name_of(source)), source) << name_of(source);
  }
  EXPECT_EQ(*parse_memory_source("hugeshmem"), MemorySource::hugeshmem);
  EXPECT_EQ(name_of(static_cast<MemorySource>(99)), "unknown");
}

TEST(MemorySource, OtherTextIsAnErrorThatQuotesItAndListsWhatIsKnown) {
  for (const char* text : {"", "shm", "shmem ", "Shmem", "hugetlb", "unknown", "none,anon"}) {
    const auto source = parse_memory_source(text);
    ASSERT_THAT(source, HasError(Errc::invalid_argument)) << text;
    EXPECT_NE(source.error().message().find("hugeshmem"), std::string::npos);
    EXPECT_EQ(source.error().text.subject(), text);
  }
}

TEST(BackingSpec, HugetlbSourcesHaveTwoMegabytePagesUnlessTheySayOtherwise) {
  for (const MemorySource source : all_sources) {
    const BackingSpec spec{.source = source};
    const bool huge = source == MemorySource::hugeanon || source == MemorySource::hugeshmem ||
                      source == MemorySource::hugetlbfs;
    EXPECT_EQ(spec.is_hugetlb(), huge) << name_of(source);
    EXPECT_EQ(spec.effective_page_size(),
              huge ? 2_MiB : static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)))
        << name_of(source);
    EXPECT_EQ((BackingSpec{.source = source, .page_size = 1_GiB}).effective_page_size(), 1_GiB);
  }
}

TEST(BackingSpec, OnlyAnonymousSourcesArePrivateUnlessTheySayOtherwise) {
  for (const MemorySource source : all_sources) {
    const bool anonymous = source == MemorySource::anon || source == MemorySource::hugeanon;
    EXPECT_EQ((BackingSpec{.source = source}).is_shared(), !anonymous) << name_of(source);
    EXPECT_TRUE((BackingSpec{.source = source, .sharing = Sharing::map_shared}).is_shared());
    EXPECT_FALSE((BackingSpec{.source = source, .sharing = Sharing::map_private}).is_shared());
  }
}

}  // namespace
}  // namespace vmspace
