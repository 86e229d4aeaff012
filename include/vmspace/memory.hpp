// SPDX-License-Identifier: Apache-2.0
//
// Host memory for guests: backings, mappings and regions.

#pragma once

#include "vmspace/memory/arena.hpp"
#include "vmspace/memory/backing.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/mapping.hpp"
#include "vmspace/memory/populate.hpp"
#include "vmspace/memory/region.hpp"
