// SPDX-License-Identifier: Apache-2.0

#include "virtio/chain_builder.hpp"

namespace vmspace::detail {

Error broken(const char* operation, std::uint64_t what, std::uint64_t limit, const char* rule) {
  return {.code = Errc::corrupt,
          .operation = operation,
          .first = Operand::number(what),
          .second = Operand::number(limit),
          .reason = rule};
}

Error broken_at(const char* operation, std::uint64_t index, const char* rule) {
  return {.code = Errc::corrupt,
          .operation = operation,
          .first = Operand::number(index),
          .reason = rule};
}

Result<void> check_part(const char* operation, GuestAddress base, std::uint64_t align,
                        std::uint64_t size) {
  if (!base.is_aligned(align)) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = Operand::address(base.value()),
                 .second = Operand::size(align)});
  }
  if (!base.checked_add(size - 1)) {
    return fail({.code = Errc::overflow,
                 .operation = operation,
                 .first = Operand::address(base.value()),
                 .second = Operand::size(size)});
  }
  return {};
}

}  // namespace vmspace::detail
