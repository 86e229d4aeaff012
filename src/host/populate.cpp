// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/populate.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

#include "host/known_values.hpp"
#include "os/argument_checks.hpp"
#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

// NOLINTNEXTLINE(misc-unused-using-decls): templates of literals are not counted as used
using literals::operator""_MiB;
using detail::fail_os;
using detail::kernel;
using detail::retry;

namespace {

constexpr const char* operation = "populate";
constexpr const char* unknown_access = "not a value of PopulateAccess";

/// What a thread populates at a time: enough to make the system call cheap, little enough that the
/// threads finish together.
constexpr std::uint64_t chunk_size = 16_MiB;
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

/// The work of one call, shared by its threads.
class Job {
 public:
  explicit Job(std::vector<Chunk> chunks)
      : chunks_(std::move(chunks)),
        can_read_(detail::kernel_knows_advice(MADV_POPULATE_READ)),
        can_write_(detail::kernel_knows_advice(MADV_POPULATE_WRITE)) {}

  /// Runs on `threads` threads at most, the caller's included.
  Result<void> run(unsigned threads) {
    std::vector<pthread_t> others;
    others.reserve(threads - 1);
    // New threads inherit the mask: the program's signal handlers must not run on ours.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (others.size() + 1 < threads) {
      pthread_t thread{};
      if (kernel().pthread_create(&thread, nullptr, &Job::thread_body, this) != 0) break;
      others.push_back(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    work();
    for (const pthread_t thread : others)
      pthread_join(thread, nullptr);
    if (error_) return fail(*error_);
    return {};
  }

 private:
  static void* thread_body(void* self) {
    static_cast<Job*>(self)->work();
    return nullptr;
  }

  void work() {
    while (!failed_.load(std::memory_order_relaxed)) {
      const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= chunks_.size()) return;
      if (auto done = populate_chunk(chunks_[index]); !done) {
        // The first one to fail reports; joining the threads makes it visible.
        if (!failed_.exchange(true)) {
          error_ = done.error();
          error_->text = chunks_[index].range->about;
        }
        return;
      }
    }
  }

  [[nodiscard]] Result<void> populate_chunk(const Chunk& chunk) const {
    const Operand part = Operand::span(chunk.offset, chunk.size);
    const MemoryMapping& mapping = *chunk.range->mapping;
    const Backing& backing = mapping.backing();
    const bool known = chunk.write ? can_write_ : can_read_;
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
      if (errno != EOPNOTSUPP || !known) return fail_os(operation, part, "fallocate");
    }
    if (!known) {
      touch(chunk);
      return {};
    }
    const int advice = chunk.write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    if (retry([&] {
          return kernel().madvise(mapping.data() + chunk.offset, chunk.size, advice);
        }) != 0) {
      return fail_os(operation, part,
                     errno == EFAULT
                         ? "out of pages: the hugetlb pool, file system or memory cgroup is full"
                         : "madvise(MADV_POPULATE)");
    }
    return {};
  }

  std::vector<Chunk> chunks_;
  bool can_read_;
  bool can_write_;
  std::atomic<std::size_t> next_ = 0;
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
                 .operation = operation,
                 .first = Operand::span(range.offset, range.size),
                 .reason = write ? "populating by writing requires a writable mapping"
                                 : "populating by reading requires a readable mapping"});
  }
  return write;
}

/// Splits a range into chunks, which end where the host address is a multiple of their size, so
/// that no huge page is split.
Result<void> add_chunks(const PopulateRange& range, PopulateAccess access,
                        std::vector<Chunk>& chunks) {
  if (range.mapping == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::span(range.offset, range.size),
                 .reason = "the mapping is a null pointer"});
  }
  const MemoryMapping& mapping = *range.mapping;
  VMSPACE_TRY_IN(operation, mapping.check_part(range.offset, range.size));
  if (mapping.backing().is_external()) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = Operand::span(range.offset, range.size),
                 .reason = "memory of devices, and what something else has mapped, has its pages"});
  }
  access = range.access.value_or(access);
  VMSPACE_TRY(detail::require_known(operation, access, unknown_access));
  const bool write = VMSPACE_TRY(wants_write(range, access));
  const std::uint64_t step = std::max(chunk_size, mapping.page_size());
  const std::uint64_t end = range.offset + range.size;
  for (std::uint64_t at = range.offset; at < end;) {
    const auto address = reinterpret_cast<std::uintptr_t>(mapping.data()) + at;
    const std::uint64_t size = std::min(end - at, step - (address & (step - 1)));
    chunks.push_back({&range, at, size, write});
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
  VMSPACE_TRY(detail::require_known(operation, options.access, unknown_access));
  std::vector<Chunk> chunks;
  std::uint64_t total = 0;
  for (const PopulateRange& range : ranges) {
    if (auto ok = add_chunks(range, options.access, chunks); !ok) {
      Error error = ok.error();
      error.text = range.about;
      return fail(error);
    }
    total += range.size;
  }
  const std::size_t wanted = options.threads != 0 ? options.threads : threads_for(total);
  const std::size_t most = std::max<std::size_t>(chunks.size(), 1);
  Job job(std::move(chunks));
  return job.run(static_cast<unsigned>(std::clamp<std::size_t>(wanted, 1, most)));
}

Result<void> populate(const MemoryMapping& mapping, PopulateOptions options) {
  const PopulateRange all{.mapping = &mapping, .offset = 0, .size = mapping.size()};
  return populate(std::span(&all, 1), options);
}

}  // namespace vmspace
