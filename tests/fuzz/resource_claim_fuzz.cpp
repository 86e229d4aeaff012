// SPDX-License-Identifier: Apache-2.0
//
// The input is a text of claims. Whatever can be read is written as a text that reads as equal
// claims; what can't be read is an error that names the line. A manager adopts the claims or refuses
// them and is as it was; what it has adopted, another one takes over with the map.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space.hpp"
#include "vmspace/resources/resource_claim.hpp"
#include "vmspace/resources/resource_manager.hpp"

using namespace vmspace;

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

/// A manager of a PC with this map.
ResourceManager manager_of(const AddressSpaceBase& map) {
  return ResourceManager::create(
             AddressSpace(map),
             {.kvm_slots = RangePool::create("memory slots", {Range::of(0, 508)}).value(),
              .mac_addresses = Range::of(0x5254'0012'3400, 0x5254'0012'34ff)})
      .value();
}

void check_adoption(const std::vector<ResourceClaim>& claims) {
  static const AddressSpaceBase empty(AddressSpaceLayout::x86_64({.phys_bits = 40}).value());
  const ResourceManager first = manager_of(empty);
  const auto adopted = first.adopt(claims);
  check(first.check_invariants().has_value(), "the first manager is broken");
  const auto map = first.ledger().snapshot();
  if (!adopted) {
    check(first.holders().empty(), "a refused claim is held");
    check(*map == empty, "a refused claim has changed the map");
    return;
  }
  const ResourceManager second = manager_of(*map);
  const auto taken_over = second.adopt(first.claims(), FoundRegions::take_over);
  check(taken_over.has_value(), "what was adopted can't be taken over");
  check(second.check_invariants().has_value(), "the second manager is broken");
  check(second.claims() == first.claims(), "something else was taken over");
  const auto after = second.ledger().snapshot();
  check(std::ranges::equal(*after, *map), "the map has other regions");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto claims = parse_claims(text);
  if (!claims) {
    const Error& error = claims.error();
    check(error.code == Errc::unsupported ||
              (error.code == Errc::corrupt && error.text.subject().starts_with("line ")),
          error.message().c_str());
    return 0;
  }
  const std::string formatted = format_claims(*claims);
  const auto again = parse_claims(formatted);
  check(again.has_value(), formatted.c_str());
  check(*again == *claims, formatted.c_str());
  check(format_claims(*again) == formatted, formatted.c_str());
  check_adoption(*claims);
  return 0;
}
