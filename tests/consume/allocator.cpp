// SPDX-License-Identifier: Apache-2.0
//
// A user of the allocator alone: several kinds of values, every kind of call.

#include "vmspace/allocator.hpp"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/format.hpp"
#include "vmspace/ostream.hpp"

using namespace vmspace::literals;

namespace {

bool names() {
  vmspace::IntervalTree<std::string> mmio;
  if (!mmio.insert(vmspace::Range::of(0xc000'0000, 0xfbff'ffff))) return false;
  const auto bar = mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0 BAR0");
  if (!bar) return false;
  const std::string* owner = mmio.find_value(bar->min());
  if (owner == nullptr || *owner != "nic0 BAR0") return false;
  const auto back = mmio.free(*bar);
  return back && *back == "nic0 BAR0" && !mmio.free(*bar);
}

bool numbers() {
  vmspace::IntervalTree<> ids;
  if (!ids.insert(vmspace::Range::of(0, 255))) return false;
  const auto last = ids.allocate({.size = 1, .policy = vmspace::AllocPolicy::last_match});
  return last && last->min() == 255 && ids.allocate_at(vmspace::Range::point(7)) &&
         !ids.allocate_at(vmspace::Range::point(7)) && ids.erase(vmspace::Range::point(7));
}

bool owned_objects() {
  vmspace::IntervalTree<std::unique_ptr<int>> tree;
  if (!tree.insert(vmspace::Range::whole_domain())) return false;
  const auto at = tree.allocate({.size = 4_KiB}, std::make_unique<int>(42));
  if (!at) return false;
  const auto moved = std::move(tree);
  const auto found = moved.get(*at);
  return found && found->value != nullptr && **found->value == 42;
}

vmspace::Result<std::string> printed() {
  vmspace::IntervalTree<std::string> tree;
  VMSPACE_TRY(tree.insert(vmspace::Range::of(0, 15), "low"));
  std::ostringstream out;
  out << tree;
  return out.str();
}

}  // namespace

int main() {
  const bool ok = names() && numbers() && owned_objects() &&
                  vmspace::value_or_exit(printed()) == "[0x0-0xf] low";
  if (!ok) std::fputs("the allocator does not do what it says\n", stderr);
  return ok ? 0 : 1;
}
