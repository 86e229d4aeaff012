// SPDX-License-Identifier: Apache-2.0
//
// What a guest does to its memory, in every way in which guest memory is written, and a balloon that
// takes pages away.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

constexpr std::uint64_t page = Machine::page;

class Pages final : public Activity {
 public:
  Pages(Machine& machine, std::uint64_t seed)
      : Activity("pages", seed),
        memory_(machine.only({Machine::patches})),
        first_words_(Machine::region_size / page) {}

  void step() override {
    for (int i = 0; i < 50; ++i) {
      const std::size_t index = own + random(first_words_.size() - own);
      std::uint64_t& expected = first_words_[index];
      require(must(memory_.read<std::uint64_t>(address(index))) == expected,
              "a page keeps what is written");
      change(index, expected);
      require(must(memory_.read<std::uint64_t>(address(index))) == expected,
              "a page has what was written");
    }
  }

  /// The pages below are those of translations.cpp.
  static constexpr std::size_t own = 16;

 private:
  static GuestAddress address(std::size_t index) {
    return GuestAddress(Machine::patches.value() + index * page);
  }
  void change(std::size_t index, std::uint64_t& expected) {
    const GuestAddress at = address(index);
    const std::uint64_t value = random(1'000'000);
    switch (random(6)) {
      case 0:
        must(memory_.write(at, value));
        expected = value;
        return;
      case 1:
        must(memory_.store(at, value, std::memory_order_release));
        expected = value;
        return;
      case 2:
        require(must(memory_.fetch_or(at, value)) == expected, "fetch_or gives what was there");
        expected |= value;
        return;
      case 3: {
        // In two pieces, the second of which comes first in memory.
        const std::array ranges = {GuestRange{GuestAddress(at.value() + 4), 4}, GuestRange{at, 4}};
        auto writer = must(GuestWriter::make(memory_, ranges));
        must(writer.write(value << 32 | value));
        expected = value << 32 | value;
        return;
      }
      case 4: {
        const std::vector<std::byte> bytes(page, static_cast<std::byte>(value));
        must(memory_.write_slice(at, bytes));
        expected = 0x0101'0101'0101'0101 * (value & 0xff);
        return;
      }
      default: {
        // A balloon's pages are zeros when the guest has them again; only it knows that they changed.
        const MemoryRegion& region = *memory_.regions().front();
        must(region.mapping().discard(index * page, page));
        region.dirty().mark(index * page, page);
        expected = 0;
        return;
      }
    }
  }

  GuestMemory memory_;
  std::vector<std::uint64_t> first_words_;  ///< of each page
};

}  // namespace

std::unique_ptr<Activity> make_pages(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Pages>(machine, seed);
}

}  // namespace vmspace::soak
