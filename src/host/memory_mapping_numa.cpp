// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: binding to host NUMA nodes.

#include <linux/mempolicy.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_mapping.hpp"

#include "host/known_values.hpp"
#include "host/node_cpus.hpp"
#include "os/argument_checks.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;
using detail::mask_word_bits;

namespace {

constexpr const char* bind_operation = "MemoryMapping::bind_to_nodes";
// Kernels are built for at most 1,024 nodes, and none takes a mask longer than a page.
constexpr std::size_t node_limit = 4096 * CHAR_BIT;

bool has_bit(std::span<const unsigned long> mask, std::uint32_t node) {
  return (mask[node / mask_word_bits] >> (node % mask_word_bits) & 1) != 0;
}

/// The error of a call that has just failed.
tl::unexpected<Error> refused(Operand what, const char* call) {
  const int error = errno;
  if (error != EPERM) return fail_os(bind_operation, what, call, error);
  return fail({.code = Errc::access_denied,
               .operation = bind_operation,
               .first = what,
               .reason =
                   "this process may not ask for NUMA nodes: container engines allow get_mempolicy "
                   "and mbind with CAP_SYS_NICE",
               .os_errno = error});
}

/// mbind itself silently ignores nodes that do not exist, as long as one of the mask does.
Result<void> check_nodes(std::span<const std::uint32_t> nodes) {
  std::array<unsigned long, node_limit / mask_word_bits> allowed{};
  if (kernel().get_mempolicy(nullptr, allowed.data(), node_limit, nullptr, MPOL_F_MEMS_ALLOWED) !=
      0) {
    return refused(Operand::number(nodes.front()), "get_mempolicy");
  }
  for (const std::uint32_t node : nodes) {
    if (node >= node_limit || !has_bit(allowed, node)) {
      return fail(
          {.code = Errc::not_found,
           .operation = bind_operation,
           .first = Operand::number(node),
           .reason =
               "this NUMA node does not exist, has no memory, or is not allowed to this process"});
    }
  }
  return {};
}

}  // namespace

Result<void> MemoryMapping::bind_to_nodes(NumaPolicy policy) {
  VMSPACE_TRY_IN(bind_operation, check_part(0, size_));
  VMSPACE_TRY(require_own_pages(bind_operation));
  VMSPACE_TRY(detail::require_known(bind_operation, policy.mode, "not a value of NumaMode"));
  int mode = MPOL_DEFAULT;
  bool fits = policy.nodes.empty();
  if (policy.mode == NumaMode::preferred) {
    mode = MPOL_PREFERRED;
    fits = policy.nodes.size() == 1;
  } else if (policy.mode == NumaMode::bind) {
    mode = MPOL_BIND;
    fits = !policy.nodes.empty();
  }
  if (!fits) {
    return fail({.code = Errc::invalid_argument,
                 .operation = bind_operation,
                 .first = Operand::number(policy.nodes.size()),
                 .reason = "by_default takes no nodes, preferred exactly one, bind one or more"});
  }
  std::vector<unsigned long> mask;
  if (!policy.nodes.empty()) {
    VMSPACE_TRY(check_nodes(policy.nodes));
    mask.resize(*std::max_element(policy.nodes.begin(), policy.nodes.end()) / mask_word_bits + 1);
    for (const std::uint32_t node : policy.nodes)
      mask[node / mask_word_bits] |= 1UL << node % mask_word_bits;
  }
  // The kernel reads one bit fewer than it is told.
  const unsigned long bits = mask.empty() ? 0 : mask.size() * mask_word_bits + 1;
  if (kernel().mbind(data_, size_, mode, mask.empty() ? nullptr : mask.data(), bits, 0) != 0) {
    return refused(Operand::span(0, size_), "mbind");
  }
  numa_policy_ = std::move(policy);
  return {};
}

}  // namespace vmspace
