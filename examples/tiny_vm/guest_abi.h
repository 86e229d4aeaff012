// SPDX-License-Identifier: Apache-2.0
//
// What the host and the guest's code agree on. The assembler reads it too: #defines only.

#pragma once

// The guest starts with the address of its boot parameters in %rdi. Offsets of the fields, which
// struct BootParams repeats for C++; each is 8 bytes.
#define BOOT_LOW 0        /* where the first pattern goes, below 4 GiB */
#define BOOT_HIGH 8       /* where the second goes, above 4 GiB */
#define BOOT_SEED 16      /* word i of a pattern is seed + i */
#define BOOT_PORT 24      /* the I/O port for reports */
#define BOOT_PLUGGED 32   /* 0, until the host stores the address of a plugged region */
#define BOOT_UNPLUGGED 40 /* 0, until the host has taken it away again */

#define PATTERN_WORDS 512 /* a pattern is one page of 8-byte words */

// What the guest reports: 32-bit writes to the port.
#define REPORT_PATTERNS_WRITTEN 1 /* both patterns are in RAM */
#define REPORT_REGION_USED 2      /* every word of the plugged region's page is inverted */
#define REPORT_REGION_GONE 3      /* reading the unplugged region gave all ones */
#define REPORT_REGION_STAYED 4    /* it gave something else */
