// SPDX-License-Identifier: Apache-2.0
//
// The address space layer: guest addresses, layouts, regions and the spaces that hold them. Maps
// nothing.

#pragma once

#include "vmspace/address_space/address_space.hpp"
#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/address_space/layout_planner.hpp"
#include "vmspace/address_space/memory_map.hpp"
#include "vmspace/address_space/memory_map_svg.hpp"
#include "vmspace/address_space/region_ledger.hpp"
#include "vmspace/allocator.hpp"
#include "vmspace/spec.hpp"
