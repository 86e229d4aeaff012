// SPDX-License-Identifier: Apache-2.0
//
// One error where the language is older than C++20, instead of pages of them from the headers.
//
// Every header with declarations that includes no other header of vmspace includes this one, so that
// it is read before all of them, whichever header a program names.

#pragma once

#if __cplusplus < 202002L
#error "vmspace needs C++20: compile with -std=c++20 or newer"
// Compilers go on after an #error, but not after a file that is missing.
#include "vmspace needs C++20"
#endif
