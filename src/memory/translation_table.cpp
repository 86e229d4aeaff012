// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/translation_table.hpp"

namespace vmspace::detail {

TranslationTable::TranslationTable(std::span<const TranslationEntry> entries) {
  if (entries.empty()) return;
  const TranslationEntry& last = entries.back();
  static_cast<DecodeTable&>(*this) = DecodeTable(entries, last.first + (last.size - 1));
}

Translator TranslationTable::empty() noexcept {
  return {empty_decoder()};
}

}  // namespace vmspace::detail
