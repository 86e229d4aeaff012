// SPDX-License-Identifier: Apache-2.0
//
// A full memory barrier, which ThreadSanitizer lets pass.

#pragma once

#include <atomic>

namespace vmspace::detail {

// g++ warns that ThreadSanitizer does not model fences. The accesses that these order are atomic,
// so it has no race to report for want of them.
#if defined(__SANITIZE_THREAD__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif

/// Orders what came before, stores too, before what comes after, loads too.
inline void full_fence() noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

#if defined(__SANITIZE_THREAD__)
#pragma GCC diagnostic pop
#endif

}  // namespace vmspace::detail
