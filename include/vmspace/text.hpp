// SPDX-License-Identifier: Apache-2.0
//
// The types of vmspace as text for people: `log(to_text(region))`. One short line each (but for an
// AddressSpaceBase, which is its memory map); what a text looks like stands beside each to_text().
//
// The adapters ostream.hpp, fmt.hpp, format.hpp and testing.hpp print the same texts. None of the
// other headers includes this one or them.
//
// Each text costs a few allocations. Only texts of types that need the compiled library need it.

#pragma once

#include "vmspace/text/allocator.hpp"
#include "vmspace/text/base.hpp"

// An installation of the allocator alone has no more than these.
#if __has_include("vmspace/address_space.hpp")
#include "vmspace/text/address_space.hpp"
#include "vmspace/text/boot.hpp"
#include "vmspace/text/host.hpp"
#include "vmspace/text/memory.hpp"
#include "vmspace/text/resources.hpp"
#include "vmspace/text/snapshot.hpp"
#include "vmspace/text/spec.hpp"
#include "vmspace/text/vmm.hpp"
#endif
