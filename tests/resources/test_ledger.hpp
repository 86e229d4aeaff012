// SPDX-License-Identifier: Apache-2.0
//
// A ledger for tests that decide what becomes of its changes.

#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "vmspace/address_space.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace::test {

/// An AddressSpace in everything but transact(), which a test writes.
class TestLedger : public RegionLedger {
 public:
  explicit TestLedger(AddressSpace space) : space_(std::move(space)) {}

  [[nodiscard]] std::shared_ptr<const AddressSpaceBase> snapshot() const override {
    return space_.snapshot();
  }
  void retire(RegionList&& regions) const noexcept override { space_.retire(std::move(regions)); }
  [[nodiscard]] std::vector<AddressSpaceRegionPtr> retired() const override {
    return space_.retired();
  }
  [[nodiscard]] Result<void> collect() const override { return space_.collect(); }

 protected:
  [[nodiscard]] const AddressSpace& space() const noexcept { return space_; }

  [[nodiscard]] static tl::unexpected<Error> refusal() {
    return fail({.code = Errc::timed_out, .operation = "TestLedger::transact"});
  }
  /// Makes the change; `refuses()` is asked once it is made, and before it is published.
  template <typename Refuses>
  [[nodiscard]] Result<void> change(const Edit& edit, Refuses refuses) const {
    return space_.transact([&](AddressSpaceBase& draft) -> Result<void> {
      VMSPACE_TRY(edit(draft));
      if (refuses()) return refusal();
      return {};
    });
  }

 private:
  AddressSpace space_;
};

}  // namespace vmspace::test
