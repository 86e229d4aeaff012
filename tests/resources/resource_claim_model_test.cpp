// SPDX-License-Identifier: Apache-2.0
//
// Random claims (RapidCheck) as text and back.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/resources/resource_claim.hpp"

namespace vmspace::resource_claim_model_test {
namespace {

/// Small numbers, and those near the ends of the type.
template <typename Number>
rc::Gen<Number> number() {
  return rc::gen::oneOf(rc::gen::arbitrary<Number>(), rc::gen::inRange<Number>(0, 40),
                        rc::gen::map(rc::gen::inRange<Number>(0, 40),
                                     [](Number n) { return static_cast<Number>(~n); }));
}

/// Bytes of all values, among them many that must be escaped and parts of UTF-8.
rc::Gen<std::string> text() {
  return rc::gen::container<std::string>(rc::gen::oneOf(
      rc::gen::arbitrary<char>(), rc::gen::element('"', '\\', '\n', '\0', 'x', ' ', '=', '\xe2',
                                                   '\x80', '\xae', '\xc3', '\xa9')));
}

/// A random value of the member's type, or what the member has anyway.
template <typename T>
void fill(T& member, const rc::Gen<T>& gen) {
  if (*rc::gen::arbitrary<bool>()) member = *gen;
}
template <typename T>
void fill(std::optional<T>& member, const rc::Gen<T>& gen) {
  if (*rc::gen::arbitrary<bool>()) member = *gen;
}
void fill(bool& member) {
  member = *rc::gen::arbitrary<bool>();
}
void fill(std::string& member) {
  fill(member, text());
}
template <std::unsigned_integral Number>
void fill(Number& member) {
  fill(member, number<Number>());
}
template <std::unsigned_integral Number>
void fill(std::optional<Number>& member) {
  fill(member, number<Number>());
}
void fill(std::optional<GuestAddress>& member) {
  fill(member, rc::gen::construct<GuestAddress>(number<std::uint64_t>()));
}
void fill(std::optional<Range>& member) {
  fill(member, rc::gen::map(rc::gen::pair(number<std::uint64_t>(), number<std::uint64_t>()),
                            [](const auto& bounds) {
                              return *Range::make(std::min(bounds.first, bounds.second),
                                                  std::max(bounds.first, bounds.second));
                            }));
}
void fill(MmioReach& member) {
  fill(member, rc::gen::element(MmioReach::any, MmioReach::below_4g, MmioReach::high));
}
void fill(RegionType& member) {
  fill(member, rc::gen::element(RegionType::default_memory, RegionType::device_memory,
                                RegionType::dax_memory, RegionType::firmware_memory));
}
void fill(Protection& member) {
  fill(member, rc::gen::map(rc::gen::inRange(0, 8),
                            [](int bits) { return static_cast<Protection>(bits); }));
}

void fill(RegionOptions& region);

template <typename... Members>
void fill_all(Members&... members) {
  (fill(members), ...);
}

// Structured bindings name every member, so that one that is added is not forgotten here.
void fill(RegionOptions& region) {
  auto& [name, type, base, size, backing, protection, node, huge_pages, hotplug, populate, owner] =
      region;
  fill_all(name, type, size, protection, node, huge_pages, hotplug, populate);
  (void)base, (void)backing, (void)owner;  // not in the text
}

ResourceRequest any_request() {
  switch (*rc::gen::inRange(0, 11)) {
    case 0: {
      PioRange request{};
      auto& [size, align, window, fixed, parked] = request;
      fill_all(size, align, window, fixed, parked);
      return request;
    }
    case 1: {
      MmioRange request{};
      auto& [size, align, reach, prefetchable, bridge, aperture, fixed, parked, name] = request;
      fill_all(size, align, reach, prefetchable, bridge, aperture, fixed, parked, name);
      return request;
    }
    case 2: {
      MemoryRange request{};
      auto& [region, align, aperture, fixed] = request;
      fill_all(region, align, aperture, fixed);
      return request;
    }
    case 3: {
      BridgeWindow request{};
      auto& [size, align, reach, prefetchable, bridge, aperture, fixed, parked] = request;
      fill_all(size, align, reach, prefetchable, bridge, aperture, fixed, parked);
      return request;
    }
    case 4: {
      LegacyIrq request{};
      auto& [fixed, shared] = request;
      fill_all(fixed, shared);
      return request;
    }
    case 5: {
      GenericIrq request{};
      auto& [count, fixed] = request;
      fill_all(count, fixed);
      return request;
    }
    case 6: {
      MsiVectors request{};
      auto& [count, fixed] = request;
      fill_all(count, fixed);
      return request;
    }
    case 7: {
      MsixVectors request{};
      auto& [count, fixed] = request;
      fill_all(count, fixed);
      return request;
    }
    case 8: {
      KvmSlots request{};
      auto& [count, fixed] = request;
      fill_all(count, fixed);
      return request;
    }
    case 9: {
      PciDevice request{};
      auto& [segment, bus, device] = request;
      fill_all(segment, bus, device);
      return request;
    }
    default: {
      MacAddress request{};
      auto& [fixed] = request;
      fill_all(fixed);
      return request;
    }
  }
}

RC_GTEST_PROP(ResourceClaimModel, AnyClaimsReadBackAsTheyAre, ()) {
  std::vector<ResourceClaim> claims(*rc::gen::inRange<std::size_t>(0, 8));
  for (ResourceClaim& claim : claims) {
    claim.owner = *text();
    claim.request = any_request();
  }
  const std::string formatted = format_claims(claims);
  RC_LOG() << formatted;
  const auto parsed = parse_claims(formatted);
  if (!parsed) RC_FAIL(parsed.error().message());
  RC_ASSERT(*parsed == claims);
}

}  // namespace
}  // namespace vmspace::resource_claim_model_test
