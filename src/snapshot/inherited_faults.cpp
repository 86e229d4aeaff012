// SPDX-License-Identifier: Apache-2.0

#include "snapshot/inherited_faults.hpp"

#include <algorithm>
#include <cerrno>

#include "vmspace/base/try.hpp"

#include "os/page_size.hpp"
#include "os/thread.hpp"

namespace vmspace::detail {

void resolve_settled(const Userfault& faults, const MemoryMapping& mapping, std::uint64_t offset,
                     const std::byte* zeros, bool is_watched) noexcept {
  const Backing& backing = mapping.backing();
  const std::uint64_t size = mapping.page_size();
  std::byte* const page = mapping.data() + offset / size * size;
  Userfault::Done done{0, EFAULT};
  if (backing.is_shared()) done = faults.map_minor(page, size);
  // The file lacks it.
  if (done.error == EFAULT) {
    // Shared memory may have left the page tables after it was written (host/written_pages.hpp).
    const bool is_new = is_watched && !backing.is_shared();
    done = backing.is_hugetlb() ? faults.copy(page, zeros, size, true, is_new)
                                : faults.zero(page, size);
  }
  if (done.error == 0) return;
  // The fault is raised again at once, and the host may have memory a little later.
  if (done.error == ENOMEM) WakeEvent::pause();
  faults.wake(page, size);
}

Result<void> InheritedFaults::open(const char* caller) {
  return wake_.open(caller);
}

Result<void> InheritedFaults::start(const char* caller) {
  if (parts_.empty()) return {};
  std::uint64_t largest = 0;
  for (const Part* part : parts_) {
    if (part->mapping->backing().is_hugetlb())
      largest = std::max(largest, part->mapping->page_size());
  }
  if (largest != 0) VMSPACE_TRY(zeros_.map(caller, largest));
  const auto body = [](void* self) -> void* {
    static_cast<InheritedFaults*>(self)->work();
    return nullptr;
  };
  polled_.reserve(parts_.size() + 1);
  if (const int error = start_thread(thread_, body, this); error != 0)
    return fail_os(caller, {}, "pthread_create", error);
  has_thread_ = true;
  return {};
}

void InheritedFaults::answer(Part& part) noexcept {
  part.is_inherited = true;
  wake_.wake();
}

void InheritedFaults::stop() noexcept {
  if (!has_thread_) return;
  is_stopping_ = true;
  wake_.wake();
  pthread_join(thread_, nullptr);
  has_thread_ = false;
}

void InheritedFaults::work() noexcept {
  name_this_thread("vmspace-faults");
  while (!is_stopping_) {
    polled_.assign(1, wake_.polled());
    for (const Part* part : parts_) {
      const int fd = part->faults->fd();
      if (part->is_inherited && std::ranges::find(polled_, fd, &pollfd::fd) == polled_.end())
        polled_.push_back({.fd = fd, .events = POLLIN, .revents = 0});
    }
    wake_.wait(polled_);
    for (const Part* part : parts_) {
      if (part->is_inherited) answer_next(*part->faults);
    }
  }
}

void InheritedFaults::answer_next(const Userfault& faults) const noexcept {
  uffd_msg message;
  const auto is_there = faults.next("DirtyScan", message);
  if (!is_there) return WakeEvent::pause();
  if (!*is_there || message.event != UFFD_EVENT_PAGEFAULT) return;
  const std::uint64_t address = message.arg.pagefault.address;
  const auto offset_in = [&](const Part* part) {
    return address - reinterpret_cast<std::uintptr_t>(part->mapping->data());
  };
  const auto part = std::ranges::find_if(parts_, [&](const Part* one) {
    return one->is_inherited && one->faults.get() == &faults &&
           offset_in(one) < one->mapping->size();
  });
  if (part != parts_.end()) {
    return resolve_settled(faults, *(*part)->mapping, offset_in(*part), zeros_.as<std::byte>(),
                           true);
  }
  // Another scan's, or still the restore's, which reads it when it is raised again.
  const std::uint64_t page = base_page_size();
  faults.wake(reinterpret_cast<std::byte*>(address / page * page), page);
}

}  // namespace vmspace::detail
