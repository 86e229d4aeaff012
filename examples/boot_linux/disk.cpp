// SPDX-License-Identifier: Apache-2.0

#include "disk.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "vmspace/base/try.hpp"

namespace boot_linux {

using vmspace::Result;

Result<std::unique_ptr<Disk>> Disk::attach(const std::string& path,
                                           const vmspace::ResourceManager& manager,
                                           const vmspace::VmMemory& memory, Machine& machine) {
  auto resources = VMSPACE_TRY(manager.acquire(
      {vmspace::MmioRange{.size = VirtioMmioBlk::size, .reach = vmspace::MmioReach::below_4g},
       vmspace::LegacyIrq{}},
      "disk"));
  example::Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct stat status {};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) {
    return vmspace::fail({.code = vmspace::Errc::os,
                          .operation = "Disk::attach",
                          .reason = "open",
                          .os_errno = errno,
                          .text = {{}, path}});
  }
  const auto sectors = static_cast<std::uint64_t>(status.st_size) / example::BlkDevice::sector_size;
  return std::unique_ptr<Disk>(
      new Disk(std::move(file), sectors, std::move(resources), memory.map()->memory, machine));
}

Disk::Disk(example::Descriptor file, std::uint64_t sectors, vmspace::DeviceResources resources,
           const vmspace::GuestMemory& memory, Machine& machine)
    : file_(std::move(file)),
      resources_(std::move(resources)),
      memory_(memory),
      machine_(machine),
      device_(memory_, file_.get(), sectors,
              [this](bool level) { machine_.set_interrupt(mmio().interrupt, level); }) {
  machine_.attach(resources_.mmio()->guest_range(),
                  [this](std::uint64_t offset, std::span<std::byte> bytes, bool is_write) {
                    if (is_write) {
                      device_.write(offset, bytes);
                    } else {
                      device_.read(offset, bytes);
                    }
                  });
}

Disk::~Disk() {
  machine_.attach({}, {});
}

MmioDevice Disk::mmio() const {
  return {.base = resources_.mmio()->base(),
          .size = VirtioMmioBlk::size,
          .interrupt = resources_.legacy_irq()};
}

}  // namespace boot_linux
