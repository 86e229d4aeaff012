// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of the machine, full and differential, saved while it rests. While it goes on they are
// restored in every way, and compared with what the memory was.

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "vmspace/snapshot.hpp"

#include "activity.hpp"
#include "machine.hpp"
#include "os/descriptor.hpp"

namespace vmspace::soak {
namespace {

using namespace std::chrono_literals;

detail::Descriptor new_file() {
  detail::Descriptor file(::memfd_create("snapshot", MFD_CLOEXEC));
  require(file.value() >= 0, "there is room for a file");
  return file;
}

class Snapshots final : public Activity {
 public:
  Snapshots(Machine& machine, std::uint64_t seed)
      : Activity("snapshots", seed), machine_(machine) {}

  /// A full one, then three of changes.
  void begin(unsigned round) override {
    const bool checksums = random(2) == 0;
    if (round % 4 == 0) {
      chain_.clear();
      log_ = must(machine_.memory.start_dirty_log());
      chain_.push_back(new_file());
      last_ = must(save_snapshot(machine_.still, file(), {.checksums = checksums})).id;
    } else {
      const auto written = parts_of(machine_.still, must(log_->harvest()));
      chain_.push_back(new_file());
      last_ =
          must(save_snapshot(machine_.still, file(),
                             {.changes = SnapshotChanges{last_, written}, .checksums = checksums}))
              .id;
    }
    expected_ = contents_of(machine_.still);
  }

  void step() override {
    const auto source = random(2) == 0 ? MemorySource::anon : MemorySource::shmem;
    switch (random(5)) {
      case 0: return restore(source);
      case 1: return restore_lazily(source);
      case 2: return give_up_lazily(source);
      case 3: return merge_and_map();
      default: return open_broken();
    }
  }

 private:
  [[nodiscard]] int file() const { return chain_.back().value(); }
  [[nodiscard]] SnapshotReader open() const {
    std::vector<int> parents;
    for (const auto& each : chain_)
      parents.push_back(each.value());
    parents.pop_back();
    if (!parents.empty()) must_refuse(SnapshotReader::open(file()), Errc::not_found);
    return must(SnapshotReader::open(file(), parents));
  }

  void restore(MemorySource source) const {
    const GuestMemory memory = fresh_copy(machine_.still, source);
    must(restore_snapshot(memory, open()));
    require_contents(memory, expected_, "a restored snapshot");
  }
  void restore_lazily(MemorySource source) {
    const GuestMemory memory = fresh_copy(machine_.still, source);
    auto restore = start_lazily(memory);
    if (!restore) return;
    // What is touched comes first.
    for (int i = 0; i < 20; ++i) {
      const auto& region = memory.regions()[random(memory.regions().size())];
      must(memory.read<std::uint64_t>(
          GuestAddress(region->base().value() + random(region->size() / 8) * 8)));
    }
    must_refuse(save_snapshot(memory, new_file().value()), Errc::bad_state);
    restore->resume_background();
    must(restore->wait(60s));
    require_contents(memory, expected_, "a lazily restored snapshot");
  }
  void give_up_lazily(MemorySource source) {
    const GuestMemory memory = fresh_copy(machine_.still, source);
    const auto restore = start_lazily(memory);
    if (restore) must(memory.read<std::uint64_t>(Machine::patches));
  }
  /// Nothing where this process may not handle page faults.
  [[nodiscard]] std::optional<LazyRestore> start_lazily(const GuestMemory& memory) {
    auto restore =
        LazyRestore::start(memory, std::make_shared<SnapshotReader>(open()), {.background = false});
    if (restore) return *std::move(restore);
    require_missing(restore.error());
    return {};
  }
  void merge_and_map() const {
    const auto merged = new_file();
    must(merge_snapshots(open(), merged.value()));
    require_contents(must(map_snapshot(merged.value())), expected_, "a merged and mapped snapshot");
  }
  /// As it was cut off, or with a byte that is another.
  void open_broken() {
    const auto broken = new_file();
    must(merge_snapshots(open(), broken.value()));
    std::uint8_t byte = 0;
    const auto at = static_cast<off_t>(random(128));
    require(::pread(broken.value(), &byte, 1, at) == 1, "a snapshot has a head");
    byte = static_cast<std::uint8_t>(byte ^ (1U << random(8)));
    require(::pwrite(broken.value(), &byte, 1, at) == 1, "a snapshot can be written");
    const GuestMemory memory = fresh_copy(machine_.still, MemorySource::anon);
    require(!restore_snapshot(memory, broken.value()), "a broken snapshot is refused");
    require(::ftruncate(broken.value(), at) == 0, "a snapshot can be cut off");
    must_refuse(SnapshotReader::open(broken.value()), Errc::corrupt);
  }

  Machine& machine_;
  std::optional<VmDirtyLog> log_;
  std::vector<detail::Descriptor> chain_;
  SnapshotId last_;
  Contents expected_;
};

/// In every other round; in the others a scan has the page faults.
class LiveSnapshots final : public Activity {
 public:
  LiveSnapshots(Machine& machine, std::uint64_t seed)
      : Activity("live snapshots", seed), machine_(machine) {}

  void begin(unsigned round) override {
    if (round % 2 != 0) return;
    file_ = new_file();
    // A small buffer, so that some who write wait for the file.
    live_ = must(LiveSnapshot::prepare(machine_.still,
                                       must(SnapshotWriter::create(file_.value(), machine_.still)),
                                       {.buffer = 256_KiB, .peers_stopped = true}));
    must(live_->take());
    expected_ = contents_of(machine_.still);
  }
  void step() override {
    std::this_thread::sleep_for(10ms);
    finish();
  }
  void finish() override {
    if (!live_) return;
    must(live_->wait());
    live_.reset();
    const GuestMemory memory = fresh_copy(machine_.still, MemorySource::anon);
    must(restore_snapshot(memory, file_.value()));
    require_contents(memory, expected_, "a live snapshot");
    file_ = {};
    expected_ = Contents();
  }

 private:
  Machine& machine_;
  detail::Descriptor file_;
  std::optional<LiveSnapshot> live_;
  Contents expected_;
};

}  // namespace

std::unique_ptr<Activity> make_snapshots(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Snapshots>(machine, seed);
}

std::unique_ptr<Activity> make_live_snapshots(Machine& machine, std::uint64_t seed) {
  const auto file = new_file();
  const auto tried = LiveSnapshot::prepare(
      machine.still, must(SnapshotWriter::create(file.value(), machine.still)),
      {.peers_stopped = true});
  if (!tried) {
    go_without("live snapshots", tried.error());
    return nullptr;
  }
  return std::make_unique<LiveSnapshots>(machine, seed);
}

}  // namespace vmspace::soak
