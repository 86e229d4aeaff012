// SPDX-License-Identifier: Apache-2.0
//
// A device behind an IOMMU (VIRTIO_F_ACCESS_PLATFORM): its queue and buffers are IOVAs.

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/iommu_view.hpp"
#include "vmspace/virtio/split_queue.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::test::iommu_queue_test {
namespace {

constexpr std::uint64_t ram = 0x10000;
constexpr std::uint64_t rings = ram;          // the driver calls it 0x1000
constexpr std::uint64_t buffer = ram + page;  // the driver calls it 0xffff'f000'0000

struct Request {
  Le32 kind;
  Le32 sector;
};

/// Where a ring lies in guest memory; it must be one range.
Result<GuestAddress> find_ring(IommuView& view, GuestRange ring) {
  const auto ranges = VMSPACE_TRY(view.translate(ring, Access::write));
  if (ranges.size() != 1) {
    return fail({.code = Errc::out_of_bounds, .operation = "find_ring"});
  }
  return ranges[0].base;
}

TEST(IommuQueue, TakesRequestsWhoseBuffersAreIovas) {
  const GuestMemory memory = guest({{ram, 2 * page}});
  IoTlb tlb = *IoTlb::make();
  const IoTlbEntry entries[] = {
      {.iova = at(0x1000), .guest = {at(rings), page}},
      {.iova = at(0xffff'f000'0000), .guest = {at(buffer), 64}, .access = Protection::read},
      {.iova = at(0xffff'f000'0040), .guest = {at(buffer + 64), 64}, .access = Protection::write}};
  VMSPACE_EXPECT_OK(tlb.update(entries));

  // The driver: a chain of a header to read and a status to write, made available.
  VMSPACE_EXPECT_OK(memory.write(at(buffer), Request{.kind = 1, .sector = 7}));
  const SplitDescriptor descriptors[] = {
      {.address = 0xffff'f000'0000, .length = 8, .flags = SplitDescriptor::has_next, .next = 1},
      {.address = 0xffff'f000'0040, .length = 1, .flags = SplitDescriptor::writable, .next = 0}};
  VMSPACE_EXPECT_OK(memory.write_slice(at(rings), std::as_bytes(std::span(descriptors))));
  VMSPACE_EXPECT_OK(memory.write(at(rings + 0x100 + 2), Le16(1)));

  // The device: rings are translated once, and again after an invalidation that concerns them.
  IoTlbReader reader = tlb.reader();
  IommuView view(reader, memory);
  SplitQueueOptions options{.size = 4};
  options.descriptors = *find_ring(view, {at(0x1000), 64});
  options.available = *find_ring(view, {at(0x1100), 14});
  options.used = *find_ring(view, {at(0x1200), 38});
  auto queue = SplitQueue::make(options);
  ASSERT_THAT(queue, IsOk());

  DescriptorChain chain;
  ASSERT_THAT(queue->pop(memory, chain), IsOkAndHolds(true));
  auto in = view.reader(chain.readable());
  auto out = view.writer(chain.writable());
  ASSERT_THAT(in, IsOk());
  ASSERT_THAT(out, IsOk());
  const auto request = in->read<Request>();
  ASSERT_THAT(request, IsOk());
  EXPECT_EQ(request->sector, 7U);
  VMSPACE_EXPECT_OK(out->write(std::uint8_t{0x5a}));
  VMSPACE_EXPECT_OK(queue->push_used(memory, chain.id(), 1));
  EXPECT_THAT(memory.read<std::uint8_t>(at(buffer + 64)), IsOkAndHolds(0x5a));

  // What the driver has not mapped, or not for this, is refused, though it is memory.
  EXPECT_THAT(view.writer(chain.readable()), HasError(Errc::access_denied));
  const GuestRange untranslated[] = {{at(buffer), 8}};
  EXPECT_THAT(view.reader(untranslated), HasError(Errc::not_found));
}

}  // namespace
}  // namespace vmspace::test::iommu_queue_test
