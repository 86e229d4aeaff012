// SPDX-License-Identifier: Apache-2.0
//
// The demo as its user meets it: a process with an exit status and printed lines, on a machine that
// lets it do everything, and on machines that do not.

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ADDRESS_SANITIZER 1
#endif
#endif

namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

struct Outcome {
  int status = -1;  // the exit status, or -1 after a signal
  std::string output;
};

constexpr int could_not_restrict = 99;

// Runs the demo after `restrict` in the new process; `restrict` gives false when it could not.
template <typename Restrict>
Outcome run_demo(Restrict restrict) {
  // Opened by this user: another one need not have a way to the file.
  const int program = ::open(TINY_VM_PROGRAM, O_RDONLY | O_CLOEXEC);
  EXPECT_GE(program, 0) << TINY_VM_PROGRAM;
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::dup2(ends[1], STDERR_FILENO);
    char name[] = "tiny_vm";
    char* arguments[] = {name, nullptr};
    if (restrict()) ::fexecve(program, arguments, environ);
    ::_exit(could_not_restrict);
  }
  ::close(program);
  ::close(ends[1]);
  Outcome outcome;
  char buffer[4096];
  for (;;) {
    const ssize_t got = ::read(ends[0], buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    outcome.output.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status)) outcome.status = WEXITSTATUS(status);
  return outcome;
}

bool may_open_kvm() {
  const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm >= 0) ::close(kvm);
  return kvm >= 0;
}

bool become_nobody() {
  constexpr unsigned nobody = 65534;
  return ::setgroups(0, nullptr) == 0 && ::setresgid(nobody, nobody, nobody) == 0 &&
         ::setresuid(nobody, nobody, nobody) == 0;
}

// From here on a system call fails with EPERM, as container runtimes make some fail: every call of
// it, or those whose second argument is `request`.
bool refuse(unsigned call, unsigned request = 0) {
#if defined(__x86_64__)
  constexpr unsigned architecture = AUDIT_ARCH_X86_64;
#else
  constexpr unsigned architecture = AUDIT_ARCH_AARCH64;
#endif
  const auto any_request = static_cast<std::uint8_t>(request == 0 ? 1 : 0);
  std::array<sock_filter, 8> filter{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 2),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, request, 1, any_request),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  }};
  const sock_fprog program{.len = filter.size(), .filter = filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

bool refuse_memfd() {
  return refuse(SYS_memfd_create);
}

bool leave_one_gibibyte_of_addresses() {
  const rlimit limit{.rlim_cur = 1u << 30, .rlim_max = 1u << 30};
  return ::setrlimit(RLIMIT_AS, &limit) == 0;
}

TEST(TinyVm, HoldsEveryStepOnThisMachine) {
  const Outcome demo = run_demo([] { return true; });
  EXPECT_EQ(demo.status, 0) << demo.output;
  EXPECT_THAT(demo.output, AllOf(HasSubstr("  ram "), HasSubstr("  nic0  ")));  // the map
  EXPECT_THAT(demo.output, HasSubstr("nic0 has its registers at 0xc0110000"));
  EXPECT_THAT(demo.output, HasSubstr("nic1: {pio [0x1020-0x103f]"));  // what nic0 had
#if defined(__x86_64__)
  if (may_open_kvm()) {
    EXPECT_THAT(demo.output, AllOf(HasSubstr("reports on port"), Not(HasSubstr("skipped"))));
  }
#endif
}

TEST(TinyVm, WithoutKvmItSaysSoAndDoesTheRest) {
  if (::geteuid() != 0 && may_open_kvm()) {
    GTEST_SKIP() << "this user may open /dev/kvm and can't become another";
  }
  const Outcome demo = run_demo([] {
    if (::geteuid() == 0 && !become_nobody()) return false;
    return !may_open_kvm();
  });
  if (demo.status == could_not_restrict) GTEST_SKIP() << "everybody may open /dev/kvm here";
  EXPECT_EQ(demo.status, 0) << demo.output;
  EXPECT_THAT(demo.output, AllOf(HasSubstr("skipped"), HasSubstr("unplugged")));
#if defined(__x86_64__)
  EXPECT_THAT(demo.output, HasSubstr("/dev/kvm"));
#endif
}

#if defined(__x86_64__)
TEST(TinyVm, WhereKvmRefusesACallItSaysWhyAndDoesTheRest) {
  if (!may_open_kvm()) GTEST_SKIP() << "this user may not open /dev/kvm";
  const Outcome demo = run_demo([] { return refuse(SYS_ioctl, KVM_GET_API_VERSION); });
  ASSERT_NE(demo.status, could_not_restrict) << "no seccomp filter could be installed";
  EXPECT_EQ(demo.status, 0) << demo.output;
  EXPECT_THAT(demo.output, AllOf(HasSubstr("skipped"), HasSubstr("KVM_GET_API_VERSION"),
                                 HasSubstr(std::strerror(EPERM)), HasSubstr("unplugged")));
}
#endif

TEST(TinyVm, WhereMemfdIsRefusedItEndsWithAClearMessage) {
  const Outcome demo = run_demo(refuse_memfd);
  ASSERT_NE(demo.status, could_not_restrict) << "no seccomp filter could be installed";
  EXPECT_EQ(demo.status, 1) << demo.output;
  EXPECT_THAT(demo.output, AllOf(HasSubstr("memfd_create"), HasSubstr(std::strerror(EPERM))));
}

TEST(TinyVm, WithTooLittleAddressSpaceItEndsWithAClearMessage) {
#ifdef WITH_ADDRESS_SANITIZER
  GTEST_SKIP() << "AddressSanitizer itself needs terabytes of addresses";
#endif
  const Outcome demo = run_demo(leave_one_gibibyte_of_addresses);
  ASSERT_NE(demo.status, could_not_restrict);
  EXPECT_EQ(demo.status, 1) << demo.output;
  EXPECT_THAT(demo.output, AllOf(HasSubstr("VmMemory::create"), HasSubstr(std::strerror(ENOMEM))));
}

}  // namespace
