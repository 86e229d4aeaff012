// SPDX-License-Identifier: Apache-2.0
//
// The base layer: errors and results, size literals, and values published to lock-free readers.

#pragma once

#include "vmspace/base/cxx20.hpp"
#include "vmspace/base/error.hpp"
#include "vmspace/base/error_text.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/base/published.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/base/version.hpp"
