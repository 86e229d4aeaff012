// SPDX-License-Identifier: Apache-2.0

#include <fstream>
#include <iostream>
#include <string>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/ostream.hpp"

#include "sample_files.hpp"

using namespace vmspace::literals;

namespace {

// README begin
vmspace::Result<vmspace::GuestMemory> with_firmware(const vmspace::AddressSpace& space,
                                                    const std::string& code,
                                                    const std::string& variables) {
  // The code ends with the last byte below 4 GiB, where an x86 processor begins.
  const auto rom =
      VMSPACE_TRY(space.insert_region({.name = "firmware code",
                                       .type = vmspace::RegionType::firmware_memory,
                                       .base = vmspace::GuestAddress{4_GiB - 2_MiB},
                                       .size = 2_MiB,
                                       .backing = {.source = vmspace::MemorySource::anon},
                                       .protection = vmspace::Protection::read}));
  // Its variables: the file itself is mapped, so what the guest writes is there next time.
  VMSPACE_TRY(
      space.insert_region({.name = "firmware variables",
                           .type = vmspace::RegionType::firmware_memory,
                           .base = vmspace::GuestAddress{4_GiB - 2_MiB - 128_KiB},
                           .size = 128_KiB,
                           .backing = {.source = vmspace::MemorySource::file, .path = variables}}));

  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::map(*space.snapshot()));
  VMSPACE_TRY(load_file(code, memory, rom->base()));
  return memory;
}
// README end

vmspace::Result<void> run(const std::string& code, const std::string& variables) {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  const auto memory = VMSPACE_TRY(with_firmware(space, code, variables));
  for (const vmspace::MemoryRegionPtr& region : memory.regions())
    std::cout << region->description() << '\n';

  const vmspace::GuestAddress reset_vector{4_GiB - 16};
  const auto code_there = VMSPACE_TRY(memory.read_string(reset_vector, 16));
  std::cout << code_there << '\n';
  const auto refused = memory.write(reset_vector, std::uint32_t{0});
  if (!refused) std::cout << refused.error().message() << '\n';
  return memory.write(vmspace::GuestAddress{4_GiB - 2_MiB - 128_KiB}, std::uint32_t{0x454d414e});
}

}  // namespace

int main() {
  std::string code(2_MiB, 'x');
  code.replace(code.size() - 16, 16, "reset vector\0\0\0\0", 16);
  const example::SampleFiles files;
  files.write("OVMF_CODE.fd", code);
  files.write("OVMF_VARS.fd", std::string(128_KiB, '\xff'));
  vmspace::value_or_exit(run("OVMF_CODE.fd", "OVMF_VARS.fd"));

  std::string name(4, '\0');
  std::ifstream("OVMF_VARS.fd").read(name.data(), 4);
  std::cout << "in the file: " << name << '\n';
}
