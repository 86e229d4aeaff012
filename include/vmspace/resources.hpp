// SPDX-License-Identifier: Apache-2.0
//
// The resources layer: what devices ask for, get, and give back.

#pragma once

#include "vmspace/address_space.hpp"
#include "vmspace/resources/device_resources.hpp"
#include "vmspace/resources/resource_claim.hpp"
#include "vmspace/resources/resource_manager.hpp"
#include "vmspace/resources/resource_request.hpp"
#include "vmspace/resources/resource_table.hpp"
