// SPDX-License-Identifier: Apache-2.0
//
// The VMM layer: what connects guest memory to a hypervisor. Linux only.

#pragma once

#include "vmspace/memory.hpp"
#include "vmspace/vmm/dma_callbacks.hpp"
#include "vmspace/vmm/dma_mappings.hpp"
#include "vmspace/vmm/dma_target.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"
#include "vmspace/vmm/memory_blocks.hpp"
#include "vmspace/vmm/memory_listener.hpp"
#include "vmspace/vmm/memory_recorder.hpp"
#include "vmspace/vmm/vcpu_gate.hpp"
#include "vmspace/vmm/vfio_container.hpp"
#include "vmspace/vmm/vhost_kernel_memory.hpp"
#include "vmspace/vmm/vhost_user_backend.hpp"
#include "vmspace/vmm/vhost_user_iotlb.hpp"
#include "vmspace/vmm/vhost_user_log.hpp"
#include "vmspace/vmm/vhost_user_memory.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"
#include "vmspace/vmm/vm_dirty_log.hpp"
#include "vmspace/vmm/vm_gate.hpp"
#include "vmspace/vmm/vm_memory.hpp"
