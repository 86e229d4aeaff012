// SPDX-License-Identifier: Apache-2.0
//
// The spec layer: what memory is to be made of and what may be done with it, as data.

#pragma once

#include "vmspace/base.hpp"
#include "vmspace/spec/backing_spec.hpp"
#include "vmspace/spec/protection.hpp"
