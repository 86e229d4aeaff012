// SPDX-License-Identifier: Apache-2.0
//
// The allocator layer: ranges, constraints, and the tree that gives ranges out; with what their users
// need of the base. Not Published, which takes threads, clocks and condition variables.

#pragma once

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/decode_map.hpp"
#include "vmspace/allocator/interval_entry.hpp"
#include "vmspace/allocator/interval_iterator.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/interval_tree_stats.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/error.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/base/version.hpp"
