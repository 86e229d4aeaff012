// SPDX-License-Identifier: Apache-2.0
//
// Whole scans, and kernels and sandboxes that lack what a scan asks first.

#pragma once

#include <sys/sysinfo.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/host/page_scan.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"

namespace vmspace::test {

/// The whole scan, with neighbours joined.
inline Result<std::vector<Extent>> scan(const MemoryMapping& mapping,
                                        PageQuery query = PageQuery::data) {
  PageScan pages(mapping, query);
  std::vector<Extent> found;
  for (std::uint64_t at = 0; at < mapping.size();) {
    const auto extent = pages.next(at, mapping.size());
    if (!extent) return fail(extent.error());
    EXPECT_GE(extent->offset, at);
    EXPECT_LE(extent->end(), mapping.size());
    if (extent->size == 0) {
      EXPECT_EQ(extent->offset, mapping.size());
      break;
    }
    if (!found.empty() && found.back().end() == extent->offset) {
      found.back().size += extent->size;
    } else {
      found.push_back(*extent);
    }
    at = extent->end();
  }
  return found;
}

inline std::vector<Extent> scan_or_die(const MemoryMapping& mapping,
                                       PageQuery query = PageQuery::data) {
  auto found = scan(mapping, query);
  EXPECT_THAT(found, IsOk());
  return found ? *found : std::vector<Extent>{};
}

/// What a kernel or a sandbox may lack.
struct Lack {
  const char* name;
  bool scan;    ///< PAGEMAP_SCAN
  bool proc;    ///< /proc
  bool incore;  ///< mincore(2)
  bool swap;    ///< not lacking: there is some
};

inline void take_away(Injector& injector, const Lack& lack) {
  if (lack.scan) {
    injector.table().ioctl = [](int, unsigned long, void*) {
      errno = ENOTTY;
      return -1;
    };
  }
  if (lack.proc) {
    injector.table().open = [](const char*, int, mode_t) {
      errno = ENOENT;
      return -1;
    };
  }
  if (lack.incore) {
    injector.table().mincore = [](void*, std::size_t, unsigned char*) {
      errno = EPERM;
      return -1;
    };
  }
  const bool swap = lack.swap;
  injector.table().sysinfo = swap ? [](struct sysinfo* info) {
    *info = {};
    info->totalswap = 1;
    return 0;
  }
  : [](struct sysinfo* info) {
      *info = {};
      return 0;
    };
}

}  // namespace vmspace::test
