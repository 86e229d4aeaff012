// SPDX-License-Identifier: Apache-2.0
//
// A guest with devices goes to a process whose manager adopts what they hold.

#include <cstring>
#include <memory>
#include <string>

#include "vmspace/resources.hpp"
#include "vmspace/vmm/memory_recorder.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "snapshot/handover_support.hpp"

namespace vmspace::handover_devices_test {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;
using namespace test;

/// A VM: its memory, and its manager, which records in it.
struct Vm {
  VmMemory memory;
  ResourceManager manager;

  static Vm with(VmMemory memory) {
    auto manager = ResourceManager::create(std::make_shared<VmMemory>(memory));
    VMSPACE_EXPECT_OK(manager);
    return {std::move(memory), *std::move(manager)};
  }
};

std::vector<std::byte> as_state(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

std::string as_text(const std::vector<std::byte>& state) {
  std::string text(state.size(), '\0');
  std::memcpy(text.data(), state.data(), state.size());
  return text;
}

TEST(HandoverDevices, TheReceiversManagerTakesOverTheRegionsOfTheDevices) {
  const Vm sender = Vm::with(VmMemory::create(sample_guest().space).value());
  const auto bridge =
      VMSPACE_ASSERT_OK(sender.manager.acquire({BridgeWindow{.size = 2_MiB}}, "bridge"));
  const auto disk = VMSPACE_ASSERT_OK(sender.manager.acquire(
      {MmioRange{.size = 16_KiB, .bridge = "bridge"}, MsixVectors{.count = 3},
       MmioRange{.size = 4_KiB, .parked = true, .name = "option ROM"}},
      "disk"));
  const auto dimm = VMSPACE_ASSERT_OK(sender.manager.acquire(
      {MemoryRange{
          .region = {.size = 2_MiB, .backing = {.source = MemorySource::anon}, .hotplug = true}}},
      "dimm1"));
  const GuestAddress written = dimm.memory()->base();
  VMSPACE_ASSERT_OK(sender.memory.map()->memory.write(written, std::uint64_t{42}));

  const auto map = sender.memory.map();
  const Outcome outcome = hand_over({.space = map->space,
                                     .memory = map->memory,
                                     .state = as_state(format_claims(sender.manager.claims()))},
                                    {.private_memory = PrivateMemory::copy});
  VMSPACE_ASSERT_OK(outcome.received);
  const Handover& taken = *outcome.received;
  const Vm receiver =
      Vm::with(VmMemory::adopt({.space = taken.space, .memory = taken.memory}).value());
  const auto listener = std::make_shared<MemoryRecorder>();
  VMSPACE_ASSERT_OK(receiver.memory.add_listener(listener));
  listener->forget_calls();
  const auto claims = VMSPACE_ASSERT_OK(parse_claims(as_text(taken.state)));
  auto adopted = VMSPACE_ASSERT_OK(receiver.manager.adopt(claims, FoundRegions::take_over));

  EXPECT_EQ(receiver.manager.holders(), sender.manager.holders());
  VMSPACE_EXPECT_OK(receiver.manager.check_invariants());
  VMSPACE_EXPECT_OK(receiver.memory.check_invariants());
  EXPECT_THAT(listener->calls(), IsEmpty()) << "nothing of the memory has changed";
  EXPECT_THAT(receiver.memory.map()->memory.read<std::uint64_t>(written), IsOkAndHolds(42U));
  // And they go on: a BAR moves, a DIMM is unplugged by being destroyed.
  ASSERT_THAT(adopted, SizeIs(3));
  VMSPACE_EXPECT_OK(receiver.manager.relocate(
      {ResourceMove::place(adopted[1], GuestAddress(adopted[1].mmio()->base().value() + 1_MiB))}));
  adopted.pop_back();
  VMSPACE_EXPECT_OK(receiver.manager.collect());
  EXPECT_EQ(receiver.memory.map()->memory.region_at(written), nullptr);
}

}  // namespace
}  // namespace vmspace::handover_devices_test
