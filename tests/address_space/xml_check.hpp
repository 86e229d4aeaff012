// SPDX-License-Identifier: Apache-2.0
//
// Whether a text is a well-formed XML document, of the kind that the library writes: elements,
// attributes in double quotes, text, the predefined entities and nothing else. Stricter than XML 1.0 and
// never laxer.

#pragma once

#include <cctype>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/base/error_text.hpp"

namespace vmspace::test {

class XmlCheck {
 public:
  /// What is wrong with the document, and where; empty when it is well-formed.
  static std::string find_fault(std::string_view text) {
    XmlCheck check(text);
    check.document();
    return check.fault_;
  }

 private:
  explicit XmlCheck(std::string_view text) : text_(text) {}

  void document() {
    bool had_root = false;
    while (fault_.empty() && !text_.empty()) {
      if (text_.front() == '<') {
        if (open_.empty() && had_root) return fail("a second root");
        had_root = true;
        tag();
      } else {
        character(!open_.empty());
      }
    }
    if (!fault_.empty()) return;
    if (!had_root) fail("no root");
    if (!open_.empty()) fail("not closed: " + open_.back());
  }

  void tag() {
    take(1);
    const bool closes = take_if("/");
    const std::string name = take_name();
    if (closes) {
      if (open_.empty() || open_.back() != name) return fail("closes what is not open: " + name);
      open_.pop_back();
      if (!take_if(">")) fail("a closing tag has something after its name");
      return;
    }
    std::vector<std::string> attributes;
    while (fault_.empty() && take_if(" ")) {
      const std::string attribute = take_name();
      for (const std::string& other : attributes) {
        if (other == attribute) return fail("an attribute is there twice: " + attribute);
      }
      attributes.push_back(attribute);
      if (!take_if("=\"")) return fail("an attribute has no value");
      while (fault_.empty() && !text_.empty() && text_.front() != '"')
        character(true);
      if (!take_if("\"")) return fail("a value has no end");
    }
    if (take_if("/>")) return;
    if (!take_if(">")) return fail("a tag has no end");
    open_.push_back(name);
  }

  void character(bool may_be_text) {
    const char c = text_.front();
    if (c == '\n') return take(1);
    if (!may_be_text) return fail("text outside of the root");
    if (c == '<' || c == '>') return fail("a bracket in text");
    if (c == '&') {
      for (const std::string_view entity : {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"}) {
        if (take_if(entity)) return;
      }
      return fail("an unknown entity");
    }
    const detail::TextUnit unit = detail::next_unit(text_);
    if (unit.is_escaped() && c != '"') return fail("a control character, or not UTF-8");
    if (text_.starts_with("\xef\xbf\xbe") || text_.starts_with("\xef\xbf\xbf")) {
      return fail("not a character of XML");
    }
    take(unit.read);
  }

  std::string take_name() {
    std::size_t length = 0;
    while (length < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[length])) != 0 || text_[length] == '-'))
      ++length;
    if (length == 0) fail("a name is missing");
    std::string name(text_.substr(0, length));
    take(length);
    return name;
  }

  bool take_if(std::string_view expected) {
    if (!text_.starts_with(expected)) return false;
    take(expected.size());
    return true;
  }
  void take(std::size_t bytes) { text_.remove_prefix(bytes); }
  void fail(const std::string& what) {
    if (fault_.empty()) fault_ = what + " before: " + std::string(text_.substr(0, 60));
  }

  std::string_view text_;
  std::vector<std::string> open_;
  std::string fault_;
};

}  // namespace vmspace::test
