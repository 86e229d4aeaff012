// SPDX-License-Identifier: Apache-2.0
//
// One range of guest physical memory and everything that a VMM knows of it before it is mapped.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/spec/backing_spec.hpp"
#include "vmspace/spec/protection.hpp"

namespace vmspace {

/// What a region is to the guest.
enum class RegionType : std::uint8_t {
  default_memory,   ///< RAM
  device_memory,    ///< a device's registers or memory (BARs), emulated or passed through
  dax_memory,       ///< a host file that the guest maps directly (virtio-fs DAX, pmem)
  firmware_memory,  ///< firmware image or its variables
};

/// The name that the memory map shows: `ram`, `device`, `dax`, `firmware`.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(RegionType type) noexcept;

/// A region before it is checked; an aggregate for designated initialisers.
///
/// Aggregates of the library are assigned member by member: an assignment that runs out of memory
/// leaves some members new and some old. Classes keep what they had.
struct RegionOptions {
  std::string name = {};  ///< for people: the memory map and messages show it
  RegionType type = RegionType::default_memory;  ///< what the guest has there
  GuestAddress base = {};    ///< the first address; place_region() chooses one itself
  std::uint64_t size = 0;    ///< bytes
  BackingSpec backing = {};  ///< what it is mapped from; none: the memory layer leaves it alone
  Protection protection = Protection::read_write;  ///< what the guest may do
  std::optional<std::uint32_t> numa_node = {};     ///< the host node to bind to; unset: anywhere
  bool huge_pages = false;  ///< advise transparent huge pages (MADV_HUGEPAGE)
  bool hotplug = false;     ///< came, or may go, while the guest runs
  bool populate = false;    ///< fill with pages before the guest starts
  /// The device or part of the VMM that the region belongs to; empty: nobody's in particular. The
  /// memory map shows it; it is not interpreted here.
  std::string owner = {};

  friend bool operator==(const RegionOptions&, const RegionOptions&) = default;
};

class AddressSpaceRegion;

/// How regions are held: whoever knows a region (spaces and their copies, mapped memory, differences
/// between spaces) shares the one object. Never null where the library gives one, unless it says so.
using AddressSpaceRegionPtr = std::shared_ptr<const AddressSpaceRegion>;

/// A checked region of guest physical memory: immutable, and shared by pointer.
///
/// Invariant: the size is not 0, base + size does not pass 2^64, and base, size and the backing's
/// offset are multiples of the backing's page size (not checked where there is no backing). Every
/// enumeration holds a named value. Without a backing there is no node, and neither huge pages nor
/// population.
///
/// Threads: any, at any time.
class VMSPACE_EXPORT AddressSpaceRegion {
  /// Nobody else can make one, so that only make() can call the constructor.
  struct Passkey {
    explicit Passkey() = default;
  };

 public:
  /// Checks the options and makes the region. Errors, each naming the region: `zero_size`;
  /// `overflow` when base + size passes 2^64, or the part of a file 2^63 - 1 (the largest off_t);
  /// `misaligned` unless base, size and file offset are multiples of the backing's page size;
  /// `bad_alignment` when the page size is not a power of two; `invalid_argument` when it is
  /// smaller than the machine's pages, when the backing lacks what its source needs (a path or a
  /// descriptor) or has what its source can't use, when an enumeration holds an unnamed value, or
  /// when numa_node, huge_pages or populate is set without a backing or for source device or
  /// external. Opens nothing and asks nothing of the host but its page size. O(1).
  [[nodiscard]] static Result<AddressSpaceRegionPtr> make(RegionOptions options);

  /// For make(): public so that a region and its reference count are one allocation.
  AddressSpaceRegion(Passkey, RegionOptions&& options) noexcept : options_(std::move(options)) {}
  AddressSpaceRegion(const AddressSpaceRegion&) = delete;
  AddressSpaceRegion& operator=(const AddressSpaceRegion&) = delete;
  ~AddressSpaceRegion() = default;

  /// What the memory map and messages call it.
  [[nodiscard]] const std::string& name() const noexcept { return options_.name; }
  /// What the guest has there.
  [[nodiscard]] RegionType type() const noexcept { return options_.type; }
  /// The first address.
  [[nodiscard]] GuestAddress base() const noexcept { return options_.base; }
  /// Its bytes; at least 1.
  [[nodiscard]] std::uint64_t size() const noexcept { return options_.size; }
  /// The last address, inclusive: a region may end with the last byte of the address space.
  [[nodiscard]] GuestAddress last_addr() const noexcept {
    return GuestAddress(options_.base.value() + (options_.size - 1));
  }
  /// The addresses from base() to last_addr().
  [[nodiscard]] Range range() const noexcept {
    // Never fails: make() has checked that the size is not 0 and that the end fits.
    return detail::unchecked_range(base().value(), last_addr().value());
  }
  /// Base and size, as GuestMemory and KvmMemslots take them.
  [[nodiscard]] GuestRange guest_range() const noexcept { return {base(), size()}; }
  /// Base and size are multiples of it: the backing's page size, or 1 without a backing.
  [[nodiscard]] std::uint64_t alignment() const noexcept {
    return is_mapped() ? backing().effective_page_size() : 1;
  }
  /// What it is mapped from; MemorySource::none for what nobody maps.
  [[nodiscard]] const BackingSpec& backing() const noexcept { return options_.backing; }
  /// What the guest may do. The mapping of this process may be written all the same.
  [[nodiscard]] Protection protection() const noexcept { return options_.protection; }
  /// The host node that its memory is bound to; nothing: any.
  [[nodiscard]] std::optional<std::uint32_t> numa_node() const noexcept {
    return options_.numa_node;
  }
  /// Whether the kernel is asked for transparent huge pages.
  [[nodiscard]] bool wants_huge_pages() const noexcept { return options_.huge_pages; }
  /// Whether it came, or may go, while the guest runs.
  [[nodiscard]] bool is_hotplug() const noexcept { return options_.hotplug; }
  /// Whether it is to be filled with pages before the guest starts.
  [[nodiscard]] bool wants_populate() const noexcept { return options_.populate; }
  /// The device or part of the VMM that it belongs to; empty: nobody's in particular.
  [[nodiscard]] const std::string& owner() const noexcept { return options_.owner; }
  /// Whether it is a host file that the guest maps directly: RegionType::dax_memory.
  [[nodiscard]] bool is_dax() const noexcept { return type() == RegionType::dax_memory; }
  /// Whether the memory layer maps it: it has a backing.
  [[nodiscard]] bool is_mapped() const noexcept {
    return options_.backing.source != MemorySource::none;
  }
  /// Whether the address lies in it.
  [[nodiscard]] bool contains(GuestAddress address) const noexcept {
    return range().contains(address.value());
  }

  /// All of it, to make a changed copy: `auto moved = region.options(); moved.base = ...`.
  [[nodiscard]] const RegionOptions& options() const noexcept { return options_; }

  friend bool operator==(const AddressSpaceRegion&, const AddressSpaceRegion&) = default;

 private:
  RegionOptions options_;
};

}  // namespace vmspace
