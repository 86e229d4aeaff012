// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_request.hpp"

#include <cstddef>
#include <string_view>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

namespace vmspace::resource_request_test {
namespace {

TEST(ResourceRequest, EachRequestTypeHasItsKind) {
  const std::vector<ResourceRequest> requests = {
      PioRange{},   MmioRange{},   MemoryRange{}, BridgeWindow{}, LegacyIrq{}, GenericIrq{},
      MsiVectors{}, MsixVectors{}, KvmSlots{},    PciDevice{},    MacAddress{}};
  const std::vector<std::string_view> names = {
      "pio", "mmio", "memory",   "bridge_window", "legacy_irq", "generic_irq",
      "msi", "msix", "kvm_slot", "pci_device",    "mac_address"};
  ASSERT_EQ(requests.size(), std::variant_size_v<ResourceRequest>);
  for (std::size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(name_of(kind_of(requests[i])), names[i]);
}

TEST(ResourceRequest, AReachIsNamedAsItsEnumerator) {
  EXPECT_EQ(name_of(MmioReach::any), "any");
  EXPECT_EQ(name_of(MmioReach::below_4g), "below_4g");
  EXPECT_EQ(name_of(MmioReach::high), "high");
}

TEST(ResourceRequest, AValueWithoutANameIsUnknown) {
  EXPECT_EQ(name_of(static_cast<ResourceKind>(11)), "unknown");
  EXPECT_EQ(name_of(static_cast<MmioReach>(3)), "unknown");
}

}  // namespace
}  // namespace vmspace::resource_request_test
