// SPDX-License-Identifier: Apache-2.0
//
// The address of an object whose type may have its own operator&, as std::addressof gives it, for headers
// that need nothing else of <memory>: that one brings 12,000 lines into every file that includes it.

#pragma once

namespace vmspace::detail {

template <typename T>
[[nodiscard]] constexpr T* address_of(T& object) noexcept {
  return __builtin_addressof(object);
}
template <typename T>
void address_of(const T&& temporary) = delete;

}  // namespace vmspace::detail
