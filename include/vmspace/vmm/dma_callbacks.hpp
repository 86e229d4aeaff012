// SPDX-License-Identifier: Apache-2.0
//
// A library of drivers or devices that has to know guest memory, behind a pair of C functions.
//
// SPDK takes registrations by host address, in units of 2 MiB:
//
//   const DmaFunctions spdk{
//       .name = "spdk",
//       .map = [](void*, const DmaMapping* m) {
//         return spdk_mem_register(m->host_address, m->size);
//       },
//       .unmap = [](void*, const DmaMapping* m) {
//         return spdk_mem_unregister(m->host_address, m->size);
//       },
//       .page_size = 2_MiB,
//       .by_host_address = true};
//   auto dma = VMSPACE_TRY(DmaMappings::create(VMSPACE_TRY(DmaCallbacks::make(spdk))));
//
// A client of vfio-user (libvfio-user at the other end) sends VFIO_USER_DMA_MAP with `iova`,
// `size`, `fd` and `file_offset`; an emulated device in this process gets its DMA callbacks called.

#pragma once

#include <cerrno>
#include <cstdint>
#include <limits>
#include <memory>
#include <string_view>

#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/dma_target.hpp"

namespace vmspace {

/// Functions that map and unmap memory for DMA; an aggregate for designated initialisers. Each gets
/// `context`, and returns 0 or a negative errno, as SPDK and libvfio-user do; neither throws.
struct DmaFunctions {
  const char* name = "dma";  ///< in errors; outlives the target
  void* context = nullptr;   ///< handed to each call
  /// Maps what it is given, or refuses it.
  int (*map)(void* context, const DmaMapping* mapping) = nullptr;
  /// Gets exactly what `map` got, but for another `iova` where memory has moved and the library
  /// goes by host addresses. After 0 the library does not touch the memory any more.
  int (*unmap)(void* context, const DmaMapping* mapping) = nullptr;
  /// DmaLimits::page_size.
  std::uint64_t page_size = 4096;
  /// DmaTarget::is_by_host_address().
  bool by_host_address = false;
};

/// A DmaTarget that calls C functions.
class DmaCallbacks final : public DmaTarget {
  struct Passkey {
    explicit Passkey() = default;
  };

 public:
  /// Errors: `invalid_argument` when the name or a function is null; `bad_alignment` when the page
  /// size is not a power of two.
  [[nodiscard]] static Result<std::unique_ptr<DmaCallbacks>> make(const DmaFunctions& functions) {
    constexpr const char* operation = "DmaCallbacks::make";
    if (functions.name == nullptr || functions.map == nullptr || functions.unmap == nullptr) {
      return fail({.code = Errc::invalid_argument,
                   .operation = operation,
                   .reason = "a name and both functions are needed"});
    }
    if ((functions.page_size & (functions.page_size - 1)) != 0 || functions.page_size == 0) {
      return fail({.code = Errc::bad_alignment,
                   .operation = operation,
                   .first = Operand::size(functions.page_size)});
    }
    return std::make_unique<DmaCallbacks>(Passkey(), functions);
  }

  /// For make().
  DmaCallbacks(Passkey, const DmaFunctions& functions) noexcept : functions_(functions) {}

  [[nodiscard]] std::string_view name() const noexcept override { return functions_.name; }
  [[nodiscard]] Result<DmaLimits> limits() const override {
    return DmaLimits{.page_size = functions_.page_size};
  }
  /// Errors: `os` with the errno that the function returned.
  [[nodiscard]] Result<void> map(const DmaMapping& mapping) override {
    return checked(functions_.map(functions_.context, &mapping), "DmaCallbacks::map", mapping);
  }
  /// Errors: `os` with the errno that the function returned.
  [[nodiscard]] Result<void> unmap(const DmaMapping& mapping) noexcept override {
    return checked(functions_.unmap(functions_.context, &mapping), "DmaCallbacks::unmap", mapping);
  }
  [[nodiscard]] bool is_by_host_address() const noexcept override {
    return functions_.by_host_address;
  }

 private:
  [[nodiscard]] static Result<void> checked(int returned, const char* operation,
                                            const DmaMapping& mapping) noexcept {
    if (returned == 0) return {};
    // Some functions return a positive errno; the least int has no positive counterpart.
    const int error = returned > 0                                  ? returned
                      : returned == std::numeric_limits<int>::min() ? EIO
                                                                    : -returned;
    return fail({.code = Errc::os,
                 .operation = operation,
                 .first = Operand::span(mapping.iova, mapping.size),
                 .reason = "the library's function refused it",
                 .os_errno = error});
  }

  DmaFunctions functions_;
};

}  // namespace vmspace
