// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/populate.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <iterator>
#include <latch>
#include <optional>
#include <thread>
#include <vector>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

#include "host/known_values.hpp"
#include "host/node_cpus.hpp"
#include "os/argument_checks.hpp"
#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"
#include "os/thread.hpp"

namespace vmspace {

// NOLINTNEXTLINE(misc-unused-using-decls): templates of literals are not counted as used
using literals::operator""_MiB;
using detail::fail_os;
using detail::kernel;
using detail::retry;

namespace {

constexpr const char* populate_operation = "populate";
constexpr const char* unknown_access = "not a value of PopulateAccess";

/// What a thread populates at a time: enough to make the system call cheap, little enough that the
/// threads finish together.
constexpr std::uint64_t populate_chunk = 16_MiB;
/// With less than this another thread costs more than it gains.
constexpr std::uint64_t least_per_thread = 32_MiB;

struct Chunk {
  const PopulateRange* range;  ///< which it is a part of
  std::uint64_t offset;
  std::uint64_t size;
  bool write;
};

/// Reads or rewrites a word of each page. The word is rewritten atomically, since somebody else may
/// be writing it; by a compare-exchange, since compilers turn an atomic addition of 0 into a load.
void touch(const Chunk& chunk) {
  const MemoryMapping& mapping = *chunk.range->mapping;
  const std::uint64_t page = mapping.page_size();
  for (std::uint64_t at = 0; at < chunk.size; at += page) {
    auto* const word =
        reinterpret_cast<volatile unsigned long*>(mapping.data() + chunk.offset + at);
    unsigned long value = *word;
    if (chunk.write) {
      __atomic_compare_exchange_n(word, &value, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
  }
}

/// Refuses what has been cut off the file: to allocate it would make the file longer again, with zeros
/// for what was there, and to touch it would raise SIGBUS.
Result<void> check_length(const Chunk& chunk) {
  const MemoryMapping& mapping = *chunk.range->mapping;
  struct stat file {};
  if (retry([&] { return kernel().fstat(mapping.backing().fd(), &file); }) != 0) {
    return fail_os(populate_operation, Operand::span(chunk.offset, chunk.size), "fstat");
  }
  return detail::require_within(populate_operation, mapping.file_offset() + chunk.offset,
                                chunk.size, static_cast<std::uint64_t>(file.st_size),
                                "the file is shorter than the memory mapped from it");
}

/// Chunks of memory that is bound to the same nodes.
struct Group {
  std::vector<std::uint32_t> nodes = {};  ///< none: the memory may be anywhere
  std::vector<Chunk> chunks = {};
  std::atomic<std::size_t> next = 0;
  detail::CpuSet cpus = {};  ///< where threads fill them, if the Job has any such place
};

/// In a deque, where groups need not be movable.
using Groups = std::deque<Group>;

/// The work of one call, shared by its threads.
class Job {
 public:
  explicit Job(Groups groups)
      : groups_(std::move(groups)),
        is_near_(find_cpus(groups_)),
        can_read_(detail::kernel_knows_advice(MADV_POPULATE_READ)),
        can_write_(detail::kernel_knows_advice(MADV_POPULATE_WRITE)) {}

  /// Runs on `threads` threads at most. The caller's is one of them, unless threads have to be near
  /// the memory: what the caller's may run on is the caller's to say.
  Result<void> run(unsigned threads) {
    const std::size_t wanted = is_near_ ? threads : threads - 1;
    std::vector<pthread_t> others;
    others.reserve(wanted);
    while (others.size() < wanted) {
      pthread_t thread{};
      if (detail::start_thread(thread, &Job::thread_body, this) != 0) break;
      others.push_back(thread);
    }
    // Only now: a thread that fills pages keeps others from being started, since both change the
    // address space.
    start_.count_down();
    if (!is_near_ || others.empty()) work(0, false);
    for (const pthread_t thread : others)
      pthread_join(thread, nullptr);
    if (error_) return fail(*error_);
    return {};
  }

 private:
  /// Finds where to fill each group; false where that is no matter.
  static bool find_cpus(Groups& groups) {
    const auto is_bound = [](const Group& group) { return !group.nodes.empty(); };
    if (std::ranges::none_of(groups, is_bound)) return false;
    const detail::CpuSet allowed = detail::allowed_cpus();
    for (Group& group : groups)
      group.cpus = is_bound(group) ? detail::cpus_near(group.nodes, allowed) : allowed;
    return std::ranges::any_of(groups, [&](const Group& group) { return group.cpus != allowed; });
  }

  static void* thread_body(void* self) {
    Job& job = *static_cast<Job*>(self);
    detail::name_this_thread("vmspace-fill");
    job.start_.wait();
    job.work(job.started_.fetch_add(1, std::memory_order_relaxed), job.is_near_);
    return nullptr;
  }

  /// Takes chunks of the first group, and when there are no more, of the others.
  void work(std::size_t first, bool moves) {
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      Group& group = groups_[(first + i) % groups_.size()];
      bool is_here = !moves;
      while (!failed_.load(std::memory_order_relaxed)) {
        const std::size_t index = group.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= group.chunks.size()) break;
        if (!is_here) {
          // Where that fails, the pages come from the right node all the same, only more slowly.
          kernel().sched_setaffinity(0, group.cpus.size() * sizeof(group.cpus[0]),
                                     group.cpus.data());
          is_here = true;
        }
        populate_or_fail(group.chunks[index]);
      }
    }
  }

  void populate_or_fail(const Chunk& chunk) {
    const auto done = populate_chunk(chunk);
    // The first one to fail reports; joining the threads makes it visible.
    if (done || failed_.exchange(true)) return;
    error_ = done.error();
    error_->text = chunk.range->about;
  }

  [[nodiscard]] Result<void> populate_chunk(const Chunk& chunk) const {
    const Operand part = Operand::span(chunk.offset, chunk.size);
    const MemoryMapping& mapping = *chunk.range->mapping;
    const Backing& backing = mapping.backing();
    const bool known = chunk.write ? can_write_ : can_read_;
    if (backing.fd() >= 0) VMSPACE_TRY(check_length(chunk));
    // Of a memfd the pages are the space, and populating them reports a shortage by itself;
    // allocating them before would make small pages where huge ones are advised.
    const bool allocate = chunk.write && backing.is_shared() && !backing.is_anonymous() &&
                          (!known || backing.page_kind() == PageKind::file);
    if (allocate && retry([&] {
                      return kernel().fallocate(
                          backing.fd(), 0, static_cast<off_t>(mapping.file_offset() + chunk.offset),
                          static_cast<off_t>(chunk.size));
                    }) != 0) {
      // A file system without fallocate(2) finds the space when the page is written.
      if (errno != EOPNOTSUPP || !known) return fail_os(populate_operation, part, "fallocate");
    }
    if (!known) {
      touch(chunk);
      return {};
    }
    const int advice = chunk.write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    if (retry([&] {
          return kernel().madvise(mapping.data() + chunk.offset, chunk.size, advice);
        }) != 0) {
      return fail_os(populate_operation, part,
                     errno == EFAULT
                         ? "out of pages: the hugetlb pool, file system or memory cgroup is full"
                         : "madvise(MADV_POPULATE)");
    }
    return {};
  }

  Groups groups_;
  bool is_near_;  ///< threads run where the memory is
  bool can_read_;
  bool can_write_;
  std::latch start_{1};
  std::atomic<std::size_t> started_ = 0;
  std::atomic<bool> failed_ = false;
  std::optional<Error> error_;
};

/// Whether the pages of a range are written, rather than read.
Result<bool> wants_write(const PopulateRange& range, PopulateAccess access) {
  const Protection protection = range.mapping->protection();
  const Backing& backing = range.mapping->backing();
  const bool writable = allows(protection, Protection::write);
  const bool write =
      access == PopulateAccess::write || (access == PopulateAccess::by_mapping && writable &&
                                          (backing.is_shared() || backing.is_anonymous()));
  if (write ? !writable : !allows(protection, Protection::read)) {
    return fail({.code = Errc::access_denied,
                 .operation = populate_operation,
                 .first = Operand::span(range.offset, range.size),
                 .reason = write ? "populating by writing requires a writable mapping"
                                 : "populating by reading requires a readable mapping"});
  }
  return write;
}

/// Splits a range into chunks, which end where the host address is a multiple of their size, so
/// that no huge page is split.
Result<void> add_chunks(const PopulateRange& range, PopulateAccess access, Groups& groups) {
  if (range.mapping == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = populate_operation,
                 .first = Operand::span(range.offset, range.size),
                 .reason = "the mapping is a null pointer"});
  }
  const MemoryMapping& mapping = *range.mapping;
  VMSPACE_TRY_IN(populate_operation, mapping.check_part(range.offset, range.size));
  if (mapping.backing().is_external()) {
    return fail({.code = Errc::unsupported,
                 .operation = populate_operation,
                 .first = Operand::span(range.offset, range.size),
                 .reason = "memory of devices, and what something else has mapped, has its pages"});
  }
  access = range.access.value_or(access);
  VMSPACE_TRY(detail::require_known(populate_operation, access, unknown_access));
  const bool write = VMSPACE_TRY(wants_write(range, access));
  const std::vector<std::uint32_t>& nodes = mapping.numa_policy().nodes;
  auto group = std::ranges::find(groups, nodes, &Group::nodes);
  if (group == groups.end()) {
    groups.emplace_back();
    group = std::prev(groups.end());
    group->nodes = nodes;
  }
  const std::uint64_t step = std::max(populate_chunk, mapping.page_size());
  const std::uint64_t end = range.offset + range.size;
  for (std::uint64_t at = range.offset; at < end;) {
    const auto address = reinterpret_cast<std::uintptr_t>(mapping.data()) + at;
    const std::uint64_t size = std::min(end - at, step - (address & (step - 1)));
    group->chunks.push_back({&range, at, size, write});
    at += size;
  }
  return {};
}

/// How many threads are worth starting for this much memory.
unsigned threads_for(std::uint64_t bytes) {
  return static_cast<unsigned>(
      std::min<std::uint64_t>(std::thread::hardware_concurrency(), bytes / least_per_thread));
}

}  // namespace

Result<void> populate(std::span<const PopulateRange> ranges, PopulateOptions options) {
  VMSPACE_TRY(detail::require_known(populate_operation, options.access, unknown_access));
  Groups groups;
  std::uint64_t total = 0;
  for (const PopulateRange& range : ranges) {
    if (auto ok = add_chunks(range, options.access, groups); !ok) {
      Error error = ok.error();
      error.text = range.about;
      return fail(error);
    }
    total += range.size;
  }
  const std::size_t wanted = options.threads != 0 ? options.threads : threads_for(total);
  std::size_t most = 0;
  for (const Group& group : groups)
    most += group.chunks.size();
  if (most == 0) return {};
  Job job(std::move(groups));
  return job.run(static_cast<unsigned>(std::clamp<std::size_t>(wanted, 1, most)));
}

Result<void> populate(const MemoryMapping& mapping, PopulateOptions options) {
  const PopulateRange all{.mapping = &mapping, .offset = 0, .size = mapping.size()};
  return populate(std::span(&all, 1), options);
}

}  // namespace vmspace
