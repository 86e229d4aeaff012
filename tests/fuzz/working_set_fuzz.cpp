// SPDX-License-Identifier: Apache-2.0
//
// The input is the file of a working set. Whatever it holds, loading it gives an error, or a set that
// is written as the same bytes again. An input whose first byte is odd gets the checksum that belongs
// to it, so that what lies behind that check is reached.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/working_set.hpp"

namespace {

using namespace vmspace;

/// As the format describes it, written a second time.
void mend_checksum(std::vector<std::uint8_t>& file) {
  if (file.size() < 40) return;
  std::fill(file.begin() + 32, file.begin() + 40, std::uint8_t{0});
  const std::size_t ranges = file[12] + 256u * file[13];
  const std::size_t end = std::min(file.size(), 40 + 16 * ranges);
  std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < end; ++i)
    sum = (sum ^ file[i]) * 0x0000'0100'0000'01b3;
  const Le64 stored = sum;
  std::memcpy(file.data() + 32, &stored, sizeof stored);
}

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  std::vector<std::uint8_t> bytes(data + 1, data + size);
  if (data[0] % 2 == 1) mend_checksum(bytes);
  static const int file = memfd_create("working set", MFD_CLOEXEC);
  require(ftruncate(file, 0) == 0);
  require(pwrite(file, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  require(lseek(file, 0, SEEK_SET) == 0);
  const auto set = WorkingSet::load(file);
  if (!set) {
    const Errc code = set.error().code;
    require(code == Errc::corrupt || code == Errc::unsupported);
    return 0;
  }
  const auto end = static_cast<std::size_t>(lseek(file, 0, SEEK_CUR));
  const auto made = WorkingSet::make(
      set->snapshot(), std::vector<GuestRange>(set->ranges().begin(), set->ranges().end()));
  require(made && *made == *set);
  static const int again = memfd_create("again", MFD_CLOEXEC);
  require(ftruncate(again, 0) == 0 && lseek(again, 0, SEEK_SET) == 0);
  require(set->save(again).has_value());
  std::vector<std::uint8_t> saved(end);
  require(lseek(again, 0, SEEK_CUR) == static_cast<off_t>(end));
  require(pread(again, saved.data(), end, 0) == static_cast<ssize_t>(end));
  require(std::equal(saved.begin(), saved.end(), bytes.begin()));
  return 0;
}
