// SPDX-License-Identifier: Apache-2.0
//
// Userfault and FaultClaim: faults reach this process and are resolved by it, what the kernel or this
// process lacks is named, and memory has one owner of its faults, who is told of discards.

#include "host/userfault.hpp"

#include <poll.h>

#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/fault_owner.hpp"
#include "host/host_support.hpp"

namespace vmspace::userfault_test {
namespace {

using namespace test;
using detail::FaultClaim;
using detail::FaultModes;
using detail::FaultOwner;
using detail::Userfault;
using testing::ElementsAre;
using testing::HasSubstr;
namespace feature = detail::userfault_feature;

constexpr std::uint64_t page = 4_KiB;
constexpr const char* operation = "UserfaultTest";

/// A userfaultfd; skips the test without one.
#define OPEN_OR_SKIP(name, features)                                   \
  auto opened_##name = Userfault::open(operation, features);           \
  if (!opened_##name) GTEST_SKIP() << opened_##name.error().message(); \
  const Userfault name = *std::move(opened_##name)

/// Waits for a fault.
uffd_msg next_fault(const Userfault& faults) {
  pollfd ready{.fd = faults.fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&ready, 1, 10'000), 1) << "no fault arrived";
  uffd_msg message{};
  const auto got = faults.next(operation, message);
  EXPECT_THAT(got, IsOk());
  EXPECT_TRUE(got && *got);
  return message;
}

TEST(Userfault, PutsACopyWhereAPageIsMissing) {
  OPEN_OR_SKIP(faults, 0);
  const MemoryMapping mapping = map_or_die({.source = MemorySource::anon}, {.size = 4 * page});
  VMSPACE_ASSERT_OK(faults.add(operation, mapping.data(), mapping.size(), FaultModes::missing));
  std::byte seen{};
  std::thread reader([&] { seen = *(mapping.data() + page + 5); });
  const uffd_msg message = next_fault(faults);
  EXPECT_EQ(message.event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(message.arg.pagefault.address & ~(page - 1),
            reinterpret_cast<std::uintptr_t>(mapping.data() + page));
  const std::vector<std::byte> contents(page, std::byte{0x5a});
  const auto done = faults.copy(mapping.data() + page, contents.data(), page);
  EXPECT_EQ(done.bytes, page);
  EXPECT_EQ(done.error, 0);
  reader.join();
  EXPECT_EQ(seen, std::byte{0x5a});
  // It is there now.
  const auto again = faults.copy(mapping.data() + page, contents.data(), page);
  EXPECT_EQ(again.bytes, 0U);
  EXPECT_EQ(again.error, EEXIST);
  EXPECT_EQ(faults.zero(mapping.data(), page).bytes, page);
  EXPECT_EQ(*mapping.data(), std::byte{0});
  VMSPACE_EXPECT_OK(faults.remove(operation, mapping.data(), mapping.size()));
  EXPECT_EQ(*(mapping.data() + 3 * page), std::byte{0}) << "no fault any more";
}

TEST(Userfault, MapsAPageOfAFileThatWasFilledThroughAnotherMapping) {
  OPEN_OR_SKIP(faults, feature::minor_shmem);
  const auto backing =
      Backing::open({.source = MemorySource::shmem}, 4 * page, Protection::read_write);
  ASSERT_THAT(backing, IsOk());
  const auto mapping = MemoryMapping::map(*backing, {.size = 4 * page});
  const auto alias = MemoryMapping::map(*backing, {.size = 4 * page});
  ASSERT_THAT(mapping, IsOk());
  ASSERT_THAT(alias, IsOk());
  VMSPACE_ASSERT_OK(faults.add(operation, mapping->data(), mapping->size(),
                               FaultModes::missing | FaultModes::minor));
  EXPECT_EQ(faults.map_minor(mapping->data(), page).error, EFAULT) << "the file has no page there";
  std::memset(alias->data(), 0x77, page);
  const auto done = faults.map_minor(mapping->data(), page);
  EXPECT_EQ(done.bytes, page);
  EXPECT_EQ(*mapping->data(), std::byte{0x77});
}

TEST(Userfault, ReportsWritesToProtectedPages) {
  OPEN_OR_SKIP(faults, feature::write_protect);
  const MemoryMapping mapping = map_or_die({.source = MemorySource::anon}, {.size = 2 * page});
  std::memset(mapping.data(), 1, mapping.size());
  VMSPACE_ASSERT_OK(
      faults.add(operation, mapping.data(), mapping.size(), FaultModes::write_protect));
  EXPECT_EQ(faults.protect(mapping.data(), mapping.size(), true), 0);
  std::thread writer([&] { *mapping.data() = std::byte{2}; });
  const uffd_msg message = next_fault(faults);
  EXPECT_NE(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP, 0U);
  EXPECT_EQ(*mapping.data(), std::byte{1}) << "the writer waits";
  EXPECT_EQ(faults.protect(mapping.data(), page, false), 0);
  writer.join();
  EXPECT_EQ(*mapping.data(), std::byte{2});
}

TEST(Userfault, NamesMemoryThatAnotherHandles) {
  OPEN_OR_SKIP(faults, 0);
  OPEN_OR_SKIP(others, 0);
  const MemoryMapping mapping = map_or_die({.source = MemorySource::anon}, {.size = page});
  VMSPACE_ASSERT_OK(faults.add(operation, mapping.data(), page, FaultModes::missing));
  EXPECT_THAT(others.add(operation, mapping.data(), page, FaultModes::missing),
              HasError(Errc::bad_state));
}

TEST(Userfault, SaysWhatIsMissing) {
  {
    Injector injector;
    injector.table().open = [](const char*, int, mode_t) {
      errno = ENOENT;
      return -1;
    };
    injector.table().userfaultfd = [](int) {
      errno = EPERM;
      return -1;
    };
    const auto denied = Userfault::open(operation, 0);
    ASSERT_THAT(denied, HasError(Errc::access_denied));
    EXPECT_THAT(denied.error().message(), HasSubstr("vm.unprivileged_userfaultfd=1"));
    injector.table().userfaultfd = [](int) {
      errno = ENOSYS;
      return -1;
    };
    EXPECT_THAT(Userfault::open(operation, 0), HasError(Errc::unsupported));
  }
  OPEN_OR_SKIP(faults, 0);
  Injector injector;
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    const int result = detail::real_system_calls.ioctl(fd, request, argument);
    if (request == UFFDIO_API) static_cast<uffdio_api*>(argument)->features &= ~feature::poison;
    return result;
  };
  const auto lacking = Userfault::open(operation, feature::poison);
  ASSERT_THAT(lacking, HasError(Errc::unsupported));
  EXPECT_THAT(lacking.error().message(), HasSubstr("can't poison pages"));
}

/// Notes what it is told, as page numbers.
class Recorder final : public FaultOwner {
 public:
  explicit Recorder(const char* name = "LazyRestore") : name_(name) {}
  [[nodiscard]] const char* name() const noexcept override { return name_; }
  [[nodiscard]] bool only_watches() const noexcept override { return watches; }
  Result<void> begin_discard(std::uint64_t first, std::uint64_t end) override {
    if (refuses) {
      return fail({.code = Errc::timed_out, .operation = operation, .reason = "not now"});
    }
    begun.emplace_back(first / page, end / page);
    return {};
  }
  void end_discard(std::uint64_t first, std::uint64_t end, bool discarded) noexcept override {
    ended.emplace_back(first / page, end / page);
    all_discarded = all_discarded && discarded;
  }

  using Pages = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  Pages begun, ended;
  [[nodiscard]] bool allows_pins() const noexcept override { return pins; }

  bool refuses = false;
  bool pins = true;
  bool watches = false;
  bool all_discarded = true;

 private:
  const char* name_;
};

TEST(FaultClaim, IsOfOneOwnerAtATime) {
  const MemoryMapping mapping = map_or_die({.source = MemorySource::anon}, {.size = 4 * page});
  Recorder first;
  Recorder second("LiveSnapshot");
  EXPECT_EQ(FaultClaim::holder(mapping), nullptr);
  {
    const auto claim = FaultClaim::make(operation, mapping, first);
    ASSERT_THAT(claim, IsOk());
    EXPECT_STREQ(FaultClaim::holder(mapping), "LazyRestore");
    const auto refused = FaultClaim::make(operation, mapping, second);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("LazyRestore"));
    EXPECT_THAT(detail::require_unclaimed(operation, mapping, Operand::size(1), "not now"),
                HasError(Errc::bad_state));
  }
  EXPECT_THAT(FaultClaim::make(operation, mapping, second), IsOk());
  EXPECT_EQ(FaultClaim::holder(mapping), nullptr);
}

TEST(FaultClaim, ExcludesPinsIfItsOwnerSaysSo) {
  const MemoryMapping mapping = map_or_die({.source = MemorySource::anon}, {.size = 4 * page});
  Recorder lenient;
  Recorder strict("LiveSnapshot");
  strict.pins = false;
  {
    const auto claim = FaultClaim::make(operation, mapping, lenient);
    ASSERT_THAT(claim, IsOk());
    EXPECT_THAT(mapping.pin(0, page, "nic0"), IsOk());
  }
  {
    const auto pin = mapping.pin(page, page, "nic0");
    ASSERT_THAT(pin, IsOk());
    const auto refused = FaultClaim::make(operation, mapping, strict);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("nic0"));
    EXPECT_EQ(FaultClaim::holder(mapping), nullptr);
  }
  const auto claim = FaultClaim::make(operation, mapping, strict);
  ASSERT_THAT(claim, IsOk());
  const auto refused = mapping.pin(3 * page, page, "nic0");
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("LiveSnapshot"));
}

TEST(FaultClaim, OfOneWhoOnlyWatchesIsInNobodysWay) {
  const auto backing =
      Backing::open({.source = MemorySource::shmem}, 16 * page, Protection::read_write);
  ASSERT_THAT(backing, IsOk());
  const auto low = MemoryMapping::map(*backing, {.size = 4 * page});
  const auto high = MemoryMapping::map(*backing, {.size = 4 * page, .offset = 8 * page});
  const auto all = MemoryMapping::map(*backing, {.size = 16 * page});
  Recorder watcher("DirtyScan");
  watcher.watches = true;
  Recorder other;
  const auto low_claim = FaultClaim::make(operation, *low, watcher);
  ASSERT_THAT(low_claim, IsOk());
  EXPECT_EQ(FaultClaim::holder(*low), nullptr);
  EXPECT_THAT(FaultClaim::make(operation, *low, other), HasError(Errc::bad_state));
  EXPECT_EQ(FaultClaim::holder(*all), nullptr);
  const auto high_claim = FaultClaim::make(operation, *high, other);
  ASSERT_THAT(high_claim, IsOk());
  EXPECT_STREQ(FaultClaim::holder(*all), "LazyRestore");
}

TEST(FaultClaim, TellsItsOwnerOfDiscardsThroughAnyMappingOfTheFile) {
  const auto backing =
      Backing::open({.source = MemorySource::shmem}, 16 * page, Protection::read_write);
  ASSERT_THAT(backing, IsOk());
  const auto low = MemoryMapping::map(*backing, {.size = 4 * page});
  const auto high = MemoryMapping::map(*backing, {.size = 4 * page, .offset = 8 * page});
  const auto all = MemoryMapping::map(*backing, {.size = 16 * page});
  ASSERT_THAT(low, IsOk());
  ASSERT_THAT(high, IsOk());
  ASSERT_THAT(all, IsOk());
  Recorder owner;
  Recorder other;
  const auto low_claim = FaultClaim::make(operation, *low, owner);
  const auto high_claim = FaultClaim::make(operation, *high, other);
  ASSERT_THAT(low_claim, IsOk());
  ASSERT_THAT(high_claim, IsOk());
  std::memset(all->data(), 1, all->size());

  VMSPACE_EXPECT_OK(all->discard(5 * page, 2 * page));
  EXPECT_TRUE(owner.begun.empty());
  VMSPACE_EXPECT_OK(all->discard(2 * page, 8 * page));
  EXPECT_THAT(owner.begun, ElementsAre(std::pair(2U, 4U)));
  EXPECT_EQ(owner.ended, owner.begun);
  EXPECT_THAT(other.begun, ElementsAre(std::pair(8U, 10U)));
  EXPECT_EQ(other.ended, other.begun);
  EXPECT_TRUE(owner.all_discarded && other.all_discarded);
  EXPECT_TRUE(holds(*all, 2 * page, 8 * page, 0));

  // Refused by the second: the first hears that its pages are as before.
  other.refuses = true;
  EXPECT_THAT(all->discard(0, 16 * page), HasError(Errc::timed_out));
  EXPECT_EQ(owner.ended.size(), 2U);
  EXPECT_FALSE(owner.all_discarded);
  EXPECT_TRUE(holds(*all, 0, 2 * page, 1));
}

}  // namespace
}  // namespace vmspace::userfault_test
