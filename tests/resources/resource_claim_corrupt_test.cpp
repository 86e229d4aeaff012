// SPDX-License-Identifier: Apache-2.0
//
// Texts of claims that are not what they should be.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/resources/resource_claim.hpp"
#include "vmspace/testing.hpp"

#include "resources/claim_samples.hpp"

namespace vmspace::resource_claim_corrupt_test {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;
using namespace test;
using testing::HasSubstr;

/// The error of a text with a good claim in line 2 and `line` in line 3.
Error error_of(std::string_view line) {
  const auto parsed = parse_claims("vmspace-claims 1\nlegacy_irq owner=\"a\" first=5\n" +
                                   std::string(line) + "\nend\n");
  if (parsed) return {.code = Errc{}, .operation = "none"};
  return parsed.error();
}

struct BadLine {
  std::string_view line;
  std::string_view words;   ///< at fault
  std::string_view reason;  ///< a part of it
};

/// Checks that the line is corrupt, and that the error says where and why.
void expect_corrupt(const std::vector<BadLine>& lines) {
  for (const auto& [line, words, reason] : lines) {
    SCOPED_TRACE(line);
    const Error error = error_of(line);
    EXPECT_EQ(error.code, Errc::corrupt);
    EXPECT_STREQ(error.operation, "parse_claims");
    EXPECT_EQ(error.text, ErrorText("line 3", words));
    EXPECT_THAT(error.message(), HasSubstr(std::string(reason)));
  }
}

TEST(ResourceClaimText, AnErrorReadsAsOneLineThatSaysWhatWouldBeRight) {
  EXPECT_EQ(error_of("pci_device owner=\"a\" bus=256").message(),
            "parse_claims: \"line 3\": corrupt data (expected a number up to 255, in decimal or 0x "
            "hexadecimal: \"bus=256\")");
}

TEST(ResourceClaimText, ALineThatDoesNotBeginWithAKindIsCorrupt) {
  for (const std::string_view line :
       {"", "unknown owner=\"a\"", "Pio owner=\"a\" size=1", "pio\towner=\"a\" size=1",
        " pio owner=\"a\" size=1", "owner=\"a\" size=1", "END", "end ", "end 1", "#"}) {
    expect_corrupt({{line, line, "or a claim: pio, mmio,"}});
  }
  for (const ResourceClaim& claim : sample_claims())
    EXPECT_THAT(error_of("?").reason, HasSubstr(std::string(name_of(kind_of(claim.request)))));
}

TEST(ResourceClaimText, FieldsThatAreMissingUnknownOrTwiceThereAreCorrupt) {
  constexpr std::string_view missing = "missing field";
  constexpr std::string_view unknown = "this kind has no such field";
  constexpr std::string_view twice = "duplicate field";
  expect_corrupt({
      {"pio", "owner", missing},
      {"legacy_irq first=1", "owner", missing},
      {"pio owner=\"a\" first=0x10", "size", missing},
      {"mmio owner=\"a\"", "size", missing},
      {"memory owner=\"a\"", "size", missing},
      {"bridge_window owner=\"a\"", "size", missing},
      {"msi owner=\"a\" first=1", "count", missing},
      {"msix owner=\"a\"", "count", missing},
      {"pio owner=\"a\" size=1 colour=2", "colour=2", unknown},
      {"legacy_irq owner=\"a\" size=1", "size=1", unknown},
      {"legacy_irq owner=\"a\" count=1", "count=1", unknown},
      {"memory owner=\"a\" size=1 backing=file", "backing=file", unknown},
      {"memory owner=\"a\" size=1 path=\"/etc/shadow\"", "path=\"/etc/shadow\"", unknown},
      {"pio owner=\"a\" size=1 Size=1", "Size=1", unknown},
      {"pio owner=\"a\" size=1 size=1", "size=1", twice},
      {"pio owner=\"a\" size=1 owner=\"b\"", "owner=\"b\"", twice},
      {"legacy_irq owner=\"a\" shared shared", "shared", twice},
  });
}

TEST(ResourceClaimText, FieldsThatAreNotApartByOneSpaceAreCorrupt) {
  constexpr std::string_view spaces = "fields must be separated by a single space";
  expect_corrupt({
      {"legacy_irq  owner=\"a\"", " owner=\"a\"", spaces},
      {"legacy_irq owner=\"a\" ", "", spaces},
      {"legacy_irq owner=\"a\"  first=1", " first=1", spaces},
      {"legacy_irq owner=\"a\"first=1", "first=1", spaces},
      {"legacy_irq owner=\"a\"\"b\"", "\"b\"", spaces},
      {"legacy_irq owner=\"a\"\r", "\r", spaces},
      {"legacy_irq =1 owner=\"a\"", "=1 owner=\"a\"", spaces},
  });
}

TEST(ResourceClaimText, FlagsHaveNoValuesAndOtherFieldsDo) {
  expect_corrupt({
      {"legacy_irq owner=\"a\" shared=1", "shared=1", "does not take a value"},
      {"legacy_irq owner=\"a\" shared=", "shared=", "does not take a value"},
      {"legacy_irq owner=\"a\" first", "first", "the field requires a value"},
      {"legacy_irq owner", "owner", "the field requires a value"},
  });
}

TEST(ResourceClaimText, MalformedAndOutOfRangeNumbersAreCorrupt) {
  constexpr std::string_view any = "expected a number up to 2^64 - 1";
  expect_corrupt({
      {"pio owner=\"a\" size=", "size=", any},
      {"pio owner=\"a\" size=0x", "size=0x", any},
      {"pio owner=\"a\" size=0X1", "size=0X1", any},
      {"pio owner=\"a\" size=0x0x1", "size=0x0x1", any},
      {"pio owner=\"a\" size=-1", "size=-1", any},
      {"pio owner=\"a\" size=+1", "size=+1", any},
      {"pio owner=\"a\" size=ff", "size=ff", any},
      {"pio owner=\"a\" size=1\t", "size=1\t", any},
      {"pio owner=\"a\" size=\"1\"", "size=\"1\"", any},
      {"pio owner=\"a\" size=4KiB", "size=4KiB", any},
      {"pio owner=\"a\" size=18446744073709551616", "size=18446744073709551616", any},
      {"pio owner=\"a\" size=0x10000000000000000", "size=0x10000000000000000", any},
      {"pio owner=\"a\" size=1 first=0x10000000000000000", "first=0x10000000000000000", any},
      {"mmio owner=\"a\" size=1 base=", "base=", any},
      {"legacy_irq owner=\"a\" first=4294967296", "first=4294967296", "a number up to 2^32 - 1"},
      {"msi owner=\"a\" count=0x100000000", "count=0x100000000", "a number up to 2^32 - 1"},
      {"pci_device owner=\"a\" segment=65536", "segment=65536", "a number up to 65535"},
      {"pci_device owner=\"a\" bus=0 device=256", "device=256", "a number up to 255"},
  });
}

TEST(ResourceClaimText, TextsThatAreNotAsDescribedAreCorrupt) {
  constexpr std::string_view escape = R"(a backslash must start an escape \xNN)";
  constexpr std::string_view bytes = R"(unprintable bytes must be escaped as \xNN)";
  expect_corrupt({
      {"legacy_irq owner=a", "owner=a", "expected a string in double quotes"},
      {"legacy_irq owner='a'", "owner='a'", "expected a string in double quotes"},
      {"legacy_irq owner=", "owner=", "expected a string in double quotes"},
      {"legacy_irq owner=a\"", "owner=a\"", "expected a string in double quotes"},
      {"legacy_irq owner=\"", "owner=\"", "unterminated string"},
      {"legacy_irq owner=\"a", "owner=\"a", "unterminated string"},
      {"mmio size=1 owner=\"a\" name=\"x y", "name=\"x y", "unterminated string"},
      {R"(legacy_irq owner="\")", R"(owner="\")", escape},
      {R"(legacy_irq owner="\\")", R"(owner="\\")", escape},
      {R"(legacy_irq owner="\n")", R"(owner="\n")", escape},
      {R"(legacy_irq owner="\x")", R"(owner="\x")", escape},
      {R"(legacy_irq owner="\x4")", R"(owner="\x4")", escape},
      {R"(legacy_irq owner="\x4g")", R"(owner="\x4g")", escape},
      {R"(legacy_irq owner="\x-1")", R"(owner="\x-1")", escape},
      {R"(legacy_irq owner="\X41")", R"(owner="\X41")", escape},
      {"legacy_irq owner=\"a\tb\"", "owner=\"a\tb\"", bytes},
      {"legacy_irq owner=\"\xff\"", "owner=\"\xff\"", bytes},
      {"legacy_irq owner=\"\xe2\x80\xae\"", "owner=\"\xe2\x80\xae\"", bytes},
      {std::string_view("legacy_irq owner=\"\0\"", 20), std::string_view("owner=\"\0\"", 9), bytes},
  });
}

TEST(ResourceClaimText, OtherValuesThatAreNotAsDescribedAreCorrupt) {
  constexpr std::string_view range = "expected a range";
  constexpr std::string_view protection = "expected a protection";
  constexpr std::string_view mac = "expected a MAC address";
  expect_corrupt({
      {"mmio owner=\"a\" size=1 reach=", "reach=", "expected any, below_4g or high"},
      {"mmio owner=\"a\" size=1 reach=low", "reach=low", "expected any, below_4g or high"},
      {"mmio owner=\"a\" size=1 reach=unknown", "reach=unknown", "expected any, below_4g or high"},
      {"memory owner=\"a\" size=1 type=default_memory", "type=default_memory",
       "expected ram, device, dax or firmware"},
      {"memory owner=\"a\" size=1 protection=rw", "protection=rw", protection},
      {"memory owner=\"a\" size=1 protection=wr-", "protection=wr-", protection},
      {"memory owner=\"a\" size=1 protection=rwxs", "protection=rwxs", protection},
      {"pio owner=\"a\" size=1 window=1", "window=1", range},
      {"pio owner=\"a\" size=1 window=2-1", "window=2-1", range},
      {"pio owner=\"a\" size=1 window=1-", "window=1-", "expected a number"},
      {"pio owner=\"a\" size=1 window=-1", "window=-1", "expected a number"},
      {"pio owner=\"a\" size=1 window=1-2-3", "window=1-2-3", "expected a number"},
      {"mac_address owner=\"a\" address=", "address=", mac},
      {"mac_address owner=\"a\" address=0x525400123456", "address=0x525400123456", mac},
      {"mac_address owner=\"a\" address=52:54:00:12:34", "address=52:54:00:12:34", mac},
      {"mac_address owner=\"a\" address=52:54:00:12:34:56:", "address=52:54:00:12:34:56:", mac},
      {"mac_address owner=\"a\" address=52:54:00:12:34:56:78", "address=52:54:00:12:34:56:78", mac},
      {"mac_address owner=\"a\" address=52-54-00-12-34-56", "address=52-54-00-12-34-56", mac},
      {"mac_address owner=\"a\" address=52:54:00:12:34:5g", "address=52:54:00:12:34:5g", mac},
      {"mac_address owner=\"a\" address=52:54:00:12:34:-6", "address=52:54:00:12:34:-6", mac},
  });
}

void expect_corrupt_at(std::string_view text, std::uint64_t line, std::string_view reason) {
  SCOPED_TRACE(text);
  const auto parsed = parse_claims(text);
  ASSERT_THAT(parsed, HasError(Errc::corrupt));
  EXPECT_EQ(parsed.error().text.subject(), "line " + std::to_string(line));
  EXPECT_THAT(parsed.error().message(), HasSubstr(std::string(reason)));
}

TEST(ResourceClaimText, ATextWithoutItsFirstLineIsCorrupt) {
  constexpr std::string_view head = "the first line must be \"vmspace-claims 1\"";
  for (const std::string_view text :
       {"", "\n", "\nvmspace-claims 1\nend\n", "end\n", "legacy_irq owner=\"a\"\nend\n",
        "vmspace-claims\nend\n", "vmspace-claims \nend\n", "vmspace-claims 0\nend\n",
        "vmspace-claims 01\nend\n", "vmspace-claims 1 \nend\n", "vmspace-claims 1.0\nend\n",
        "vmspace-claims -1\nend\n", "VMSPACE-CLAIMS 1\nend\n", " vmspace-claims 1\nend\n"}) {
    expect_corrupt_at(text, 1, head);
  }
  expect_corrupt_at("\xef\xbb\xbfvmspace-claims 1\nend\n", 1, head);
}

TEST(ResourceClaimText, LinesThatEndAsOnOtherSystemsAreCorrupt) {
  expect_corrupt_at("vmspace-claims 1\r\nend\r\n", 1, "lines must end in LF, not CRLF");
  expect_corrupt_at("vmspace-claims 1\nend\r\n", 2, "\"end\\x0d\"");
  expect_corrupt_at("vmspace-claims 1\nlegacy_irq owner=\"a\" first=5\r\nend\n", 2, "5\\x0d");
}

TEST(ResourceClaimText, ATextWithoutItsLastLineIsCorrupt) {
  constexpr std::string_view tail = "the last line must be \"end\"; the text may be truncated";
  expect_corrupt_at("vmspace-claims 1", 2, tail);
  expect_corrupt_at("vmspace-claims 1\n", 2, tail);
  expect_corrupt_at("vmspace-claims 1\nlegacy_irq owner=\"a\"", 3, tail);
  expect_corrupt_at("vmspace-claims 1\nlegacy_irq owner=\"a\"\n", 3, tail);
}

TEST(ResourceClaimText, WhatFollowsTheLastLineIsCorrupt) {
  constexpr std::string_view more = "nothing may follow the \"end\" line";
  expect_corrupt_at("vmspace-claims 1\nend\n\n", 3, more);
  expect_corrupt_at("vmspace-claims 1\nend\nend\n", 3, more);
  expect_corrupt_at("vmspace-claims 1\nend\nlegacy_irq owner=\"a\"\nend\n", 3, more);
  expect_corrupt_at("vmspace-claims 1\nend\n"s + '\0', 3, more);
}

TEST(ResourceClaimText, AnotherVersionIsUnsupportedAndNotCorrupt) {
  for (const std::string version : {"2", "10", "99999999999999999999999"}) {
    const auto parsed = parse_claims("vmspace-claims " + version + "\nanything\n");
    ASSERT_THAT(parsed, HasError(Errc::unsupported));
    EXPECT_EQ(parsed.error().message(),
              "parse_claims: unsupported (only version 1 is supported: \"" + version + "\")");
  }
}

TEST(ResourceClaimText, ATextThatIsCutOffIsAnErrorAtEveryLength) {
  // All but the last newline.
  for (std::size_t size = 0; size + 1 < sample_text.size(); ++size) {
    ASSERT_THAT(parse_claims(sample_text.substr(0, size)), HasError(Errc::corrupt)) << size;
  }
}

TEST(ResourceClaimText, AChangedByteIsAnErrorOrReadsAsClaimsThatReadBackAsTheyAre) {
  // One of each kind that the format tells apart: what takes part in it, and what is like it.
  constexpr std::string_view bytes = "0179afxzAZ_-+=\"\\ \n\t.,#\x7f\x80\xff\0"sv;
  // Line by line, so that what is read again and again is short.
  for (const ResourceClaim& claim : sample_claims()) {
    const std::string good = format_claims(std::span(&claim, 1));
    for (std::size_t at = 0; at < good.size(); ++at) {
      std::string text = good;
      for (const char byte : bytes) {
        text[at] = byte;
        const auto parsed = parse_claims(text);
        if (!parsed) {
          ASSERT_THAT(parsed, HasError(testing::AnyOf(Errc::corrupt, Errc::unsupported))) << text;
        } else {
          ASSERT_THAT(parse_claims(format_claims(*parsed)), IsOkAndHolds(*parsed)) << text;
        }
      }
    }
  }
}

TEST(ResourceClaimText, LongHostileLinesAreErrorsLikeShortOnes) {
  constexpr std::size_t size = 1 << 16;
  for (const char byte : {'"', '\\', ' ', '=', '0', 'x', 'a', '\0', '\xff'}) {
    const std::string many(size, byte);
    EXPECT_EQ(error_of(many).code, Errc::corrupt);
    EXPECT_EQ(error_of("pio owner=\"" + many + "\" size=z").code, Errc::corrupt);
    EXPECT_EQ(error_of("pio owner=\"a\" size=" + many + "z").code, Errc::corrupt);
    EXPECT_EQ(error_of("pio owner=\"a\" " + many).code, Errc::corrupt);
  }
}

}  // namespace
}  // namespace vmspace::resource_claim_corrupt_test
