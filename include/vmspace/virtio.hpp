// SPDX-License-Identifier: Apache-2.0
//
// The virtio layer: virtqueues, as devices see them. Linux only.

#pragma once

#include "vmspace/memory.hpp"
#include "vmspace/virtio/descriptor_chain.hpp"
#include "vmspace/virtio/packed_queue.hpp"
#include "vmspace/virtio/split_queue.hpp"
#include "vmspace/virtio/virtio_queue.hpp"
