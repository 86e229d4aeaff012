// SPDX-License-Identifier: Apache-2.0

#include "vmspace/boot/srat.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string_view>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

namespace {

constexpr const char* srat_operation = "srat";

// Sizes and offsets in bytes; ACPI 6.4, tables 5.29 and 5.54 to 5.57.
constexpr std::size_t header_size = 48;
constexpr std::size_t length_offset = 4;
constexpr std::size_t checksum_offset = 9;
constexpr std::uint8_t revision = 3;
constexpr std::uint32_t is_enabled = 1U << 0;
constexpr std::uint32_t is_hot_pluggable = 1U << 1;
constexpr std::uint32_t first_x2apic_id = 255;  // 255 in a processor entry is a broadcast

/// A table that grows field by field, least significant byte first.
class SratTable {
 public:
  template <typename Field>
  void add(Field value) {
    for (std::size_t i = 0; i < sizeof value; ++i)
      bytes_.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i)));
  }
  void add(std::string_view text) {
    for (const char letter : text)
      add(static_cast<std::uint8_t>(letter));
  }
  void add_zeros(std::size_t count) {
    for (; count != 0; --count)
      bytes_.push_back(std::byte{0});
  }

  /// With its length and checksum, which makes the sum of all bytes 0.
  [[nodiscard]] std::vector<std::byte> finish() && {
    for (std::size_t i = 0; i < sizeof(std::uint32_t); ++i)
      bytes_[length_offset + i] = static_cast<std::byte>(bytes_.size() >> (8 * i));
    const auto sum = std::accumulate(
        bytes_.begin(), bytes_.end(), 0U,
        [](unsigned total, std::byte byte) { return total + std::to_integer<unsigned>(byte); });
    bytes_[checksum_offset] = static_cast<std::byte>(0U - sum);
    return std::move(bytes_);
  }

 private:
  std::vector<std::byte> bytes_;
};

void add_header(SratTable& table) {
  table.add(std::string_view("SRAT"));
  table.add_zeros(sizeof(std::uint32_t));  // the length
  table.add(revision);
  table.add_zeros(1);  // the checksum
  table.add(std::string_view("VMSPAC"));
  table.add(std::string_view("VMSPSRAT"));
  table.add(std::uint32_t{1});  // the OEM's revision
  table.add(std::string_view("VMSP"));
  table.add(std::uint32_t{1});  // the creator's revision
  table.add(std::uint32_t{1});  // reserved: "must be 1 for backward compatibility"
  table.add_zeros(8);
}

/// "Processor Local APIC/SAPIC Affinity" and "Processor Local x2APIC Affinity".
void add_processor(SratTable& table, const SratProcessor& processor) {
  if (processor.apic_id < first_x2apic_id) {
    table.add(std::uint8_t{0});
    table.add(std::uint8_t{16});
    table.add(static_cast<std::uint8_t>(processor.node));
    table.add(static_cast<std::uint8_t>(processor.apic_id));
    table.add(is_enabled);
    table.add(std::uint8_t{0});  // the SAPIC's id, of other machines
    for (const int shift : {8, 16, 24})
      table.add(static_cast<std::uint8_t>(processor.node >> shift));
    table.add_zeros(4);  // the clock domain
    return;
  }
  table.add(std::uint8_t{2});
  table.add(std::uint8_t{24});
  table.add_zeros(2);
  table.add(processor.node);
  table.add(processor.apic_id);
  table.add(is_enabled);
  table.add_zeros(8);
}

/// "Memory Affinity".
void add_memory(SratTable& table, const SratMemory& memory) {
  table.add(std::uint8_t{1});
  table.add(std::uint8_t{40});
  table.add(memory.node);
  table.add_zeros(2);
  table.add(memory.base.value());
  table.add(memory.size);
  table.add_zeros(4);
  table.add(is_enabled | (memory.hotplug ? is_hot_pluggable : 0));
  table.add_zeros(8);
}

Result<void> check(std::span<const SratProcessor> processors) {
  std::vector<std::uint32_t> ids;
  ids.reserve(processors.size());
  for (const SratProcessor& processor : processors)
    ids.push_back(processor.apic_id);
  std::ranges::sort(ids);
  const auto twice = std::ranges::adjacent_find(ids);
  if (twice == ids.end()) return {};
  return fail({.code = Errc::overlap,
               .operation = srat_operation,
               .first = Operand::number(*twice),
               .second = Operand::number(*twice),
               .reason = "two processors have the same APIC id"});
}

Result<void> check(std::span<const SratMemory> memory) {
  std::vector<GuestRange> ranges;
  ranges.reserve(memory.size());
  for (const SratMemory& part : memory) {
    const GuestRange range{part.base, part.size};
    VMSPACE_TRY_IN(srat_operation, range.range());
    ranges.push_back(range);
  }
  std::ranges::sort(ranges, {}, &GuestRange::base);
  const auto overlapping = std::ranges::adjacent_find(
      ranges,
      [](const GuestRange& low, const GuestRange& high) { return *low.last() >= high.base; });
  if (overlapping == ranges.end()) return {};
  return fail({.code = Errc::overlap,
               .operation = srat_operation,
               .first = detail::operand(overlapping[1]),
               .second = detail::operand(overlapping[0])});
}

}  // namespace

std::vector<SratMemory> srat_memory(std::span<const RamPiece> plan) {
  std::vector<SratMemory> memory;
  memory.reserve(plan.size());
  for (const RamPiece& piece : plan)
    memory.push_back({.base = piece.base, .size = piece.size, .node = piece.node});
  return memory;
}

Result<std::vector<std::byte>> srat(std::span<const SratProcessor> processors,
                                    std::span<const SratMemory> memory) {
  VMSPACE_TRY(check(processors));
  VMSPACE_TRY(check(memory));
  constexpr std::uint64_t largest_entry = 40;
  constexpr std::uint64_t limit = std::numeric_limits<std::uint32_t>::max();
  const std::uint64_t entries = std::uint64_t{processors.size()} + memory.size();
  if (entries > (limit - header_size) / largest_entry) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = srat_operation,
                 .first = Operand::number(entries),
                 .second = Operand::number((limit - header_size) / largest_entry),
                 .reason = "entries of 40 bytes, in a table of at most 4 GiB"});
  }
  SratTable table;
  add_header(table);
  for (const SratProcessor& processor : processors)
    add_processor(table, processor);
  for (const SratMemory& part : memory)
    add_memory(table, part);
  return std::move(table).finish();
}

}  // namespace vmspace
