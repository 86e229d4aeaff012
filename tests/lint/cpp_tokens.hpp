// SPDX-License-Identifier: Apache-2.0
//
// C++ text as tokens, as far as a lint needs them: no comments, no preprocessor lines (and so no
// macro's definition), and every string, character and number is one token.

#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vmspace::lint {

struct Token {
  std::string text;  ///< "" for a string or character literal
  std::size_t line;  ///< from 1
};

class Tokenizer {
 public:
  explicit Tokenizer(std::string_view source) : source_(source) {}

  [[nodiscard]] std::vector<Token> tokens() {
    while (at_ < source_.size()) {
      if (skip_space() || skip_comment() || skip_directive()) continue;
      line_has_token_ = true;
      if (!take_word() && !take_literal()) take_operator();
    }
    return std::move(tokens_);
  }

 private:
  [[nodiscard]] bool next_is(std::string_view text) const {
    return source_.substr(at_).starts_with(text);
  }
  [[nodiscard]] char peek(std::size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }

  /// Goes to `end`, or to the end of the text, counting lines.
  void go_to(std::size_t end) {
    for (end = std::min(end, source_.size()); at_ < end; ++at_) {
      if (source_[at_] != '\n') continue;
      ++line_;
      line_has_token_ = false;
    }
  }
  void go_past(std::string_view text) {
    const std::size_t found = source_.find(text, at_);
    go_to(found == std::string_view::npos ? found : found + text.size());
  }

  bool skip_space() {
    if (std::isspace(static_cast<unsigned char>(peek())) == 0) return false;
    go_to(at_ + 1);
    return true;
  }
  bool skip_comment() {
    if (next_is("//")) {
      go_to(source_.find('\n', at_));
    } else if (next_is("/*")) {
      go_past("*/");
    } else {
      return false;
    }
    return true;
  }
  bool skip_directive() {
    if (peek() != '#' || line_has_token_) return false;
    do {
      const std::size_t end = source_.find('\n', at_);
      const bool continues = end != std::string_view::npos && source_[end - 1] == '\\';
      go_to(end == std::string_view::npos ? end : end + 1);
      if (!continues) break;
    } while (at_ < source_.size());
    return true;
  }

  bool take_word() {
    const auto in_word = [this](std::size_t i) {
      const char c = source_[i];
      // A quote in a number separates digits.
      const bool separator = c == '\'' && std::isdigit(static_cast<unsigned char>(source_[at_])) &&
                             i + 1 < source_.size() &&
                             std::isxdigit(static_cast<unsigned char>(source_[i + 1]));
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || separator;
    };
    std::size_t end = at_;
    while (end < source_.size() && in_word(end))
      ++end;
    if (end == at_) return false;
    const std::string_view word = source_.substr(at_, end - at_);
    if (end < source_.size() && source_[end] == '"' && word.ends_with('R')) {
      const std::size_t open = source_.find('(', end);
      const std::string close =
          ")" + std::string(source_.substr(end + 1, open - end - 1)).append("\"");
      push("");
      at_ = open;
      go_past(close);
      return true;
    }
    push(std::string(word));
    at_ = end;
    return true;
  }

  bool take_literal() {
    const char quote = peek();
    if (quote != '"' && quote != '\'') return false;
    push("");
    for (++at_; at_ < source_.size() && source_[at_] != quote && source_[at_] != '\n'; ++at_) {
      if (source_[at_] == '\\') ++at_;
    }
    ++at_;
    return true;
  }

  void take_operator() {
    static constexpr std::array<std::string_view, 22> operators = {
        "<<=", ">>=", "<=>", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=",
        "%=",  "&=",  "|=",  "^=", "::", "->", "&&", "||", "<<", "++", "--"};
    for (const std::string_view text : operators) {
      if (!next_is(text)) continue;
      push(std::string(text));
      at_ += text.size();
      return;
    }
    push(std::string(1, peek()));
    ++at_;
  }

  void push(std::string text) { tokens_.push_back({std::move(text), line_}); }

  std::string_view source_;
  std::size_t at_ = 0;
  std::size_t line_ = 1;
  bool line_has_token_ = false;
  std::vector<Token> tokens_;
};

/// The C++ of a page in Markdown: its fenced blocks, all else blank, so that lines keep their numbers.
inline std::string code_blocks(std::string_view page) {
  std::string code;
  bool inside = false;
  while (!page.empty()) {
    const std::string_view line = page.substr(0, page.find('\n'));
    page.remove_prefix(std::min(line.size() + 1, page.size()));
    if (line.starts_with("```")) {
      inside = !inside && (line == "```cpp" || line == "```c++");
    } else if (inside) {
      code += line;
    }
    code += '\n';
  }
  return code;
}

}  // namespace vmspace::lint
