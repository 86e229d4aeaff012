// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/error_text.hpp"

#include <cstddef>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmspace::error_text_test {
namespace {

using namespace std::string_literals;
using ::testing::EndsWith;
using ::testing::StartsWith;

TEST(ErrorText, KeepsBothTextsAndOutlivesThem) {
  std::string name = "ram0";
  std::string path = "/srv/vm/ram";
  const ErrorText text{name, path};
  name = path = "gone";
  EXPECT_EQ(text.subject(), "ram0");
  EXPECT_EQ(text.detail(), "/srv/vm/ram");
  EXPECT_FALSE(text.empty());
  EXPECT_TRUE(ErrorText().empty());
  EXPECT_EQ(ErrorText("ram0").detail(), "");
  const ErrorText only_detail{{}, path};
  EXPECT_EQ(only_detail.subject(), "");
  EXPECT_EQ(only_detail.detail(), "gone");
}

TEST(ErrorText, IsUsableInConstantExpressions) {
  constexpr ErrorText text{"a\n", "b"};
  static_assert(text.subject() == "a\\x0a" && text.detail() == "b");
}

TEST(ErrorText, EscapesWhatCouldEndTheLineOrMisleadATerminal) {
  EXPECT_EQ(ErrorText("a\nb\r\0c\x1b[2J\x7f"s).subject(), R"(a\x0ab\x0d\x00c\x1b[2J\x7f)");
  EXPECT_EQ(ErrorText("\"").subject(), R"(\x22)");
  EXPECT_EQ(ErrorText("\xc2\x9b").subject(), R"(\xc2\x9b)");          // CSI, a C1 control
  EXPECT_EQ(ErrorText("\xe2\x80\xae").subject(), R"(\xe2\x80\xae)");  // right-to-left override
  EXPECT_EQ(ErrorText("\xe2\x80\xa8").subject(), R"(\xe2\x80\xa8)");  // line separator
}

TEST(ErrorText, KeepsOtherCharactersAndEscapesWhatIsNotUtf8) {
  const std::string good = "spei\xc3\x9f \xe2\x82\xac \xf0\x9f\x92\xbe \xc2\xa0\xef\xbf\xbd";
  EXPECT_EQ(ErrorText(good).subject(), good);
  EXPECT_EQ(ErrorText("\xff").subject(), R"(\xff)");
  EXPECT_EQ(ErrorText("\x80").subject(), R"(\x80)");                          // a lone continuation
  EXPECT_EQ(ErrorText("\xc0\xaf").subject(), R"(\xc0\xaf)");                  // overlong slash
  EXPECT_EQ(ErrorText("\xe0\x80\xaf").subject(), R"(\xe0\x80\xaf)");          // overlong slash
  EXPECT_EQ(ErrorText("\xed\xa0\x80").subject(), R"(\xed\xa0\x80)");          // a surrogate
  EXPECT_EQ(ErrorText("\xf4\x90\x80\x80").subject(), R"(\xf4\x90\x80\x80)");  // past U+10FFFF
  EXPECT_EQ(ErrorText("\xe2\x82").subject(), R"(\xe2\x82)");                  // cut off
  EXPECT_EQ(ErrorText("\xe2\x82x").subject(), R"(\xe2\x82x)");
}

TEST(ErrorText, WhatIsTooLongLosesItsMiddle) {
  const std::string path = "/begin/" + std::string(200, 'x') + "/the/end.img";
  const std::string subject(ErrorText(path).subject());
  EXPECT_EQ(subject.size(), ErrorText::capacity);
  EXPECT_THAT(subject, StartsWith("/begin/xxx"));
  EXPECT_THAT(subject, EndsWith("xxx/the/end.img"));
  EXPECT_EQ(subject.find("..."), (ErrorText::capacity - 3) / 3);
  const std::string exact(ErrorText::capacity, 'y');
  EXPECT_EQ(ErrorText(exact).subject(), exact);
  EXPECT_NE(ErrorText(exact + "y").subject(), exact);
}

TEST(ErrorText, CutsNoCharacterAndNoEscape) {
  for (const std::string unit : {"\xf0\x9f\x92\xbe", "\xe2\x82\xac", "\xc3\x9f", "\n"}) {
    for (std::size_t shift = 0; shift < 8; ++shift) {
      std::string name(shift, 'a');
      for (int i = 0; i < 100; ++i)
        name += unit;
      std::string text(ErrorText(name).subject());
      EXPECT_LE(text.size(), ErrorText::capacity);
      EXPECT_GT(text.size() + 8, ErrorText::capacity);
      const std::string whole = unit == "\n" ? R"(\x0a)" : unit;
      text.erase(0, shift);
      text.erase(text.find("..."), 3);
      for (; !text.empty(); text.erase(0, whole.size()))
        ASSERT_THAT(text, StartsWith(whole));
    }
  }
}

TEST(ErrorText, SharesTheRoomBetweenSubjectAndDetail) {
  const std::string huge(1000, 'x');
  const ErrorText both{huge, huge};
  EXPECT_EQ(both.subject().size(), ErrorText::capacity / 2);
  EXPECT_EQ(both.detail().size(), ErrorText::capacity / 2);
  const ErrorText short_subject{"ram0", huge};
  EXPECT_EQ(short_subject.subject(), "ram0");
  EXPECT_EQ(short_subject.detail().size(), ErrorText::capacity - 4);
  const ErrorText short_detail{huge, "/srv"};
  EXPECT_EQ(short_detail.subject().size(), ErrorText::capacity - 4);
  EXPECT_EQ(short_detail.detail(), "/srv");
}

TEST(ErrorText, AHigherLayerAddsTheSubject) {
  const ErrorText text{"", "a\nb"};
  EXPECT_EQ(text.with_subject("ram0"), (ErrorText{"ram0", "a\nb"}));  // not escaped twice
}

TEST(ErrorText, EqualityIsThatOfThePrintableForms) {
  EXPECT_EQ(ErrorText("a"), ErrorText("a"));
  EXPECT_NE(ErrorText("ab"), (ErrorText{"a", "b"}));
  EXPECT_EQ(ErrorText("\n"), ErrorText("\\x0a"));
}

}  // namespace
}  // namespace vmspace::error_text_test
