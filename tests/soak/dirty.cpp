// SPDX-License-Identifier: Apache-2.0
//
// Copies of memory that are brought up to date with nothing but what is reported as written, as a
// migration has them: by the VM's dirty log, and by the page tables. At rest a copy is the memory.

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

#include "vmspace/snapshot/dirty_scan.hpp"

#include "activity.hpp"
#include "machine.hpp"

namespace vmspace::soak {
namespace {

class Migration final : public Activity {
 public:
  Migration(Machine& machine, std::uint64_t seed)
      : Activity("migration", seed),
        machine_(machine),
        memory_(machine.only({Machine::ram, Machine::queues, Machine::patches, Machine::shared})) {}

  void begin(unsigned round) override {
    if (round % 8 != 0) return;
    log_ = must(machine_.memory.start_dirty_log());
    copy_ = contents_of(memory_);
  }
  void step() override { update(copy_, memory_, must(log_->harvest())); }
  void finish() override {
    step();
    require_contents(memory_, copy_, "a copy by the dirty log");
  }

 private:
  Machine& machine_;
  GuestMemory memory_;
  std::optional<VmDirtyLog> log_;
  Contents copy_;
};

/// In every other round; in the others a live snapshot has the page faults.
class Scan final : public Activity {
 public:
  Scan(Machine& machine, std::uint64_t seed) : Activity("dirty scan", seed), machine_(machine) {}

  void begin(unsigned round) override {
    if (round % 2 == 0) return;
    scan_ = must(DirtyScan::start(machine_.still));
    copy_ = contents_of(machine_.still);
  }
  void step() override {
    if (scan_) update(copy_, machine_.still, must(scan_->harvest()));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  void finish() override {
    if (!scan_) return;
    must_refuse(DirtyScan::start(machine_.still), Errc::bad_state);
    step();
    require_contents(machine_.still, copy_, "a copy by the page tables");
    scan_.reset();
    copy_ = Contents();
  }

 private:
  Machine& machine_;
  std::optional<DirtyScan> scan_;
  Contents copy_;
};

}  // namespace

std::unique_ptr<Activity> make_migration(Machine& machine, std::uint64_t seed) {
  return std::make_unique<Migration>(machine, seed);
}

std::unique_ptr<Activity> make_dirty_scan(Machine& machine, std::uint64_t seed) {
  if (const auto tried = DirtyScan::start(machine.still); !tried) {
    go_without("a dirty scan", tried.error());
    return nullptr;
  }
  return std::make_unique<Scan>(machine, seed);
}

}  // namespace vmspace::soak
