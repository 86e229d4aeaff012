// SPDX-License-Identifier: Apache-2.0
//
// Handovers that are not what they should be, and peers that don't do what they should.

#include <fcntl.h>
#include <sys/resource.h>

#include <functional>
#include <limits>
#include <string>
#include <thread>

#include "vmspace/snapshot/handover.hpp"

#include "snapshot/handover_format.hpp"
#include "snapshot/handover_support.hpp"

namespace vmspace::handover_hostile_test {
namespace {

using detail::HandoverFile;
using detail::HandoverHead;
using detail::HandoverMap;
using detail::HandoverRegion;
using ::testing::AnyOf;
using namespace test;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();
constexpr auto commit = detail::handover_commit;
constexpr auto ready = detail::handover_ready;

/// Expects that nothing stays open or mapped, whatever `body` does.
void expect_no_leak(const std::function<void()>& body) {
  body();  // what is made once stays
  const auto descriptors = open_descriptors();
  const std::uint64_t mapped = address_space_bytes();
  body();
  EXPECT_EQ(open_descriptors(), descriptors);
  // Not a page more, but for what malloc keeps.
  EXPECT_LT(address_space_bytes(), mapped + 1_MiB);
}

TEST(HostileHandover, IsRefusedWhereverItEnds) {
  const Recording whole = Recording::of(sample_guest());
  const auto fds = whole.fds();
  expect_no_leak([&] {
    for (std::size_t size = 0; size <= whole.bytes.size(); ++size) {
      const auto taken = receive_from(std::span(whole.bytes).first(size), fds);
      ASSERT_THAT(taken, HasError(Errc::os)) << size;
      EXPECT_EQ(taken.error().os_errno, ECONNRESET);
    }
  });
  std::vector<std::byte> all = whole.bytes;
  all.push_back(commit);
  const auto taken = receive_from(all, fds);
  ASSERT_THAT(taken, IsOk());
  expect_sample(*taken);
}

TEST(HostileHandover, AlteredAnywhereItIsRefusedOrAGuest) {
  const Recording whole = Recording::of(sample_guest());
  const auto fds = whole.fds();
  std::vector<std::byte> bytes = whole.bytes;
  bytes.push_back(commit);
  expect_no_leak([&] {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      for (const unsigned flip : {0x01U, 0x80U, 0xffU}) {
        const std::byte before = bytes[i];
        bytes[i] ^= static_cast<std::byte>(flip);
        const auto taken = receive_from(bytes, fds, {.max_state = 1_MiB});
        bytes[i] = before;
        if (!taken) continue;
        EXPECT_THAT(taken->memory.check_invariants(), IsOk()) << i;
        EXPECT_THAT(taken->space.check_invariants(), IsOk()) << i;
      }
    }
  });
}

/// A guest of one region, as it is sent.
struct Made {
  HandoverMap map = {.layout = {.phys_max = 4_GiB - 1, .ram = Range::of(0, 4_GiB - 1)},
                     .files = {{.size = 16 * page}},
                     .regions = {ram("ram", 0, 16 * page)}};
  HandoverHead head = {.files = 1};
  std::vector<std::byte> rest = {commit};

  static HandoverRegion ram(const char* name, std::uint64_t base, std::uint64_t size) {
    return {.options = {.name = name,
                        .base = GuestAddress(base),
                        .size = size,
                        .backing = {.source = MemorySource::shmem}},
            .place = detail::HandoverPlace{}};
  }

  [[nodiscard]] std::vector<std::byte> bytes() const {
    const auto encoded = detail::encode_handover(map);
    VMSPACE_EXPECT_OK(encoded);
    HandoverHead full = head;
    if (full.map_size == 0) full.map_size = encoded->size();
    const auto raw = std::as_bytes(std::span(&full, 1));
    std::vector<std::byte> all(raw.begin(), raw.end());
    if (full.files != 0) all.push_back(detail::handover_files);
    all.insert(all.end(), encoded->begin(), encoded->end());
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  }
};

Result<Handover> receive_made(const std::function<void(Made&)>& alter,
                              const ReceiveHandoverOptions& options = {}) {
  static const Fd file = memory_file(16 * page);
  Made made;
  alter(made);
  const std::vector<int> fds(std::min<std::size_t>(made.head.files, 253), file.get());
  return receive_from(made.bytes(), fds, options);
}

TEST(HostileHandover, NumbersThatMakeNoSenseAreRefused) {
  ASSERT_THAT(receive_made([](Made&) {}), IsOk());
  const auto region = [](Made& made) -> RegionOptions& { return made.map.regions[0].options; };
  const auto place = [](Made& made) -> detail::HandoverPlace& {
    return *made.map.regions[0].place;
  };
  const std::vector<std::function<void(Made&)>> alterations = {
      [&](Made& m) { region(m).size = 0; },
      [&](Made& m) { region(m).size = page + 1; },
      [&](Made& m) { region(m).size = 17 * page; },
      [&](Made& m) { region(m).size = 0 - page; },
      [&](Made& m) { region(m).base = GuestAddress(1); },
      [&](Made& m) { region(m).base = GuestAddress(0 - page); },
      [&](Made& m) { region(m).base = GuestAddress(4_GiB - page); },
      [&](Made& m) { region(m).protection = static_cast<Protection>(8); },
      [&](Made& m) { region(m).type = static_cast<RegionType>(4); },
      [&](Made& m) { region(m).backing.source = static_cast<MemorySource>(9); },
      [&](Made& m) { region(m).backing.source = MemorySource::none; },
      [&](Made& m) { region(m).backing.source = MemorySource::device; },
      [&](Made& m) { region(m).backing.source = MemorySource::external; },
      [&](Made& m) { region(m).backing.source = MemorySource::hugeshmem; },
      [&](Made& m) { region(m).backing.sharing = static_cast<Sharing>(3); },
      [&](Made& m) { region(m).backing.page_size = 3; },
      [&](Made& m) { region(m).backing.page_size = 2_MiB; },
      [&](Made& m) { region(m).backing.offset = page; },
      [&](Made& m) { region(m).backing.path = "/etc/passwd"; },
      [&](Made& m) { region(m).backing.fd = 0; },
      [&](Made& m) {
        region(m).numa_node = 1'000'000;
        place(m).numa_mode = NumaMode::bind;
      },
      [&](Made& m) { place(m).file = 1; },
      [&](Made& m) { place(m).offset = 1; },
      [&](Made& m) { place(m).offset = page; },
      [&](Made& m) { place(m).offset = 0 - page; },
      [&](Made& m) { place(m).numa_mode = static_cast<NumaMode>(3); },
      [&](Made& m) { place(m).block_size = page; },
      [&](Made& m) { place(m).slot_size = page; },
      [&](Made& m) {
        place(m).present = {{0, page}};
      },
      [&](Made& m) { place(m).block_size = place(m).slot_size = 3 * page; },
      [&](Made& m) { place(m).block_size = place(m).slot_size = 512; },
      [&](Made& m) { place(m).block_size = place(m).slot_size = top; },
      [&](Made& m) {
        place(m).block_size = place(m).slot_size = page;
        place(m).present = {{0, 2 * page}, {page, page}};
      },
      [&](Made& m) {
        place(m).block_size = place(m).slot_size = page;
        place(m).present = {{15 * page, 2 * page}};
      },
      [&](Made& m) { m.map.files[0].size = 17 * page; },
      [&](Made& m) { m.map.files[0].size = 0; },
      [&](Made& m) { m.map.files[0].size = top; },
      [&](Made& m) { m.map.files[0].offset = page; },
      [&](Made& m) { m.map.files[0].offset = 0 - page; },
      [&](Made& m) { m.map.files[0].page_size = 512; },
      [&](Made& m) { m.map.files[0].page_size = 5000; },
      [&](Made& m) { m.map.files[0].page_size = 2_MiB; },
      [&](Made& m) { m.map.regions.push_back(Made::ram("over", 15 * page, page)); },
      [&](Made& m) { m.map.regions.clear(); },
      [&](Made& m) { m.map.regions[0].parked = true; },
      [&](Made& m) {
        m.map.regions.insert(m.map.regions.begin(),
                             {.options = {.name = "parked", .size = page}, .parked = true});
      },
      [&](Made& m) { m.map.files.push_back(m.map.files[0]), m.head.files = 2; },
      [&](Made& m) { m.map.layout.phys_max = page; },
      [&](Made& m) { m.map.layout.ram.reset(); },
      [&](Made& m) {
        m.map.layout.apertures = {{"a", Range::of(0, page), static_cast<ApertureUse>(3)}};
      },
      [&](Made& m) {
        m.map.layout.holes = {{"h", Range::of(0, page)}};
      },
      [&](Made& m) { m.head.magic[0] = 'V'; },
      [&](Made& m) { m.head.version = 0; },
      [&](Made& m) { m.head.version = 2; },
      [&](Made& m) { m.head.flags = 2; },
      [&](Made& m) { m.head.reserved = 1; },
      [&](Made& m) { m.head.map_size = 16_MiB + 1; },
      [&](Made& m) { m.head.files = 513; },
      [&](Made& m) { m.head.state_size = 64_MiB + 1; },
      [&](Made& m) { m.head.state_size = 64_MiB; },
      // A bit past the last page of the region.
      [&](Made& m) {
        m.head.flags = detail::handover_tracked;
        m.rest.insert(m.rest.begin(), 8, std::byte{0xff});
      },
  };
  for (std::size_t i = 0; i < alterations.size(); ++i) {
    expect_no_leak([&] { EXPECT_THAT(receive_made(alterations[i]), ::testing::Not(IsOk())) << i; });
  }
}

TEST(HostileHandover, NothingIsAllocatedForWhatIsOnlyAnnounced) {
  const auto taken =
      receive_made([](Made& made) { made.head.state_size = top / 2; }, {.max_state = top});
  EXPECT_THAT(taken, HasError(Errc::os));
}

TEST(HostileHandover, MoreMemoryThanIsWantedIsRefused) {
  EXPECT_THAT(receive_made([](Made&) {}, {.max_memory = 16 * page}), IsOk());
  EXPECT_THAT(receive_made([](Made&) {}, {.max_memory = 16 * page - 1}),
              HasError(Errc::limit_exceeded));
}

TEST(HostileHandover, BlocksThatCostTooMuchAreRefusedOnBothSides) {
  Made made;
  made.map.layout = {.phys_max = top, .ram = Range::of(0, top)};
  HandoverRegion region = made.map.regions[0];
  region.options.size = std::uint64_t{1} << 43;
  region.place->block_size = 2_MiB;
  region.place->slot_size = 1_GiB;
  region.place->present = {{0, page}};
  made.map.regions.assign(20, region);
  std::vector<std::byte> bytes = made.bytes();
  for (HandoverRegion& many : made.map.regions)
    many.place->slot_size = 2_MiB;
  EXPECT_THAT(detail::encode_handover(made.map), HasError(Errc::limit_exceeded)) << "slots";
  for (HandoverRegion& many : made.map.regions) {
    many.place->block_size = page;
    many.place->slot_size = 1_GiB;
  }
  EXPECT_THAT(detail::encode_handover(made.map), HasError(Errc::limit_exceeded));
  // As a sender without that limit would send it.
  const std::array<std::byte, 8> large{std::byte{0}, std::byte{0}, std::byte{0x20}};
  const std::array<std::byte, 8> small{std::byte{0}, std::byte{0x10}};
  for (auto at = bytes.begin();;) {
    at = std::search(at, bytes.end(), large.begin(), large.end());
    if (at == bytes.end()) break;
    std::ranges::copy(small, at);
  }
  const Fd file = memory_file(16 * page);
  EXPECT_THAT(receive_from(bytes, std::array{file.get()}, {.max_memory = top}),
              HasErrorThat(::testing::Field(&Error::reason, ::testing::HasSubstr("blocks"))));
}

TEST(HostileHandover, WhatNoReceiverWouldTakeIsNotSent) {
  const auto encoded = [](const std::function<void(HandoverMap&)>& alter) {
    Made made;
    alter(made.map);
    return detail::encode_handover(made.map);
  };
  const auto add = [](HandoverMap& map, std::size_t count, const HandoverRegion& region) {
    map.regions.insert(map.regions.end(), count, region);
  };
  const HandoverRegion parked{.options = {.size = page}, .parked = true};
  VMSPACE_EXPECT_OK(encoded([&](HandoverMap& map) { add(map, 1024, parked); }));
  EXPECT_THAT(encoded([&](HandoverMap& map) { add(map, 1025, parked); }),
              HasError(Errc::limit_exceeded));
  EXPECT_THAT(encoded([&](HandoverMap& map) { add(map, 65'536, map.regions[0]); }),
              HasError(Errc::limit_exceeded));
  HandoverRegion named = parked;
  named.parked = false;
  named.options.name = std::string(1024, 'n');
  EXPECT_THAT(encoded([&](HandoverMap& map) { add(map, 16'384, named); }),
              HasError(Errc::limit_exceeded))
      << "more than 16 MiB";
  EXPECT_THAT(encoded([](HandoverMap& map) {
                map.layout.holes.assign(257, {"hole", Range::point(0)});
              }),
              HasError(Errc::limit_exceeded));
  EXPECT_THAT(encoded([](HandoverMap& map) {
                map.regions[0].place->present.assign(4097, {0, page});
              }),
              HasError(Errc::limit_exceeded));
  const auto with_path = [&](const std::string& path) {
    return encoded([&](HandoverMap& map) { map.regions[0].options.backing.path = path; });
  };
  VMSPACE_EXPECT_OK(with_path(std::string(4095, 'p')));
  EXPECT_THAT(with_path(std::string(4096, 'p')), HasError(Errc::limit_exceeded));
  EXPECT_THAT(with_path(std::string("a\0b", 3)), HasError(Errc::invalid_argument));
}

TEST(HostileHandover, TextsThatCantBePrintedAreRefused) {
  std::vector<std::byte> bytes = Made{}.bytes();
  const std::string name = "ram";
  const auto wanted = std::as_bytes(std::span(name));
  const auto found = std::search(bytes.begin(), bytes.end(), wanted.begin(), wanted.end());
  ASSERT_NE(found, bytes.end());
  const Fd file = memory_file(16 * page);
  for (const unsigned wrong : {0x00U, 0x0aU, 0x7fU, 0x80U, 0xffU}) {
    *found = static_cast<std::byte>(wrong);
    EXPECT_THAT(receive_from(bytes, std::array{file.get()}), HasError(Errc::corrupt)) << wrong;
  }
}

TEST(HostileHandover, DescriptorsThatAreNotAsAnnouncedAreRefused) {
  const std::vector<std::byte> bytes = Made{}.bytes();
  const Fd file = memory_file(16 * page);
  expect_no_leak([&] {
    EXPECT_THAT(receive_from(bytes, {}), HasError(Errc::corrupt));
    EXPECT_THAT(receive_from(bytes, std::array{file.get(), file.get()}), HasError(Errc::corrupt));
    EXPECT_THAT(receive_from(bytes, std::vector<int>(253, file.get())), HasError(Errc::corrupt));
    // Where none belong: with the map.
    Ends ends;
    const auto all = std::span(bytes);
    ASSERT_TRUE(send_piece(ends.sender.get(), all.first(Recording::head)));
    ASSERT_TRUE(
        send_piece(ends.sender.get(), all.subspan(Recording::head, 1), std::array{file.get()}));
    ASSERT_TRUE(
        send_piece(ends.sender.get(), all.subspan(Recording::head + 1), std::array{file.get()}));
    EXPECT_THAT(receive_handover(ends.receiver.get()), HasError(Errc::corrupt));
  });
}

TEST(HostileHandover, DescriptorsThatAreNoMemoryAreRefused) {
  const std::vector<std::byte> bytes = Made{}.bytes();
  int pipe_ends[2] = {-1, -1};
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const Fd pipe_out(pipe_ends[0]);
  const Fd pipe_in(pipe_ends[1]);
  const Ends socket;
  const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const Fd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const Fd file = memory_file(16 * page);
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  const Fd read_only(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const Fd path_only(::open(path.c_str(), O_PATH | O_CLOEXEC));
  const Fd shorter = memory_file(15 * page);
  const Fd frozen = memory_file(16 * page, F_SEAL_SHRINK | F_SEAL_WRITE);
  const Fd unsealed = memory_file(16 * page, 0);
  for (const int fd :
       {pipe_out.get(), socket.sender.get(), null.get(), directory.get(), read_only.get(),
        path_only.get(), shorter.get(), frozen.get(), unsealed.get()}) {
    expect_no_leak(
        [&] { EXPECT_THAT(receive_from(bytes, std::array{fd}), ::testing::Not(IsOk())) << fd; });
  }
  EXPECT_THAT(receive_from(bytes, std::array{unsealed.get()}), HasError(Errc::access_denied));
  EXPECT_THAT(receive_from(bytes, std::array{unsealed.get()}, {.map = {}}), IsOk());
}

TEST(HostileHandover, WithoutRoomForDescriptorsItIsRefused) {
  const std::vector<std::byte> bytes = Made{}.bytes();
  const Fd file = memory_file(16 * page);
  Ends ends;
  Recording::send(ends.sender.get(), bytes, std::array{file.get()});
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const Fd next(::dup(0));
  const rlimit none{static_cast<rlim_t>(next.get()), limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto taken = receive_handover(ends.receiver.get());
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_THAT(taken, HasError(Errc::corrupt));
}

TEST(HandoverCommit, APeerThatNeverAnswersTimesOutAndTheSenderKeepsItsGuest) {
  const Handover guest = sample_guest();
  const Ends ends;
  EXPECT_THAT(send_handover(ends.sender.get(), guest, {.timeout = soon}),
              HasError(Errc::timed_out));
  expect_sample(guest);
  // Nor does it take the guest later.
  EXPECT_THAT(receive_handover(ends.receiver.get()), ::testing::Not(IsOk()));
  const Ends others;
  EXPECT_THAT(receive_handover(others.receiver.get(), {.timeout = soon}),
              HasError(Errc::timed_out));
}

TEST(HandoverCommit, APeerThatTakesNoBytesTimesOut) {
  Handover guest = sample_guest();
  guest.state.resize(32_MiB);  // more than a socket takes
  const Ends ends;
  EXPECT_THAT(send_handover(ends.sender.get(), guest, {.timeout = soon}),
              HasError(Errc::timed_out));
}

TEST(HandoverCommit, AReceiverThatGaveUpCantBeGivenTheGuest) {
  const Recording whole = Recording::of(sample_guest());
  const Ends ends;
  Recording::send(ends.sender.get(), whole.bytes, whole.fds());
  EXPECT_THAT(receive_handover(ends.receiver.get(), {.timeout = soon}), HasError(Errc::timed_out));
  EXPECT_EQ(receive_piece(ends.sender.get(), 1).bytes, std::vector{ready});
  EXPECT_FALSE(send_piece(ends.sender.get(), std::array{commit}));
  EXPECT_EQ(errno, EPIPE);
}

TEST(HandoverCommit, AReceiverThatRefusesLeavesTheGuestToTheSender) {
  const Handover guest = sample_guest();
  const Outcome outcome = hand_over(guest, {}, {.max_memory = page});
  EXPECT_THAT(outcome.received, HasError(Errc::limit_exceeded));
  ASSERT_THAT(outcome.sent, HasError(Errc::os));
  EXPECT_THAT(outcome.sent.error().os_errno, AnyOf(EPIPE, ECONNRESET));
  expect_sample(guest);
}

TEST(HandoverCommit, AnAnswerThatIsNotReadyIsRefused) {
  const Handover guest = sample_guest();
  const Fd file = memory_file(page);
  for (const bool with_fd : {false, true}) {
    const Ends ends;
    const std::vector<int> fds(with_fd ? 1 : 0, file.get());
    ASSERT_TRUE(send_piece(ends.receiver.get(), std::array{with_fd ? ready : commit}, fds));
    EXPECT_THAT(send_handover(ends.sender.get(), guest), HasError(Errc::corrupt));
  }
  expect_sample(guest);
}

TEST(HandoverCommit, ACommitThatIsNoneIsRefused) {
  EXPECT_THAT(receive_made([](Made& made) { made.rest = {ready}; }), HasError(Errc::corrupt));
}

TEST(HandoverCommit, APeerThatIsGoneIsAnError) {
  Ends ends;
  ends.receiver.close();
  const auto sent = send_handover(ends.sender.get(), sample_guest());
  ASSERT_THAT(sent, HasError(Errc::os));
  EXPECT_EQ(sent.error().os_errno, EPIPE);
}

}  // namespace
}  // namespace vmspace::handover_hostile_test
