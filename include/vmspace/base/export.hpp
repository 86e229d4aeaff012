// SPDX-License-Identifier: Apache-2.0
//
// Which symbols the shared library exports.
//
// The library is compiled with hidden symbols. What its users call, and the headers on their behalf,
// is marked VMSPACE_EXPORT where it is declared: a class with members in a source file, and a
// function of a source file. Whatever is inline, or a template, needs no mark. A class that a marked
// one has among its members, and only the sources define, is marked VMSPACE_HIDDEN there.

#pragma once

// CMake and pkg-config define VMSPACE_STATIC where the library is static, so that a program or
// plug-in does not re-export it. Without the definition it merely exports more than it needs to.
#ifdef VMSPACE_STATIC
#define VMSPACE_EXPORT
#else
// In the old syntax, which may also stand in the declaration of a friend.
/// Marks what the shared library exports; see above.
#define VMSPACE_EXPORT __attribute__((visibility("default")))
#endif
/// Marks what it keeps to itself although something exported has it as a member; see above.
#define VMSPACE_HIDDEN __attribute__((visibility("hidden")))
