// SPDX-License-Identifier: Apache-2.0
//
// The input is a snapshot: an image or records, a file or a stream, of either version. Whatever it
// holds, reading it gives an error or a guest that can be read and saved again. An input whose first
// byte is odd gets the checksums that belong to it, so that what lies behind those checks is
// reached; one that has a parent gets ours, which has other regions and a parent of its own.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"

#include "snapshot/format_support.hpp"

namespace {

using namespace vmspace;

/// As the format describes it, written a second time.
void mend_version_1(std::vector<std::byte>& file) {
  std::fill(file.begin() + 24, file.begin() + 32, std::byte{0});
  const std::size_t regions = test::stored_at<Le16>(file, 12);
  const std::size_t end = std::min(file.size(), 64 + 32 * regions);
  std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < end; ++i)
    sum = (sum ^ std::to_integer<std::uint64_t>(file[i])) * 0x0000'0100'0000'01b3;
  test::store_at(file, 24, Le64(sum));
}

void mend(std::vector<std::byte>& file) {
  if (file.size() < 64) return;
  if (test::stored_at<Le32>(file, 8) == 1) return mend_version_1(file);
  test::mend_head(file);
  test::mend_records(file);
  test::mend_index(file);
}

void touch(const GuestMemory& memory) {
  if (!memory.check_invariants()) std::abort();
  for (const auto& region : memory.regions()) {
    (void)memory.read<std::uint64_t>(region->base());
    (void)memory.write(GuestAddress(region->last_addr().value() - 7), std::uint64_t{1});
  }
}

const GuestMemory& target() {
  static const GuestMemory memory = *GuestMemory::create(
      std::vector<GuestRange>{{GuestAddress(0x1000), 0x2000}, {GuestAddress(0x10000), 0x1000}});
  return memory;
}

/// A full snapshot, and changes to it after memory has come, gone and grown.
struct Chain {
  int full = memfd_create("full", MFD_CLOEXEC);
  int changes = memfd_create("changes", MFD_CLOEXEC);
  SnapshotId id = {};

  static const Chain& instance() {
    static const Chain chain;
    return chain;
  }

 private:
  Chain() {
    const GuestMemory before = *GuestMemory::create(
        std::vector<GuestRange>{{GuestAddress(0x1000), 0x2000}, {GuestAddress(0x10000), 0x3000}});
    if (!before.write(GuestAddress(0x1008), std::uint64_t{1})) std::abort();
    if (!before.write(GuestAddress(0x11008), std::uint64_t{2})) std::abort();
    const GuestMemory after =
        *GuestMemory::create(std::vector<GuestRange>{{GuestAddress(0x1000), 0x4000},
                                                     {GuestAddress(0x8000), 0x1000},
                                                     {GuestAddress(0x11000), 0x1000}});
    const std::vector<GuestRange> written{{GuestAddress(0x2000), 0x3000},
                                          {GuestAddress(0x8000), 0x1000}};
    if (!after.write(GuestAddress(0x4008), std::uint64_t{3})) std::abort();
    const auto parent = save_snapshot(before, full);
    if (!parent) std::abort();
    const auto saved = save_snapshot(
        after, changes, {.changes = SnapshotChanges{.parent = parent->id, .ranges = written}});
    if (!saved) std::abort();
    id = saved->id;
  }
};

/// Names our chain where the input names a parent, which is no snapshot that there is.
void name_parent(std::vector<std::byte>& file) {
  constexpr std::ptrdiff_t at = 48;
  const auto& id = Chain::instance().id.bytes;
  if (file.size() < at + id.size()) return;
  const auto parent = std::span(file).subspan(at, id.size());
  if (std::ranges::all_of(parent, [](std::byte byte) { return byte == std::byte{0}; })) return;
  std::ranges::copy(std::as_bytes(std::span(id)), parent.begin());
}

/// Reads all that a reader says is there, within reason.
void read_all(SnapshotReader reader) {
  std::vector<std::byte> bytes(0x10000);
  for (const SnapshotRegion& region : reader.regions()) {
    GuestRange rest{region.base, region.size};
    for (int i = 0; i < 8 && rest.size != 0; ++i) {
      const auto data = reader.next_data(rest);
      if (!data) return;
      const std::uint64_t before = data->base.value() - rest.base.value();
      if (before > rest.size || data->size > rest.size - before) std::abort();
      const auto size = std::min<std::uint64_t>(bytes.size(), data->size);
      (void)reader.read(data->base, std::span(bytes).first(size));
      rest = {GuestAddress(data->base.value() + size), rest.size - before - size};
    }
    (void)reader.read(GuestAddress(region.base.value() + (region.size - 0x1000)),
                      std::span(bytes).first(0x1000));
  }
}

void read_file(int file) {
  (void)restore_snapshot(target(), file);
  touch(target());
  const auto regions = inspect_snapshot(file);
  // It may be its own parent, if it likes.
  const Chain& chain = Chain::instance();
  const auto reader = SnapshotReader::open(file, std::array{file, chain.changes, chain.full});
  if (reader) read_all(*reader);
  const auto mapped = map_snapshot(file);
  if (!mapped) return;
  if (!regions || mapped->regions().size() != regions->size()) std::abort();
  touch(*mapped);
  // The file is memory now; another takes what can be read.
  if (!mapped->regions().empty() && save_snapshot(target(), file)) std::abort();
  static const int again = memfd_create("again", MFD_CLOEXEC);
  if (save_snapshot(*mapped, again) && !restore_snapshot(*mapped, again)) std::abort();
}

void read_stream(std::span<const std::byte> bytes) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
  // Less than a pipe holds.
  if (write(ends[1], bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
    std::abort();
  close(ends[1]);
  (void)restore_snapshot(target(), ends[0]);
  close(ends[0]);
  touch(target());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto input = std::as_bytes(std::span(data + 2, size - 2));
  std::vector<std::byte> bytes(input.begin(), input.end());
  // An image has whole pages, a few of them; records have what they have, and pages of zeros where
  // the input has a byte of 0xa5 in place of one.
  const bool is_image = bytes.size() < 68 || bytes[64] != std::byte{2};
  if (is_image) bytes.resize(std::max<std::size_t>((1 + data[1] % 64) * 4096, bytes.size()));
  if (!is_image && data[1] % 2 == 1) {
    const auto place = std::find(bytes.begin() + 68, bytes.end(), std::byte{0xa5});
    if (place != bytes.end()) bytes.insert(bytes.erase(place), 4096, std::byte{0x5a});
  }
  if (!is_image) name_parent(bytes);
  if (data[0] % 2 == 1) mend(bytes);
  static const int file = memfd_create("snapshot", MFD_CLOEXEC);
  if (ftruncate(file, 0) != 0) std::abort();
  if (pwrite(file, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    std::abort();
  read_file(file);
  if (!is_image && bytes.size() < 60'000) read_stream(bytes);
  return 0;
}
