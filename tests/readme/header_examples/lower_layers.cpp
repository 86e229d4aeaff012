// SPDX-License-Identifier: Apache-2.0
//
// The examples in the comments of the headers, as functions that compile; see ../header_examples_test.cpp.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vmspace/base/literals.hpp"
#include "vmspace/boot.hpp"
#include "vmspace/exit_on_error.hpp"

namespace vmspace::header_examples {

using namespace std::chrono_literals;
using namespace literals;

Result<void> program_bar(Range bar);
Range next_to(Range bar);
void program(std::uint64_t irq);

struct TryExample {
  const AddressSpaceLayout& layout;

  // from vmspace/base/try.hpp
  Result<Range> place_nic(IntervalTree<std::string>& mmio) {
    const Range bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0"));
    VMSPACE_TRY(program_bar(bar));
    for (const RamPiece& piece : VMSPACE_TRY(layout.plan_ram({6_GiB})))
      static_cast<void>(piece);
    return VMSPACE_TRY(mmio.allocate_at(next_to(bar), "nic1"));
  }
  // end
};

struct Map {
  std::vector<int> regions;
  Result<void> remove(int region);
};
void use(const Map& map);

Result<void> published(int region) {
  // from vmspace/base/published.hpp
  Published<Map> map{Map{{1, 2, 3}}};
  auto reader = map.reader();
  use(reader.current());
  reader.park();

  VMSPACE_TRY(map.update([&](Map& draft) { return draft.remove(region); }));
  VMSPACE_TRY(map.wait_released(1s));
  // end
  return {};
}

Result<void> interval_tree() {
  // from vmspace/allocator/interval_tree.hpp
  IntervalTree<std::string> mmio;
  VMSPACE_TRY(mmio.insert(Range::of(0xc000'0000, 0xfbff'ffff)));
  const auto bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0"));
  bar.value() += " BAR0";
  VMSPACE_TRY(mmio.free(bar));
  // end
  return {};
}

Result<void> range_pool() {
  // from vmspace/allocator/range_pool.hpp
  const RangePool gsis = VMSPACE_TRY(RangePool::create("GSI", {Range::of(5, 23)}));
  const Lease irq = VMSPACE_TRY(gsis.acquire({.size = 1}, "nic0"));
  program(irq.range().min());
  // end
  return {};
}

Result<void> address_space(const AddressSpaceLayout& layout, GuestAddress gpa,
                           GuestAddress old_base, const RegionOptions& replacement) {
  // from vmspace/address_space/address_space.hpp
  auto space = VMSPACE_TRY(AddressSpace::create(layout));

  auto reader = space.reader();
  if (const auto* region = reader.current().find_region(gpa)) return {};
  if (const auto region = space.find_region(gpa)) return {};

  VMSPACE_TRY(space.transact([&](AddressSpaceBase& draft) -> Result<void> {
    VMSPACE_TRY(draft.remove_region(old_base));
    VMSPACE_TRY(draft.insert_region(replacement));
    return {};
  }));
  // end
  return {};
}

Result<void> address_space_base(const AddressSpaceLayout& layout, const AddressSpaceRegionPtr& nic,
                                const AddressSpaceRegionPtr& gpu) {
  // from vmspace/address_space/address_space_base.hpp
  AddressSpaceBase space(layout);
  VMSPACE_TRY(space.insert_region(
      {.name = "ram", .size = 3_GiB, .backing = {.source = MemorySource::shmem}}));
  const auto bar =
      VMSPACE_TRY(space.place_region({.name = "gpu BAR0", .type = RegionType::device_memory},
                                     {.size = 16_MiB, .align = 16_MiB}, "mmio_high"));
  VMSPACE_TRY(space.move_regions({{nic, gpu->base()}, {gpu, nic->base()}}));
  if (const AddressSpaceRegion* region = space.find_region(GuestAddress{0x1000})) return {};
  for (const AddressSpaceRegionPtr& region : space)
    return {};
  // end
  return {};
}

Result<LayoutPlan> layout_planner(const AddressSpaceLayout& frame, GuestAddress rom_base) {
  // from vmspace/address_space/layout_planner.hpp
  auto plan = plan_layout(
      frame, {{.name = "rom", .kind = PlacementKind::fixed, .size = 2_MiB, .base = rom_base},
              {.name = "ram", .kind = PlacementKind::ram, .size = 6_GiB},
              {.name = "bars", .kind = PlacementKind::mmio64, .size = 64_GiB}});
  // end
  return plan;
}

Result<void> srat_table(const AddressSpaceLayout& layout) {
  // from vmspace/boot/srat.hpp
  const auto plan = VMSPACE_TRY(layout.plan_ram({2_GiB, 2_GiB}));
  const std::vector<std::byte> table = VMSPACE_TRY(vmspace::srat(
      {{.apic_id = 0, .node = 0}, {.apic_id = 1, .node = 1}}, vmspace::srat_memory(plan)));
  // end
  return {};
}

void exit_on_error() {
  // from vmspace/exit_on_error.hpp
  IntervalTree<std::string> ids;
  value_or_exit(ids.insert(Range::of(0, 255)));
  const Range id = value_or_exit(ids.allocate({.size = 1}, "nic0"));
  exit_unless(id.min() == 0, "the first id is 0");
  // end
}

}  // namespace vmspace::header_examples
