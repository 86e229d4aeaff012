// SPDX-License-Identifier: Apache-2.0
//
// A container of VFIO with an IOMMU of type 1, version 2, as the kernel's vfio_iommu_type1.c keeps
// and checks its mappings, behind the library's system calls; any call can be made to fail. For
// programs that are linked to failing_new.

#pragma once

#include <fcntl.h>
#include <linux/vfio.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator/range.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/vfio_container.hpp"

#include "faults/failing_new.hpp"
#include "os/system_calls.hpp"

namespace vmspace::test {

class FakeVfio : public testing::Test {
 protected:
  static constexpr int container_fd = 2000;
  inline static const auto page_size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));

  FakeVfio() {
    fake = this;
    calls_.ioctl = [](int fd, unsigned long request, void* argument) {
      if (fd <= container_fd) return refuse(EBADF);  // closed, or the caller's own
      // The kernel's memory is not ours: what this fake allocates does not fail.
      const int before = std::exchange(granted, -1);
      const int result = fake->ioctl(request, argument);
      granted = before;
      return result;
    };
    calls_.fcntl = [](int fd, int command, int argument) {
      if (fd != container_fd) return detail::real_system_calls.fcntl(fd, command, argument);
      EXPECT_EQ(command, F_DUPFD_CLOEXEC);
      if (fake->fail_duplicate) return refuse(EMFILE);
      return container_fd + ++fake->open_descriptors;
    };
    calls_.close = [](int fd) {
      if (fd <= container_fd) return ::close(fd);  // a backing's
      --fake->open_descriptors;
      return 0;
    };
    detail::current_system_calls = &calls_;
  }
  ~FakeVfio() override {
    detail::current_system_calls = &detail::real_system_calls;
    fake = nullptr;
  }

  struct Mapped {
    std::uint64_t size;
    std::uint64_t host_address;
    std::uint32_t flags;
    friend bool operator==(const Mapped&, const Mapped&) = default;
  };

  // What the container holds, and how it behaves.
  std::map<std::uint64_t, Mapped> mapped;  // by IOVA
  int api_version = VFIO_API_VERSION;
  int has_type1 = 1;
  bool has_iommu = true;  // VFIO_SET_IOMMU has been called
  std::optional<std::uint64_t> page_sizes = std::uint64_t{4096} | std::uint64_t{1} << 21;
  std::optional<std::vector<Range>> iova_ranges = {};           // none: the kernel does not say
  std::optional<std::uint32_t> mapping_limit = {};              // none: the kernel does not say
  std::function<void(std::vector<std::byte>&)> edit_info = {};  // what it answers to GET_INFO
  bool fail_duplicate = false;
  int open_descriptors = 0;
  int calls = 0;                 // ioctls
  std::optional<int> fail_call;  // the index of the one that fails
  std::optional<int> fail_from;  // or of the first of all that do
  int fail_errno = ENOMEM;
  std::optional<std::uint64_t> unmapped_size;  // what an unmap says that it unmapped

  std::unique_ptr<VfioContainer> open() {
    auto container = VfioContainer::open(container_fd);
    EXPECT_THAT(container, IsOk());
    return std::move(*container);
  }

  void fail_next(int index, int error = ENOMEM) {
    calls = 0;
    fail_call = index;
    fail_errno = error;
  }

  // The parts of an answer, for tests that make their own.
  static void put(std::vector<std::byte>& bytes, std::size_t offset, const void* from,
                  std::size_t size) {
    if (bytes.size() < offset + size) bytes.resize(offset + size);
    std::memcpy(bytes.data() + offset, from, size);
  }
  template <typename T>
  static void put(std::vector<std::byte>& bytes, std::size_t offset, const T& value) {
    put(bytes, offset, &value, sizeof value);
  }

 private:
  inline static FakeVfio* fake = nullptr;

  static int refuse(int error) {
    errno = error;
    return -1;
  }

  int ioctl(unsigned long request, void* argument) {
    const int index = calls++;
    if (index == fail_call || (fail_from && index >= *fail_from)) return refuse(fail_errno);
    if (request == VFIO_GET_API_VERSION) return api_version;
    if (request == VFIO_CHECK_EXTENSION) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(argument), std::uintptr_t{VFIO_TYPE1v2_IOMMU});
      return has_type1;
    }
    if (!has_iommu) return refuse(EINVAL);
    if (request == VFIO_IOMMU_GET_INFO) return info(static_cast<std::byte*>(argument));
    if (request == VFIO_IOMMU_MAP_DMA) {
      return map(*static_cast<const vfio_iommu_type1_dma_map*>(argument));
    }
    if (request == VFIO_IOMMU_UNMAP_DMA) {
      return unmap(*static_cast<vfio_iommu_type1_dma_unmap*>(argument));
    }
    ADD_FAILURE() << "an unknown request: " << request;
    return refuse(ENOTTY);
  }

  // The whole answer if there is room for it, else its fixed part and how much room it takes.
  int info(std::byte* out) const {
    std::uint32_t room = 0;
    std::memcpy(&room, out, sizeof room);
    vfio_iommu_type1_info fixed{};
    if (room < 16) return refuse(EINVAL);
    fixed.flags = page_sizes ? VFIO_IOMMU_INFO_PGSIZES : 0;
    fixed.iova_pgsizes = page_sizes.value_or(0);
    std::vector<std::byte> answer(sizeof fixed);
    std::size_t link = offsetof(vfio_iommu_type1_info, cap_offset);
    const auto add = [&](std::uint16_t id, const std::vector<std::byte>& body) {
      const auto at = static_cast<std::uint32_t>((answer.size() + 7) / 8 * 8);
      put(answer, link, at);
      put(answer, at, vfio_info_cap_header{.id = id, .version = 1, .next = 0});
      put(answer, at + sizeof(vfio_info_cap_header), body.data(), body.size());
      link = at + offsetof(vfio_info_cap_header, next);
      fixed.flags |= VFIO_IOMMU_INFO_CAPS;
    };
    if (iova_ranges) {
      std::vector<std::byte> body;
      put(body, 0, static_cast<std::uint32_t>(iova_ranges->size()));
      put(body, 4, std::uint32_t{0});
      for (const Range& range : *iova_ranges)
        put(body, body.size(), vfio_iova_range{.start = range.min(), .end = range.max()});
      add(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, body);
    }
    std::vector<std::byte> migration(24);
    if (iova_ranges || mapping_limit) add(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, migration);
    if (mapping_limit) {
      std::vector<std::byte> body;
      put(body, 0, static_cast<std::uint32_t>(*mapping_limit - mapped.size()));
      add(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, body);
    }
    std::uint32_t first = 0;
    std::memcpy(&first, answer.data() + offsetof(vfio_iommu_type1_info, cap_offset), sizeof first);
    fixed.argsz = static_cast<std::uint32_t>(answer.size());
    fixed.cap_offset = answer.size() <= room ? first : 0;
    put(answer, 0, fixed);
    if (edit_info) edit_info(answer);
    std::memcpy(out, answer.data(), std::min<std::size_t>(room, answer.size()));
    return 0;
  }

  // vfio_dma_do_map() in the kernel.
  int map(const vfio_iommu_type1_dma_map& request) {
    EXPECT_EQ(request.argsz, sizeof request);
    const std::uint32_t known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    const std::uint64_t mask = smallest_page() - 1;
    if (request.flags == 0 || (request.flags & ~known) != 0 || request.size == 0 ||
        ((request.size | request.iova | request.vaddr) & mask) != 0) {
      return refuse(EINVAL);
    }
    const auto range = Range::from_base_size(request.iova, request.size);
    if (!range || request.vaddr + (request.size - 1) < request.vaddr) return refuse(EINVAL);
    for (const auto& [iova, other] : mapped) {
      if (range->overlaps(*Range::from_base_size(iova, other.size))) return refuse(EEXIST);
    }
    if (mapping_limit && mapped.size() >= *mapping_limit) return refuse(ENOSPC);
    const auto holds = [&](const Range& valid) { return valid.contains(*range); };
    if (iova_ranges && !std::ranges::any_of(*iova_ranges, holds)) return refuse(EINVAL);
    mapped[request.iova] = {request.size, request.vaddr, request.flags};
    return 0;
  }

  // vfio_dma_do_unmap(): no mapping is cut, and none at all is no error.
  int unmap(vfio_iommu_type1_dma_unmap& request) {
    EXPECT_EQ(request.argsz, sizeof request);
    const auto range = Range::from_base_size(request.iova, request.size);
    const std::uint64_t mask = smallest_page() - 1;
    if (request.flags != 0 || !range || ((request.iova | request.size) & mask) != 0) {
      return refuse(EINVAL);
    }
    std::vector<std::uint64_t> gone;
    std::uint64_t size = 0;
    for (const auto& [iova, other] : mapped) {
      const Range whole = *Range::from_base_size(iova, other.size);
      if (!range->overlaps(whole)) continue;
      if (!range->contains(whole)) return refuse(EINVAL);
      gone.push_back(iova);
      size += other.size;
    }
    for (const std::uint64_t iova : gone)
      mapped.erase(iova);
    request.size = unmapped_size.value_or(size);
    return 0;
  }

  [[nodiscard]] std::uint64_t smallest_page() const {
    return std::uint64_t{1} << std::countr_zero(page_sizes.value_or(page_size));
  }

  detail::SystemCalls calls_ = detail::real_system_calls;
};

}  // namespace vmspace::test
