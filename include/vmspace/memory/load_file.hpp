// SPDX-License-Identifier: Apache-2.0
//
// Files into guest memory before the guest starts: kernels, initrds, firmware.
//
//   const auto kernel = VMSPACE_TRY(load_file("bzImage", memory, GuestAddress{1_MiB}));
//   const auto initrd = VMSPACE_TRY(load_file("initrd", memory, GuestAddress{64_MiB}));
//   boot_params.initrd_size = initrd.size;
//
// What a running guest asks for, and parts of a file, are guest_io.hpp's.

#pragma once

#include <string>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Reads all of a regular file into memory from `at` on; gives the range that it fills. Where the
/// guest may not write, too: this is how a ROM gets its contents, so `at` is never the guest's choice.
/// The range may cross from one region into the next.
///
/// Errors, each naming the file: `os` when it can't be opened or read, EIO when it has become shorter
/// meanwhile; `invalid_argument` unless it is a regular file, named without NUL; `zero_size` if empty; those of
/// every read access for a range that is not all memory; those of MemoryRegion::load_image. Nothing has
/// been written when the file does not fit; after an error in the middle, what was read stays. Any
/// thread may call it; a reader may see a part of the file. O(bytes).
[[nodiscard]] VMSPACE_EXPORT Result<GuestRange> load_file(const std::string& path,
                                                          const GuestMemory& memory,
                                                          GuestAddress at);

}  // namespace vmspace
