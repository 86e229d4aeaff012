// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "model/guest_memory_oracle.hpp"

namespace vmspace::guest_memory_model_test {
namespace {

using test::GuestSideBySide;
using test::GuestStep;

rc::Gen<GuestStep> step() {
  // Often near the borders of pages, where regions begin and end.
  const auto place =
      rc::gen::oneOf(rc::gen::arbitrary<std::uint16_t>(),
                     rc::gen::map(rc::gen::pair(rc::gen::inRange(0, 16), rc::gen::inRange(-40, 40)),
                                  [](std::pair<int, int> at) {
                                    return static_cast<std::uint16_t>(at.first * 4096 + at.second);
                                  }));
  return rc::gen::build<GuestStep>(rc::gen::set(&GuestStep::kind), rc::gen::set(&GuestStep::value),
                                   rc::gen::set(&GuestStep::a, place),
                                   rc::gen::set(&GuestStep::b, place));
}

RC_GTEST_PROP(GuestMemoryModel, AgreesWithAFlatArrayOfBytes, ()) {
  const auto origin = *rc::gen::element(GuestSideBySide::lowest, GuestSideBySide::highest,
                                        std::uint64_t{0xc000'0000}, std::uint64_t{1} << 46);
  const auto steps = *rc::gen::container<std::vector<GuestStep>>(step());
  GuestSideBySide both(origin);
  for (const GuestStep& one : steps) {
    if (const auto difference = both.apply(one)) {
      RC_LOG() << "kind " << one.kind % 16 << " a " << one.a << " b " << one.b << "\n";
      RC_FAIL(*difference);
    }
  }
  if (const auto difference = both.finish()) RC_FAIL(*difference);
}

}  // namespace
}  // namespace vmspace::guest_memory_model_test
