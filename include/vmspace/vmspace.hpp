// SPDX-License-Identifier: Apache-2.0
//
// Every layer of vmspace, bottom up; all but the adapters (text.hpp says which).

#pragma once

#include "vmspace/address_space.hpp"
#include "vmspace/allocator.hpp"
#include "vmspace/error.hpp"
#include "vmspace/error_text.hpp"
#include "vmspace/literals.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/result.hpp"
#include "vmspace/try.hpp"
#include "vmspace/version.hpp"
#include "vmspace/vmm.hpp"
