// SPDX-License-Identifier: Apache-2.0
//
// A device behind an IOMMU, on a thread of its own: it never sees a page that was taken back.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

using namespace std::chrono_literals;

class Translations final : public Activity {
 public:
  Translations(Machine& machine, std::uint64_t seed)
      : Activity("translations", seed), memory_(machine.only({Machine::patches})) {
    move_to(0);
  }

  void step() override {
    std::atomic<std::uint64_t> reads{0};
    std::atomic<bool> sound{true};
    const std::jthread device([&](const std::stop_token& stop) {
      auto reader = tlb_.reader();
      while (!stop.stop_requested()) {
        std::this_thread::yield();  // outside of a section
        IommuView view(reader, memory_);
        const auto value = view.read<std::uint64_t>(iova);
        if (!value) continue;  // between two translations
        ++reads;
        if (*value != good) sound = false;
        if (view.write(GuestAddress(iova.value() + 8), reads.load())) continue;
        sound = false;
      }
    });
    for (int i = 0; i < 10; ++i) {
      move_to(1 - now_);
      // The device is in the middle of something in each turn.
      for (const std::uint64_t before = reads; sound && reads < before + 2;)
        std::this_thread::yield();
      require(sound, "a device sees only what it was given");
    }
    must(tlb_.check_invariants());
    require(tlb_.entries().size() == 1, "one translation takes the place of another");
    auto reader = tlb_.reader();
    IommuView view(reader, memory_);
    must_refuse(view.read<std::uint64_t>(GuestAddress(iova.value() - 8)), Errc::not_found);
    must_refuse(view.read<std::uint64_t>(GuestAddress(iova.value() + page - 4)), Errc::not_found);
  }

 private:
  static constexpr std::uint64_t page = Machine::page;
  static constexpr GuestAddress iova{0x7000};
  static constexpr std::uint64_t good = 0x1111'2222'3333'4444;

  /// Gives the device the other page, and what it had to somebody else.
  void move_to(std::uint64_t next) {
    const GuestAddress to(Machine::patches.value() + next * page);
    must(memory_.write(to, good));
    must(tlb_.invalidate({iova, page}, 60s));
    must(tlb_.update({.iova = iova, .guest = {to, page}}));
    must(memory_.write(GuestAddress(Machine::patches.value() + (1 - next) * page), ~good));
    now_ = next;
  }

  GuestMemory memory_;
  IoTlb tlb_ = must(IoTlb::make());
  std::uint64_t now_ = 0;
};

}  // namespace

std::unique_ptr<Activity> make_translations(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Translations>(machine, seed);
}

}  // namespace vmspace::soak
