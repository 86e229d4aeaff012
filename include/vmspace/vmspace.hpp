// SPDX-License-Identifier: Apache-2.0
//
// Every layer of vmspace; all but the adapters (text.hpp says which).

#pragma once

#include "vmspace/address_space.hpp"
#include "vmspace/allocator.hpp"
#include "vmspace/base.hpp"
#include "vmspace/boot.hpp"
#include "vmspace/host.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/snapshot.hpp"
#include "vmspace/spec.hpp"
#include "vmspace/virtio.hpp"
#include "vmspace/vmm.hpp"
