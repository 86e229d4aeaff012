// SPDX-License-Identifier: Apache-2.0
//
// The input is a text of claims. Whatever can be read is written as a text that reads as equal
// claims; what can't be read is an error that names the line.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "vmspace/resources/resource_claim.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmspace;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto check = [](bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  };
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
  return 0;
}
