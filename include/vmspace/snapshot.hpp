// SPDX-License-Identifier: Apache-2.0
//
// The snapshot layer: the state of guest memory in and out. Linux only.

#pragma once

#include "vmspace/memory.hpp"
#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/snapshot/handover.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/snapshot/page_source.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/snapshot/snapshot_region.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"
#include "vmspace/snapshot/working_set.hpp"
