// SPDX-License-Identifier: Apache-2.0
//
// VMSPACE_TRY as its most demanding user builds it; ends with 0 when every function of try_cases.hpp
// gives what it should.

#include "base/try_cases.hpp"

using namespace vmspace::try_cases;

int main() {
  int reached = 0;
  const vmspace::Result<Counted> constant{Counted(2)};
  vmspace::Result<Counted> variable{Counted(1)};
  const bool values = initialiser(4) == "2" && statement(4, reached) && return_operand(4) == 2 &&
                      assignment(4) == 4 && conditions(4) == 2 && range_of_for(4, reached) == 6 &&
                      nested(4) == 3 && temporaries_beside_it(4) == 5 && locals_before_it(4) == 3 &&
                      move_only(8) == 8 && references(variable, constant) && commas(3) == 6 &&
                      lambda(4) == 4 && relabelled(4) == 2 && false_is_a_value();
  const bool errors = !initialiser(3) && !statement(3, reached) && !return_operand(3) &&
                      !assignment(3) && !conditions(3) && !range_of_for(3, reached) && !nested(3) &&
                      !error_inside_a_range_for(4) && !temporaries_beside_it(3) &&
                      !locals_before_it(3) && !move_only(3) && !lambda(3) && !relabelled(3);
  return values && errors && Counted::alive == 2 ? 0 : 1;
}
