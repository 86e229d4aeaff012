// SPDX-License-Identifier: Apache-2.0
//
// The VMM layer: what connects an address space to a hypervisor. Linux only.

#pragma once

#include "vmspace/vmm/kvm_memslots.hpp"
