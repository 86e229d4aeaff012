// SPDX-License-Identifier: Apache-2.0
//
// KVM's slots and dirty logs as the kernel keeps and checks them, behind the library's system
// calls; any call can be made to fail. For programs that are linked to failing_new.

#pragma once

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/vmm/kvm_memslots.hpp"

#include "faults/failing_new.hpp"
#include "os/system_calls.hpp"

namespace vmspace::test {

class FakeKvm : public testing::Test {
 protected:
  static constexpr int vm_fd = 1000;
  inline static const auto page_size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));

  static void* host(std::uint64_t address) { return reinterpret_cast<void*>(address); }

  FakeKvm() {
    fake = this;
    calls_.ioctl = [](int fd, unsigned long request, void* argument) {
      if (fd <= vm_fd) return refuse(EBADF);  // closed, or the caller's own
      // The kernel's memory is not ours: what this fake allocates does not fail.
      const int before = std::exchange(granted, -1);
      const int result = fake->ioctl(request, argument);
      granted = before;
      return result;
    };
    calls_.fcntl = [](int fd, int command, int argument) {
      if (fd != vm_fd) {
        return detail::real_system_calls.fcntl(fd, command, argument);
      }
      EXPECT_EQ(command, F_DUPFD_CLOEXEC);
      return fake->duplicate();
    };
    calls_.fstat = [](int fd, struct stat* out) {
      if (fd <= vm_fd) return detail::real_system_calls.fstat(fd, out);
      *out = {};  // an anonymous inode
      return 0;
    };
    calls_.close = [](int fd) {
      if (fd <= vm_fd) return ::close(fd);  // a backing's
      --fake->open_descriptors;
      return 0;
    };
    detail::current_system_calls = &calls_;
  }
  ~FakeKvm() override {
    detail::current_system_calls = &detail::real_system_calls;
    fake = nullptr;
  }

  struct Slot {
    std::uint32_t flags;
    Range range;
    std::uint64_t host_address;
    friend bool operator==(const Slot&, const Slot&) = default;
  };

  // What KVM holds, and how it behaves.
  std::map<std::uint32_t, Slot> slots;
  int slot_limit = 509;
  int read_only_slots = 1;  // what KVM answers to whether it has them; below 0, an error
  int address_spaces = 2;   // what KVM answers to how many there are; below 0, an error
  int open_descriptors = 0;
  int changes = 0;                 // calls that set, change or delete a slot
  std::optional<int> fail_change;  // the index of the one that fails with ENOMEM
  std::optional<int> fail_from;    // or of the first of all that do
  int fetches = 0;                 // calls that ask for a dirty log
  std::optional<int> fail_fetch;   // the index of the one that fails with EFAULT
  int manual_flags = 3;      // what KVM answers to whether it can clear apart; below 0, an error
  bool manual = false;       // it clears logs only when it is told to
  bool fail_enable = false;  // refuses to
  int clears = 0;            // calls that clear a part of a log
  std::optional<int> fail_clear;  // the index of the one that fails with EFAULT

  KvmMemslots make() {
    auto memslots = KvmMemslots::create(vm_fd);
    EXPECT_TRUE(memslots);
    return std::move(*memslots);
  }

  void fail_next(int index) {
    changes = 0;
    fail_change = index;
  }
  void fail_all_from(int index) {
    changes = 0;
    fail_from = index;
  }

  /// A processor writes to this address, in this address space.
  void guest_writes(std::uint64_t address, std::uint32_t address_space = 0) {
    for (const auto& [number, slot] : slots) {
      if (number >> 16 != address_space) continue;
      if (!slot.range.contains(address) || (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) == 0) continue;
      dirty_[number].insert((address - slot.range.min()) / page_size);
    }
  }

 private:
  inline static FakeKvm* fake = nullptr;

  int duplicate() {
    ++open_descriptors;
    return vm_fd + open_descriptors;
  }

  static int refuse(int error) {
    errno = error;
    return -1;
  }

  int ioctl(unsigned long request, void* argument) {
    switch (request) {
      case KVM_CHECK_EXTENSION: {
        const auto extension = reinterpret_cast<std::uintptr_t>(argument);
        if (extension == KVM_CAP_NR_MEMSLOTS) return slot_limit < 0 ? refuse(ENOTTY) : slot_limit;
        if (extension == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) {
          return manual_flags < 0 ? refuse(EPERM) : manual_flags;
        }
        if (extension == KVM_CAP_MULTI_ADDRESS_SPACE) {
          return address_spaces < 0 ? refuse(EPERM) : address_spaces;
        }
        EXPECT_EQ(extension, static_cast<std::uintptr_t>(KVM_CAP_READONLY_MEM));
        return read_only_slots < 0 ? refuse(EPERM) : read_only_slots;
      }
      case KVM_SET_USER_MEMORY_REGION: {
        const int index = changes++;
        if (index == fail_change || (fail_from && index >= *fail_from)) return refuse(ENOMEM);
        return set_region(*static_cast<const kvm_userspace_memory_region*>(argument));
      }
      case KVM_ENABLE_CAP: return enable(*static_cast<const kvm_enable_cap*>(argument));
      case KVM_CLEAR_DIRTY_LOG:
        return clear_dirty_log(*static_cast<const kvm_clear_dirty_log*>(argument));
      case KVM_GET_DIRTY_LOG: return get_dirty_log(*static_cast<const kvm_dirty_log*>(argument));
      default: ADD_FAILURE() << "an unknown request: " << request; return refuse(ENOTTY);
    }
  }

  // The checks of kvm_set_memory_region() in the kernel.
  int set_region(const kvm_userspace_memory_region& region) {
    const int limit = slot_limit == 0 ? 32 : slot_limit;
    if ((region.slot & 0xffff) >= static_cast<std::uint32_t>(limit)) return refuse(EINVAL);
    const auto spaces = static_cast<std::uint32_t>(address_spaces < 1 ? 1 : address_spaces);
    if (region.slot >> 16 >= spaces) return refuse(EINVAL);
    if ((region.guest_phys_addr | region.memory_size | region.userspace_addr) % page_size != 0) {
      return refuse(EINVAL);
    }
    const auto old = slots.find(region.slot);
    if (region.memory_size == 0) {
      if (old == slots.end()) return refuse(EINVAL);
      slots.erase(old);
      dirty_.erase(region.slot);
      return 0;
    }
    if (region.memory_size / page_size > (std::uint64_t{1} << 31) - 1) return refuse(EINVAL);
    if (region.guest_phys_addr + region.memory_size < region.guest_phys_addr) {
      return refuse(EINVAL);
    }
    const Slot wanted{region.flags,
                      *Range::from_base_size(region.guest_phys_addr, region.memory_size),
                      region.userspace_addr};
    if (old != slots.end()) return change(*old, wanted);
    for (const auto& [number, slot] : slots) {
      if (number >> 16 != region.slot >> 16) continue;
      if (slot.range.overlaps(wanted.range)) return refuse(EEXIST);
    }
    slots.emplace(region.slot, wanted);
    return 0;
  }

  // On a slot that is there, KVM switches the log; read-only it can't, and moving is never wanted.
  int change(std::pair<const std::uint32_t, Slot>& old, const Slot& wanted) {
    auto& [number, slot] = old;
    if (wanted.range != slot.range || wanted.host_address != slot.host_address ||
        ((wanted.flags ^ slot.flags) & KVM_MEM_READONLY) != 0) {
      return refuse(EINVAL);
    }
    if (wanted.flags != slot.flags) dirty_.erase(number);  // a log begins empty
    slot.flags = wanted.flags;
    return 0;
  }

  // Gives the bits and forgets them; one failure comes after it has forgotten.
  int get_dirty_log(const kvm_dirty_log& request) {
    const int index = fetches++;
    const auto slot = slots.find(request.slot);
    if (slot == slots.end() || (slot->second.flags & KVM_MEM_LOG_DIRTY_PAGES) == 0) {
      return refuse(ENOENT);
    }
    const std::set<std::uint64_t> pages =
        manual ? dirty_[request.slot] : std::exchange(dirty_[request.slot], {});
    if (index == fail_fetch) return refuse(EFAULT);
    auto* const words = static_cast<std::uint64_t*>(request.dirty_bitmap);
    // The kernel stores every word; two are enough to find a buffer that is too short.
    words[0] = words[(slot->second.range.size() / page_size - 1) / 64] = 0;
    for (const std::uint64_t page : pages)
      words[page / 64] |= std::uint64_t{1} << (page % 64);
    return 0;
  }

  // kvm_vm_ioctl_enable_cap_generic()
  int enable(const kvm_enable_cap& request) {
    if (fail_enable) return refuse(EPERM);
    EXPECT_EQ(request.cap, static_cast<std::uint32_t>(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
    if (request.flags != 0 || (request.args[0] & ~1ULL) != 0) return refuse(EINVAL);
    manual = request.args[0] != 0;
    return 0;
  }

  // kvm_clear_dirty_log_protect(): whole words, but at the end of a slot. A failure comes half-way.
  int clear_dirty_log(const kvm_clear_dirty_log& request) {
    const int index = clears++;
    const auto slot = slots.find(request.slot);
    if (slot == slots.end() || (slot->second.flags & KVM_MEM_LOG_DIRTY_PAGES) == 0) {
      return refuse(ENOENT);
    }
    const std::uint64_t pages = slot->second.range.size() / page_size;
    if (request.first_page % 64 != 0 || request.first_page > pages ||
        request.num_pages > pages - request.first_page ||
        (request.num_pages < pages - request.first_page && request.num_pages % 64 != 0)) {
      return refuse(EINVAL);
    }
    const auto* const words = static_cast<const std::uint64_t*>(request.dirty_bitmap);
    std::erase_if(dirty_[request.slot], [&](std::uint64_t page) {
      if (page < request.first_page || page - request.first_page >= request.num_pages) return false;
      const std::uint64_t bit = page - request.first_page;
      return (words[bit / 64] >> bit % 64 & 1) != 0;
    });
    return index == fail_clear ? refuse(EFAULT) : 0;
  }

  std::map<std::uint32_t, std::set<std::uint64_t>> dirty_;  // by slot
  detail::SystemCalls calls_ = detail::real_system_calls;
};

}  // namespace vmspace::test
