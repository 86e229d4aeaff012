// SPDX-License-Identifier: Apache-2.0
//
// The memory layer: mapped regions, access by guest address, and dirty tracking. Linux only.

#pragma once

#include "vmspace/address_space.hpp"
#include "vmspace/host.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/discard_memory.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/guest_object.hpp"
#include "vmspace/memory/guest_ptr.hpp"
#include "vmspace/memory/guest_ref.hpp"
#include "vmspace/memory/guest_view.hpp"
#include "vmspace/memory/io_tlb.hpp"
#include "vmspace/memory/iommu_view.hpp"
#include "vmspace/memory/load_file.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/memory/present_blocks.hpp"
#include "vmspace/memory/region_descriptor.hpp"
