// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_claim.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "vmspace/base/try.hpp"

#include "resources/claim_fields.hpp"
#include "resources/claim_values.hpp"

namespace vmspace {

namespace {

using detail::append_value;
using detail::Field;
using detail::read_value;

constexpr const char* parse_operation = "parse_claims";
constexpr std::string_view claims_head = "vmspace-claims ";
constexpr std::string_view claims_version = "1";
constexpr std::string_view claims_tail = "end";

/// Calls visit(field, holder) for each field of a claim; the holder, the claim or its request, is what
/// has the field's member.
template <typename Request, typename Claim, typename Visit>
void for_each_field(Claim& claim, Visit visit) {
  const auto of = [&](auto& holder) {
    std::apply([&](const auto&... field) { (visit(field, holder), ...); },
               detail::fields_of(holder));
  };
  of(claim);
  of(*std::get_if<Request>(&claim.request));
}

/// What is written as the field's name alone when it is true.
template <typename Value>
constexpr bool is_flag = std::same_as<std::remove_cvref_t<Value>, bool>;

template <typename Member, typename Holder>
void append_field(std::string& out, const Field<Member>& field, const Holder& holder) {
  const auto& value = std::invoke(field.member, holder);
  const Holder blank{};
  if (!field.required && value == std::invoke(field.member, blank)) return;
  out.append(" ").append(field.name);
  if constexpr (!is_flag<decltype(value)>) {
    out += '=';
    append_value(out, value);
  }
}

/// A line of the text and its number, from 1.
struct Line {
  std::uint64_t number;
  std::string_view text;

  [[nodiscard]] tl::unexpected<Error> corrupt(const char* reason, std::string_view words) const {
    std::array<char, 32> name;
    const auto end = fmt::format_to_n(name.data(), name.size(), "line {}", number);
    return fail({.code = Errc::corrupt,
                 .operation = parse_operation,
                 .reason = reason,
                 .text = {std::string_view(name.data(), end.size), words}});
  }
};

/// The lines of a text; a newline ends each.
class ClaimLines {
 public:
  explicit ClaimLines(std::string_view text) : rest_(text) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }
  /// The next one; an empty line where there is none.
  Line next() {
    const std::string_view text = rest_.substr(0, rest_.find('\n'));
    rest_.remove_prefix(std::min(text.size() + 1, rest_.size()));
    return {++count_, text};
  }

 private:
  std::string_view rest_;
  std::uint64_t count_ = 0;
};

/// A field as it stands on a line.
struct Words {
  std::string_view all;                   ///< `size=0x20`
  std::string_view name;                  ///< `size`
  std::optional<std::string_view> value;  ///< `0x20`
};

/// Takes the first field off the rest of a line, which is not empty.
Result<Words> take_words(const Line& line, std::string_view& rest) {
  constexpr const char* spaces = "fields must be separated by a single space";
  if (!rest.starts_with(' ')) return line.corrupt(spaces, rest);
  rest.remove_prefix(1);
  Words words{.all = {}, .name = rest.substr(0, rest.find_first_of(" =")), .value = {}};
  if (words.name.empty()) return line.corrupt(spaces, rest);
  std::size_t end = words.name.size();
  if (end != rest.size() && rest[end] == '=') {
    const std::size_t begin = end + 1;
    if (rest.substr(begin).starts_with('"')) {
      // A quote inside a string is written \x22.
      const std::size_t quote = rest.find('"', begin + 1);
      if (quote == std::string_view::npos) {
        return line.corrupt("unterminated string", rest);
      }
      end = quote + 1;
    } else {
      end = std::min(rest.find(' ', begin), rest.size());
    }
    words.value = rest.substr(begin, end - begin);
  }
  words.all = rest.substr(0, end);
  rest.remove_prefix(end);
  return words;
}

/// Returns null or the reason for an error, like read_value().
template <typename Value>
const char* read_field(const std::optional<std::string_view>& text, Value& value) {
  if constexpr (is_flag<Value>) {
    if (text) return "the field does not take a value";
    value = true;
    return nullptr;
  } else {
    return text ? read_value(*text, value) : "the field requires a value";
  }
}

/// Reads what follows the kind.
template <typename Request>
Result<ResourceClaim> parse_fields(const Line& line, std::string_view rest) {
  ResourceClaim claim{.owner = {}, .request = Request{}};
  std::uint32_t seen = 0;  // a bit for each field
  while (!rest.empty()) {
    const Words words = VMSPACE_TRY(take_words(line, rest));
    const char* wrong = "this kind has no such field";
    std::uint32_t bit = 1;
    for_each_field<Request>(claim, [&](const auto& field, auto& holder) {
      if (field.name == words.name) {
        wrong = (seen & bit) != 0 ? "duplicate field"
                                  : read_field(words.value, std::invoke(field.member, holder));
        seen |= bit;
      }
      bit <<= 1;
    });
    if (wrong != nullptr) return line.corrupt(wrong, words.all);
  }
  std::string_view missing;
  std::uint32_t bit = 1;
  for_each_field<Request>(claim, [&](const auto& field, const auto&) {
    if (field.required && missing.empty() && (seen & bit) == 0) missing = field.name;
    bit <<= 1;
  });
  if (!missing.empty()) return line.corrupt("missing field", missing);
  return claim;
}

using ParseFields = Result<ResourceClaim> (*)(const Line&, std::string_view);

/// How to read the fields of each kind.
template <std::size_t... kind>
constexpr auto parsers_of(std::index_sequence<kind...>) {
  return std::array<ParseFields, sizeof...(kind)>{
      &parse_fields<std::variant_alternative_t<kind, ResourceRequest>>...};
}
constexpr auto parsers =
    parsers_of(std::make_index_sequence<std::variant_size_v<ResourceRequest>>());

Result<ResourceClaim> parse_claim(const Line& line) {
  const std::string_view kind = line.text.substr(0, line.text.find(' '));
  for (std::size_t i = 0; i < parsers.size(); ++i) {
    if (kind != name_of(static_cast<ResourceKind>(i))) continue;
    return parsers[i](line, line.text.substr(kind.size()));
  }
  return line.corrupt(
      "expected \"end\" or a claim: pio, mmio, memory, bridge_window, legacy_irq, generic_irq, "
      "msi, "
      "msix, kvm_slot, pci_device or mac_address, and a space",
      line.text);
}

Result<void> check_head(const Line& line) {
  std::string_view found = line.text;
  if (found.ends_with('\r')) return line.corrupt("lines must end in LF, not CRLF", found);
  if (found.starts_with(claims_head)) {
    found.remove_prefix(claims_head.size());
    if (found == claims_version) return {};
    const bool is_number = !found.empty() && found.front() != '0' &&
                           found.find_first_not_of("0123456789") == std::string_view::npos;
    if (is_number) {
      return fail({.code = Errc::unsupported,
                   .operation = parse_operation,
                   .reason = "only version 1 is supported",
                   .text = {{}, found}});
    }
  }
  return line.corrupt("the first line must be \"vmspace-claims 1\"", line.text);
}

}  // namespace

std::string format_claims(std::span<const ResourceClaim> claims) {
  std::string out;
  out.append(claims_head).append(claims_version).append("\n");
  for (const ResourceClaim& claim : claims) {
    out += name_of(kind_of(claim.request));
    std::visit(
        [&]<typename Request>(const Request&) {
          for_each_field<Request>(claim, [&](const auto& field, const auto& holder) {
            append_field(out, field, holder);
          });
        },
        claim.request);
    out += '\n';
  }
  out.append(claims_tail).append("\n");
  return out;
}

Result<std::vector<ResourceClaim>> parse_claims(std::string_view text) {
  ClaimLines lines(text);
  VMSPACE_TRY(check_head(lines.next()));
  std::vector<ResourceClaim> claims;
  while (!lines.empty()) {
    const Line line = lines.next();
    if (line.text == claims_tail) {
      if (lines.empty()) return claims;
      const Line more = lines.next();
      return more.corrupt("nothing may follow the \"end\" line", more.text);
    }
    ResourceClaim claim = VMSPACE_TRY(parse_claim(line));
    claims.push_back(std::move(claim));
  }
  return lines.next().corrupt("the last line must be \"end\"; the text may be truncated", {});
}

}  // namespace vmspace
