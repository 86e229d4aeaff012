// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/backing.hpp"

#include <linux/magic.h>
#include <unistd.h>

#include <bit>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "vmspace/base/try.hpp"

#include "host/live_files.hpp"
#include "host/pinned_ranges.hpp"
#include "os/argument_checks.hpp"
#include "os/descriptor.hpp"
#include "os/kernel_name.hpp"
#include "os/kernel_values.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"
#include "spec/backing_rules.hpp"
#include "spec/known_values.hpp"

namespace vmspace {

namespace {

using detail::base_page_size;
using detail::Descriptor;
using detail::fail_os;
using detail::invalid;
using detail::kernel;
using detail::require_known;
using detail::require_multiple;
using detail::retry;

constexpr const char* open_operation = "Backing::open";

/// memfd_create(2): bytes, without the null.
constexpr std::size_t memfd_name_limit = 249;

/// The arguments of open().
struct Request {
  const BackingSpec& spec;
  std::uint64_t size;
  Protection protection;
  std::string_view name;

  /// For errors of the file as a whole: its descriptor; a path goes into the error's text.
  [[nodiscard]] Operand file() const {
    return spec.fd ? Operand::number(static_cast<unsigned>(*spec.fd)) : Operand{};
  }
  [[nodiscard]] bool writes_through() const {
    return spec.is_shared() && allows(protection, Protection::write);
  }
};

/// An open file and the page size of its file system.
struct Opened {
  Descriptor file;
  std::uint64_t page_size = 0;
  PageKind kind = PageKind::anonymous;
  bool writable = true;
  bool can_lose_pages = false;
};

Result<void> check_request(const Request& request) {
  const auto& [spec, size, protection, name] = request;
  VMSPACE_TRY(require_known(open_operation, spec.source, "not a value of MemorySource"));
  VMSPACE_TRY(require_known(open_operation, spec.sharing, "not a value of Sharing"));
  VMSPACE_TRY(require_known(open_operation, protection, "unknown protection bits"));
  if (const char* const rule = detail::broken_rule(spec)) return invalid(open_operation, rule);
  VMSPACE_TRY(detail::require_nonzero(open_operation, size, {}));
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
  constexpr const char* rule = "offset + size must not exceed 2^63 - 1, the largest file size";
  VMSPACE_TRY(detail::require_at_most(open_operation, spec.offset, largest, rule));
  VMSPACE_TRY(detail::require_at_most(open_operation, size, largest - spec.offset, rule));
  VMSPACE_TRY(detail::require_power_of_two(open_operation, spec.effective_page_size()));
  if (spec.effective_page_size() >= base_page_size()) return {};
  return invalid(open_operation, "page_size must be at least the machine's base page size");
}

Result<void> check_multiple(const Request& request, std::uint64_t page_size) {
  VMSPACE_TRY(require_multiple(open_operation, Operand::size(request.size), page_size,
                               "the size must be a multiple of the page size"));
  return require_multiple(open_operation, Operand::size(request.spec.offset), page_size,
                          "the offset must be a multiple of the page size");
}

Result<Opened> open_memfd(const Request& request) {
  const bool huge = request.spec.is_hugetlb();
  const std::uint64_t page_size = huge ? request.spec.effective_page_size() : base_page_size();
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (huge) {
    flags |= MFD_HUGETLB | static_cast<unsigned>(std::countr_zero(page_size)) << MFD_HUGE_SHIFT;
  }
  // Before Linux 6.3 the kernel does not know MFD_NOEXEC_SEAL and refuses it.
  const detail::KernelName<memfd_name_limit> name(request.name.empty() ? "vmspace" : request.name);
  int fd = retry([&] { return kernel().memfd_create(name.c_str(), flags | MFD_NOEXEC_SEAL); });
  if (fd < 0 && errno == EINVAL) {
    fd = retry([&] { return kernel().memfd_create(name.c_str(), flags); });
  }
  if (fd < 0 && errno == ENODEV && huge) {
    return fail({.code = Errc::unsupported,
                 .operation = open_operation,
                 .first = Operand::size(page_size),
                 .reason = "this kernel has no hugetlb pool of this page size"});
  }
  if (fd < 0) return fail_os(open_operation, Operand::size(request.size), "memfd_create");
  Opened opened{Descriptor(fd), page_size, huge ? PageKind::hugetlb : PageKind::shmem};
  if (retry([&] { return kernel().ftruncate(fd, static_cast<off_t>(request.size)); }) < 0) {
    return fail_os(open_operation, Operand::size(request.size), "ftruncate of the memfd");
  }
  // Without the seals, whoever gets the descriptor could shrink the file: SIGBUS for us.
  if (retry([&] {
        return kernel().fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
      }) < 0) {
    return fail_os(open_operation, Operand::size(request.size), "sealing the memfd");
  }
  return opened;
}

Result<Opened> open_in_hugetlbfs(const Request& request) {
  // A random name, created exclusively: a name that can be predicted can be put there by somebody
  // else first.
  constexpr int attempts = 16;
  Descriptor file;
  std::string path;
  for (int attempt = 0; file.value() < 0; ++attempt) {
    std::uint64_t random = 0;
    if (kernel().getentropy(&random, sizeof random) != 0) {
      return fail_os(open_operation, request.file(), "getentropy");
    }
    path = request.spec.path + "/vmspace-" + std::to_string(random);
    file = Descriptor(retry([&] {
      return kernel().open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    }));
    if (file.value() < 0 && (errno != EEXIST || attempt == attempts)) {
      return fail_os(open_operation, request.file(), "creating a file in the hugetlbfs directory");
    }
  }
  if (retry([&] { return kernel().unlink(path.c_str()); }) < 0) {
    return fail_os(open_operation, request.file(), "unlinking the file in hugetlbfs");
  }
  struct statfs fs {};
  if (retry([&] { return kernel().fstatfs(file.value(), &fs); }) < 0) {
    return fail_os(open_operation, request.file(), "fstatfs");
  }
  if (fs.f_type != HUGETLBFS_MAGIC)
    return invalid(open_operation, "the path must be a directory in a hugetlbfs");
  VMSPACE_TRY(check_multiple(request, static_cast<std::uint64_t>(fs.f_bsize)));
  if (retry([&] { return kernel().ftruncate(file.value(), static_cast<off_t>(request.size)); }) <
      0) {
    return fail_os(open_operation, Operand::size(request.size),
                   "ftruncate of the file in hugetlbfs");
  }
  return Opened{std::move(file), static_cast<std::uint64_t>(fs.f_bsize), PageKind::hugetlb};
}

/// What a mapping of a file can rely on.
struct FileAccess {
  bool writable = false;
  int seals = 0;  ///< F_SEAL_*, fcntl(2)

  [[nodiscard]] bool is_sealed_against_writing() const {
    return (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
  }
};

tl::unexpected<Error> deny(const Request& request, const char* reason) {
  return fail({.code = Errc::access_denied,
               .operation = open_operation,
               .first = request.file(),
               .reason = reason});
}

/// O_RDONLY or O_RDWR; an error where the guest needs more.
Result<int> access_mode(const Request& request, int fd) {
  const int flags = retry([&] { return kernel().fcntl(fd, F_GETFL, 0); });
  if (flags < 0) return fail_os(open_operation, request.file(), "fcntl(F_GETFL)");
  const int mode = flags & O_ACCMODE;
  // mmap(2): a mapping always needs reading; writing through it needs writing.
  if ((flags & O_PATH) != 0 || mode == O_WRONLY || (mode == O_RDONLY && request.writes_through())) {
    return deny(request,
                "the fd must be open for reading, and for writing where the guest may write");
  }
  return mode;
}

/// How an open file may be accessed; an error where the guest needs more.
Result<FileAccess> check_access(const Request& request, int fd) {
  const int mode = VMSPACE_TRY(access_mode(request, fd));
  FileAccess access{.seals = retry([&] { return kernel().fcntl(fd, F_GET_SEALS, 0); })};
  if (access.seals < 0) {
    // EINVAL: only memfds and files of tmpfs and hugetlbfs can have any.
    if (errno != EINVAL) return fail_os(open_operation, request.file(), "fcntl(F_GET_SEALS)");
    access.seals = 0;
  }
  const bool sealed = access.is_sealed_against_writing();
  if (sealed && request.writes_through())
    return deny(request, "the file is sealed against writing");
  access.writable = !request.spec.is_shared() || (mode == O_RDWR && !sealed);
  return access;
}

/// The file of a spec that has one, and nothing known of it.
Result<Opened> open_or_duplicate(const Request& request) {
  Descriptor file;
  if (request.spec.fd) {
    file = Descriptor(retry([&] { return kernel().fcntl(*request.spec.fd, F_DUPFD_CLOEXEC, 0); }));
    if (file.value() < 0) return fail_os(open_operation, request.file(), "duplicating the fd");
  } else {
    // O_NONBLOCK: a path that names a FIFO is refused below instead of waited for.
    const int mode = request.writes_through() ? O_RDWR : O_RDONLY;
    file = Descriptor(retry([&] {
      return kernel().open(request.spec.path.c_str(), mode | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
    }));
    if (file.value() < 0) return fail_os(open_operation, request.file(), "opening the file");
  }
  return Opened{std::move(file)};
}

Result<Opened> open_file(const Request& request) {
  Opened opened = VMSPACE_TRY(open_or_duplicate(request));
  Descriptor file = std::move(opened.file);
  // The seals before the size: a file that was sealed then has not shrunk since.
  const FileAccess access = VMSPACE_TRY(check_access(request, file.value()));
  struct stat info {};
  if (retry([&] { return kernel().fstat(file.value(), &info); }) < 0) {
    return fail_os(open_operation, request.file(), "fstat");
  }
  if (!S_ISREG(info.st_mode)) return invalid(open_operation, "the file must be a regular file");
  VMSPACE_TRY(detail::require_within(open_operation, request.spec.offset, request.size,
                                     static_cast<std::uint64_t>(info.st_size),
                                     "the file must be at least offset + size bytes long"));
  struct statfs fs {};
  if (retry([&] { return kernel().fstatfs(file.value(), &fs); }) < 0) {
    return fail_os(open_operation, request.file(), "fstatfs");
  }
  const bool huge = fs.f_type == HUGETLBFS_MAGIC;
  const bool keeps_size = (access.seals & F_SEAL_SHRINK) != 0;
  return Opened{.file = std::move(file),
                .page_size = huge ? static_cast<std::uint64_t>(fs.f_bsize) : base_page_size(),
                .kind = huge                       ? PageKind::hugetlb
                        : fs.f_type == TMPFS_MAGIC ? PageKind::shmem
                                                   : PageKind::file,
                .writable = access.writable,
                // A hole in huge pages is filled from the pool, which may be empty.
                .can_lose_pages = !keeps_size || (huge && !access.is_sealed_against_writing())};
}

/// Neither the size nor the seals of a device's file mean anything.
Result<Opened> open_device(const Request& request) {
  Opened opened = VMSPACE_TRY(open_or_duplicate(request));
  const int fd = opened.file.value();
  const int mode = VMSPACE_TRY(access_mode(request, fd));
  struct stat info {};
  if (retry([&] { return kernel().fstat(fd, &info); }) < 0) {
    return fail_os(open_operation, request.file(), "fstat");
  }
  // Not the opposite question: the files of VFIO devices and dma-bufs may have no type at all.
  if (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) {
    return invalid(open_operation,
                   "the file must be that of a device; a regular file is source file");
  }
  opened.page_size = base_page_size();
  opened.kind = PageKind::external;
  opened.writable = mode == O_RDWR;
  opened.can_lose_pages = true;
  return opened;
}

/// What `spec.source` stands for, whatever its page size turns out to be.
Result<Opened> open_source(const Request& request) {
  const BackingSpec& spec = request.spec;
  switch (spec.source) {
    case MemorySource::none: break;
    case MemorySource::anon:
      return Opened{{}, base_page_size(), spec.is_shared() ? PageKind::shmem : PageKind::anonymous};
    case MemorySource::hugeanon: return Opened{{}, spec.effective_page_size(), PageKind::hugetlb};
    case MemorySource::shmem: return open_memfd(request);
    case MemorySource::hugeshmem:
      // Before the memfd is created: ftruncate would only say EINVAL.
      VMSPACE_TRY(check_multiple(request, spec.effective_page_size()));
      return open_memfd(request);
    case MemorySource::hugetlbfs: return open_in_hugetlbfs(request);
    case MemorySource::file: return open_file(request);
    case MemorySource::device: return open_device(request);
    case MemorySource::external:
      return invalid(open_operation,
                     "external memory is mapped already: MemoryMapping::adopt takes it");
  }
  return invalid(open_operation, "source none has no backing to open");
}

Result<Opened> open_checked(const Request& request) {
  VMSPACE_TRY(check_request(request));
  Opened opened = VMSPACE_TRY(open_source(request));
  if (request.spec.page_size != 0 && request.spec.page_size != opened.page_size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = open_operation,
                 .first = Operand::size(request.spec.page_size),
                 .second = Operand::size(opened.page_size),
                 .reason = "the backing has pages of another size than page_size asks for"});
  }
  VMSPACE_TRY(check_multiple(request, opened.page_size));
  return opened;
}

}  // namespace

Backing::State::~State() {
  if (fd < 0) return;
  detail::forget_file(fd);
  kernel().close(fd);
}

Result<Backing> Backing::open(const BackingSpec& spec, std::uint64_t size, Protection protection,
                              std::string_view name) {
  auto state = std::make_shared<State>();
  auto pins = std::make_shared<detail::PinnedRanges>();
  auto opened = open_checked({spec, size, protection, name});
  if (!opened) {
    Error error = opened.error();
    error.text = {{}, spec.path};
    return fail(error);
  }
  if (opened->file.value() >= 0) {
    detail::remember_file(opened->file.value());
    state->pins = std::move(pins);
  }
  state->fd = opened->file.release();
  state->offset = spec.offset;
  state->size = size;
  state->page_size = opened->page_size;
  state->source = spec.source;
  state->kind = opened->kind;
  state->shared = spec.is_shared();
  state->writable = opened->writable;
  state->can_lose_pages = opened->can_lose_pages;
  state->discardable = spec.discardable ||
                       (spec.source != MemorySource::file && spec.source != MemorySource::device);
  return Backing(std::move(state));
}

}  // namespace vmspace
