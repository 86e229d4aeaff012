// SPDX-License-Identifier: Apache-2.0
//
// The host layer: memory of this process, from arenas and backings to mappings. Knows no guest
// address. Linux only.

#pragma once

#include "vmspace/allocator.hpp"
#include "vmspace/host/arena.hpp"
#include "vmspace/host/backing.hpp"
#include "vmspace/host/external_memory.hpp"
#include "vmspace/host/fault_guard.hpp"
#include "vmspace/host/host_info.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/memory_pin.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/spec.hpp"
