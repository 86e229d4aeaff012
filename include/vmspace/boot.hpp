// SPDX-License-Identifier: Apache-2.0
//
// The boot layer: the tables that tell a guest, when it starts, what its memory is.

#pragma once

#include "vmspace/address_space.hpp"
#include "vmspace/boot/e820.hpp"
#include "vmspace/boot/srat.hpp"
