// SPDX-License-Identifier: Apache-2.0
//
// The guest: position-independent 64-bit code that needs no stack, no descriptor table and no
// interrupts. The host copies [guest_code_begin, guest_code_end) into guest memory, maps guest
// virtual to guest physical addresses one to one, and starts it with %rdi = its boot parameters.

#include "guest_abi.h"

// Writes seed, seed + 1, ... to the page whose address the boot parameters hold at `field`.
.macro write_pattern field
        mov     \field(%rdi), %rbx
        mov     BOOT_SEED(%rdi), %rax
        mov     $PATTERN_WORDS, %ecx
1:      mov     %rax, (%rbx)
        inc     %rax
        add     $8, %rbx
        dec     %ecx
        jnz     1b
.endm

// Waits until the host stores something other than 0 at `field`, and leaves it in %rbx.
.macro await field
1:      pause
        mov     \field(%rdi), %rbx
        test    %rbx, %rbx
        jz      1b
.endm

.macro report code
        mov     $\code, %eax
        out     %eax, %dx
.endm

        .section .rodata
        .balign 16
        .globl  guest_code_begin, guest_code_end
guest_code_begin:
        mov     BOOT_PORT(%rdi), %rdx

        write_pattern BOOT_LOW
        write_pattern BOOT_HIGH
        report  REPORT_PATTERNS_WRITTEN

        // A region is plugged: invert each word that the host left in its first page.
        await   BOOT_PLUGGED
        mov     $PATTERN_WORDS, %ecx
1:      notq    (%rbx)
        add     $8, %rbx
        dec     %ecx
        jnz     1b
        report  REPORT_REGION_USED

        // It is unplugged: nothing answers there any more, and a read gives all ones.
        await   BOOT_UNPLUGGED
        mov     BOOT_PLUGGED(%rdi), %rbx
        mov     (%rbx), %rax
        cmp     $-1, %rax
        jne     2f
        report  REPORT_REGION_GONE
        hlt
2:      report  REPORT_REGION_STAYED
        hlt
guest_code_end:

        .section .note.GNU-stack, "", @progbits
