// SPDX-License-Identifier: Apache-2.0
//
// lesser_host <host> <program> [<argument>...]
//
// Runs a program as if on a host that has less than this one: seccomp(2) answers system calls as an older
// kernel, one built without them, or a container would. Exits with 77, and says why, where it can't.

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string_view>
#include <vector>

namespace {

/// Which calls of a kind are refused: all, or those where the low half of an argument is `value`, or has one of its bits.
enum class When : std::uint8_t { always, argument_is, argument_has };

struct Refusal {
  long call;
  int error;
  When when = When::always;
  unsigned argument = 0;  ///< its index
  std::uint32_t value = 0;
};

constexpr Refusal no_advice(std::uint32_t advice) {
  return {SYS_madvise, EINVAL, When::argument_is, 2, advice};
}
constexpr Refusal no_ioctl(std::uint32_t request) {
  return {SYS_ioctl, ENOTTY, When::argument_is, 1, request};
}

// By number: this program is also for those whose headers lack them.
constexpr Refusal no_pagemap_scan = no_ioctl(0xc060'6610);
constexpr Refusal no_noexec_seal{SYS_memfd_create, EINVAL, When::argument_has, 1, 0x0008};
constexpr Refusal no_userfaultfd_device = no_ioctl(0xaa00);

struct Host {
  const char* name;
  std::vector<Refusal> refusals;
  bool is_root = true;
};

const Host hosts[] = {
    {"linux-6.1", {no_pagemap_scan, no_noexec_seal}},
    {"linux-5.14",
     {no_pagemap_scan,
      no_noexec_seal,
      no_userfaultfd_device,
      no_advice(24),                                             // MADV_DONTNEED_LOCKED, 5.18
      no_advice(25),                                             // MADV_COLLAPSE, 6.1
      {SYS_prctl, EINVAL, When::argument_is, 0, 0x5356'4d41}}},  // PR_SET_VMA, 5.17
    // Built without CONFIG_NUMA, CONFIG_MEMBARRIER and CONFIG_USERFAULTFD.
    {"small-kernel",
     {{SYS_mbind, ENOSYS},
      {SYS_get_mempolicy, ENOSYS},
      {SYS_set_mempolicy, ENOSYS},
      {SYS_membarrier, ENOSYS},
      {SYS_userfaultfd, ENOSYS},
      no_userfaultfd_device}},
    // What the default profile of container engines refuses to who lacks CAP_SYS_NICE and CAP_SYS_PTRACE.
    {"container",
     {{SYS_mbind, EPERM},
      {SYS_get_mempolicy, EPERM},
      {SYS_set_mempolicy, EPERM},
      {SYS_userfaultfd, EPERM},
      no_userfaultfd_device}},
    {"unprivileged", {}, false},
};

/// Loads and compares, and returns the error where a call is refused.
std::vector<sock_filter> filter_of(const std::vector<Refusal>& refusals) {
  std::vector<sock_filter> filter;
  const auto load = [&](std::size_t offset) {
    filter.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)));
  };
  const auto answer = [&](std::uint32_t result) {
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, result));
  };
  for (const Refusal& refusal : refusals) {
    const bool is_always = refusal.when == When::always;
    load(offsetof(seccomp_data, nr));
    // Past the answer, and past the two that look at the argument.
    const std::uint8_t rest = is_always ? 1 : 3;
    filter.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(refusal.call), 0, rest));
    if (!is_always) {
      load(offsetof(seccomp_data, args) + refusal.argument * sizeof(std::uint64_t));
      const int test = refusal.when == When::argument_is ? BPF_JEQ : BPF_JSET;
      filter.push_back(
          BPF_JUMP(static_cast<std::uint16_t>(BPF_JMP | test | BPF_K), refusal.value, 0, 1));
    }
    answer(SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(refusal.error));
  }
  answer(SECCOMP_RET_ALLOW);
  return filter;
}

bool refuse(const std::vector<Refusal>& refusals) {
  std::vector<sock_filter> filter = filter_of(refusals);
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/// As nobody, in a directory that nobody may write to.
bool give_up_root() {
  constexpr uid_t nobody = 65534;
  return ::geteuid() != 0 || (::chdir("/tmp") == 0 && ::setresgid(nobody, nobody, nobody) == 0 &&
                              ::setresuid(nobody, nobody, nobody) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int skipped = 77;
  for (const Host& host : hosts) {
    if (argc < 3 || std::string_view(argv[1]) != host.name) continue;
    if ((!host.is_root && !give_up_root()) || !refuse(host.refusals)) {
      std::printf("skipped: this process can't be restricted: %s\n", std::strerror(errno));
      return skipped;
    }
    ::execv(argv[2], argv + 2);
    std::printf("skipped: %s can't be run like this: %s\n", argv[2], std::strerror(errno));
    return skipped;
  }
  std::fprintf(stderr, "usage: lesser_host <host> <program> [<argument>...]\nhosts:");
  for (const Host& host : hosts)
    std::fprintf(stderr, " %s", host.name);
  std::fprintf(stderr, "\n");
  return 2;
}
