// SPDX-License-Identifier: Apache-2.0
//
// A VmMemory with the listeners that the library has, driven at random while their calls fail: KVM's
// slots, DMA mappings, a vhost-user device in a thread, and a recorder. After each step the map, the
// memory and every table, as the other side has it, agree with a list of regions and what they hold.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/vmm.hpp"

#include "vmm/fake_kvm.hpp"
#include "vmm/vhost_user_front_support.hpp"

namespace vmspace {
namespace {

using namespace literals;
using namespace std::chrono_literals;

constexpr std::uint64_t unit = 64_KiB;
constexpr std::uint64_t page = 4_KiB;
constexpr std::uint64_t origin = 4_GiB;
constexpr int places = 12;
constexpr std::uint64_t largest_region = 3 * unit;

GuestAddress place(int index) {
  return GuestAddress(origin + static_cast<std::uint64_t>(index) * unit);
}

int random_below(int end) {
  return *rc::gen::inRange(0, end);
}

class Gate final : public VmGate {
 public:
  Result<void> pause(const MemoryChange&) override {
    ++depth;
    return {};
  }
  void resume() noexcept override { --depth; }
  int depth = 0;
};

/// What somebody finds at a guest address: memory of this size, which begins with this number.
struct Seen {
  std::uint64_t base;
  std::uint64_t size;
  std::uint64_t stamp;
  friend auto operator<=>(const Seen&, const Seen&) = default;
};
using Table = std::vector<Seen>;  // in address order

std::uint64_t stamp_at(std::uint64_t host_address) {
  std::uint64_t stamp = 0;
  std::memcpy(&stamp, reinterpret_cast<const void*>(host_address), sizeof stamp);
  return stamp;
}

/// Somebody with a table of guest memory. A new kind of listener is one more of these.
class Side {
 public:
  virtual ~Side() = default;
  /// What is added to the VmMemory; null while it is not there.
  virtual std::shared_ptr<MemoryListener> listener() const = 0;
  /// The call after the next `calls` fails, or does what it can to refuse.
  virtual void fail(int calls) = 0;
  /// All goes well again.
  virtual void mend() = 0;
  /// The table as the other side has it.
  virtual Table table() const = 0;
  /// Writes to a page through the table, as a guest or a device would; false where it has none.
  virtual bool write(std::uint64_t) { return false; }
};

class Kvm final : public Side, private test::FakeKvm {
 public:
  std::shared_ptr<MemoryListener> listener() const override { return listener_; }
  void fail(int calls) override {
    calls % 2 == 0 ? fail_next(calls / 2) : fail_all_from(calls / 2);
  }
  void mend() override {
    fail_change.reset();
    fail_from.reset();
  }
  Table table() const override {
    Table all;
    for (const auto& [number, slot] : slots)
      all.push_back({slot.range.min(), slot.range.size(), stamp_at(slot.host_address)});
    std::ranges::sort(all);
    return all;
  }
  bool write(std::uint64_t address) override {
    guest_writes(address);
    return std::ranges::any_of(
        slots, [&](const auto& slot) { return slot.second.range.contains(address); });
  }

 private:
  void TestBody() override {}

  std::shared_ptr<KvmMemslots> listener_ = std::make_shared<KvmMemslots>(make());
};

class Dma final : public Side {
 public:
  explicit Dma(bool by_host_address) : by_host_(by_host_address) {}

  std::shared_ptr<MemoryListener> listener() const override { return listener_; }
  void fail(int calls) override { fail_in_ = calls; }
  void mend() override { fail_in_.reset(); }
  Table table() const override {
    Table all;
    for (const auto& [key, mapping] : mapped_)
      all.push_back({mapping.iova, mapping.size, stamp_at(host_of(mapping))});
    std::ranges::sort(all);
    return all;
  }

 private:
  class Target final : public DmaTarget {
   public:
    explicit Target(Dma& dma) : dma_(dma) {}
    std::string_view name() const noexcept override { return "dma"; }
    Result<DmaLimits> limits() const override { return DmaLimits{}; }
    Result<void> map(const DmaMapping& mapping) override {
      VMSPACE_TRY(dma_.next_call());
      RC_ASSERT(dma_.mapped_.emplace(dma_.key(mapping), mapping).second);
      return {};
    }
    Result<void> unmap(const DmaMapping& mapping) noexcept override {
      VMSPACE_TRY(dma_.next_call());
      static_cast<void>(dma_.mapped_.erase(dma_.key(mapping)));
      return {};
    }
    bool is_by_host_address() const noexcept override { return dma_.by_host_; }

   private:
    Dma& dma_;
  };

  static std::uint64_t host_of(const DmaMapping& mapping) {
    return reinterpret_cast<std::uintptr_t>(mapping.host_address);
  }
  std::uint64_t key(const DmaMapping& mapping) const {
    return by_host_ ? host_of(mapping) : mapping.iova;
  }
  Result<void> next_call() noexcept {
    if (!fail_in_ || (*fail_in_)-- > 0) return {};
    return fail_with();
  }
  static tl::unexpected<Error> fail_with() noexcept {
    return vmspace::fail({.code = Errc::os, .operation = "Dma", .os_errno = ENOMEM});
  }

  const bool by_host_;
  std::map<std::uint64_t, DmaMapping> mapped_;
  std::optional<int> fail_in_;
  std::shared_ptr<DmaMappings> listener_ =
      std::make_shared<DmaMappings>(DmaMappings::create(std::make_unique<Target>(*this)).value());
};

/// A device in a thread. It refuses to let go while it looks at memory; and it can die, and come back.
class VhostUser final : public Side {
 public:
  explicit VhostUser(std::uint64_t features) : features_(features) { connect(); }
  ~VhostUser() override { disconnect(); }

  std::shared_ptr<MemoryListener> listener() const override { return front_; }
  void fail(int calls) override {
    if (calls % 4 == 0) {
      ::shutdown(pair_->front.value(), SHUT_RDWR);
      cut_ = true;
    } else {
      looking_ = device_->memory.map().snapshot();
    }
  }
  void mend() override { looking_.reset(); }
  Table table() const override {
    Table all;
    const auto map = device_->memory.map().snapshot();
    for (const MemoryRegionPtr& region : map->memory.regions()) {
      all.push_back({region->base().value(), region->size(),
                     map->memory.read<std::uint64_t>(region->base()).value()});
    }
    return all;
  }
  bool write(std::uint64_t address) override {
    if (is_dead()) return false;
    const auto map = device_->memory.map().snapshot();
    if (!map->memory.contains({GuestAddress(address), page})) return false;
    RC_ASSERT(map->log.mark({GuestAddress(address), 1}).has_value());
    return true;
  }

  /// Whether the connection has ended, noticed or not.
  [[nodiscard]] bool is_dead() const { return cut_ || front_->is_gone(); }
  /// A new one, which has nothing; the old one's listener is in nobody's list.
  void reconnect() {
    disconnect();
    connect();
  }

 private:
  void connect() {
    cut_ = false;
    pair_.emplace();
    device_.emplace(std::move(pair_->back), VhostUserBackendOptions{.release_timeout = 1ms});
    VhostUserMemoryOptions options = test::with(features_ | test::logs);
    options.addresses = VhostUserAddresses::guest;
    front_ = test::memory_for(*pair_, options);
    RC_ASSERT(front_->share_log({.fd = log_.file.value(), .size = log_.mapped}).has_value());
  }
  void disconnect() {
    looking_.reset();
    front_.reset();
    ::shutdown(pair_->front.value(), SHUT_RDWR);
    device_.reset();
    pair_.reset();
  }

  const std::uint64_t features_;
  const test::SharedLog log_{256_KiB};
  std::optional<test::SocketPair> pair_;
  std::optional<test::Backend> device_;
  std::shared_ptr<VhostUserMemory> front_;
  std::shared_ptr<const VhostUserMap> looking_;
  bool cut_ = false;
};

class Recorder final : public Side {
 public:
  std::shared_ptr<MemoryListener> listener() const override { return listener_; }
  void fail(int calls) override { listener_->refuse(static_cast<std::size_t>(calls), 2); }
  void mend() override { listener_->refuse(0, 0); }
  Table table() const override {
    Table all;
    for (const MemorySection& section : listener_->table()) {
      all.push_back({section.base().value(), section.size(),
                     stamp_at(reinterpret_cast<std::uintptr_t>(section.host_base()))});
    }
    std::ranges::sort(all);
    return all;
  }

 private:
  std::shared_ptr<MemoryRecorder> listener_ = std::make_shared<MemoryRecorder>("recorder");
};

/// A region of the model.
struct Region {
  AddressSpaceRegionPtr description;
  std::uint64_t stamp = 0;  ///< at its first byte
  bool parked = false;
};

class Machine {
 public:
  Machine() {
    RC_ASSERT(memory_.set_gate(gate_).has_value());
    for (Side* side : sides_)
      RC_ASSERT(memory_.add_listener(side->listener(), {.required = side != &device_}).has_value());
  }

  void step() {
    fails_ = random_below(2) == 0;
    if (fails_) sides_[static_cast<std::size_t>(random_below(4))]->fail(random_below(12));
    switch (random_below(12)) {
      case 0:
      case 1:
      case 2: plug(); break;
      case 3: unplug(); break;
      case 4: move(1); break;
      case 5: move(3); break;
      case 6:
      case 7: resize(); break;
      case 8: write(); break;
      case 9: harvest(); break;
      case 10: start_or_stop_log(); break;
      case 11: static_cast<void>(memory_.collect()); break;
    }
    for (Side* side : sides_)
      side->mend();
    check();
  }

 private:
  struct Log {
    VmDirtyLog log;
    std::set<std::uint64_t> must_have;  ///< pages that the next harvest has
  };

  /// Does what `edit` says: all of it, and then the model is `after`, or nothing.
  template <typename Change>
  void change(Change edit, const std::vector<Region>& after) {
    const Result<void> done = edit();
    if (!done) {
      const Errc code = done.error().code;
      RC_ASSERT(fails_ || device_.is_dead() || code == Errc::overlap || code == Errc::bad_state ||
                code == Errc::limit_exceeded);
      return;
    }
    for (const Region& region : after) {
      const auto same = [&](const Region& before) {
        return before.description == region.description && before.parked == region.parked;
      };
      // What joins, moves or is resized counts as written.
      if (!region.parked && std::ranges::none_of(regions_, same)) {
        for (std::uint64_t at = 0; at < region.description->size(); at += page)
          mark(region.description->base().value() + at);
      }
    }
    regions_ = after;
  }
  void mark(std::uint64_t address) {
    for (Log& log : logs_)
      log.must_have.insert(address);
  }

  std::optional<std::size_t> any_region() const {
    if (regions_.empty()) return std::nullopt;
    return static_cast<std::size_t>(random_below(static_cast<int>(regions_.size())));
  }

  void plug() {
    const RegionOptions options{.name = "r" + std::to_string(next_name_++),
                                .base = place(random_below(places)),
                                .size = unit * static_cast<std::uint64_t>(1 + random_below(3)),
                                .backing = {.source = MemorySource::shmem}};
    const auto backing = Backing::open({.source = MemorySource::shmem}, largest_region).value();
    auto after = regions_;
    change(
        [&]() -> Result<void> {
          const auto region = VMSPACE_TRY(memory_.plug(options, {.backing = backing}));
          after.push_back({.description = region->shared_description()});
          return {};
        },
        after);
  }

  void unplug() {
    const auto index = any_region();
    if (!index) return;
    auto after = regions_;
    const auto gone = after[*index].description;
    after.erase(after.begin() + static_cast<std::ptrdiff_t>(*index));
    change([&] { return memory_.unplug(gone, 10s); }, after);
  }

  void resize() {
    const auto index = any_region();
    if (!index) return;
    auto after = regions_;
    const std::uint64_t size = unit * static_cast<std::uint64_t>(1 + random_below(3));
    change(
        [&]() -> Result<void> {
          const auto region = VMSPACE_TRY(memory_.resize(after[*index].description, size));
          after[*index].description = region->shared_description();
          return {};
        },
        after);
  }

  /// Moves, swaps and parks up to `count` at once.
  void move(int count) {
    auto after = regions_;
    std::vector<RegionMove> moves;
    std::vector<std::size_t> moved;
    for (int i = 0; i < count; ++i) {
      const auto index = any_region();
      if (!index || std::ranges::find(moved, *index) != moved.end()) continue;
      RegionMove to{.region = regions_[*index].description};
      if (random_below(5) != 0) to.to = place(random_below(places));
      moves.push_back(std::move(to));
      moved.push_back(*index);
    }
    change(
        [&] {
          return memory_.transact([&](AddressSpaceBase& draft) -> Result<void> {
            const auto now = VMSPACE_TRY(draft.move_regions(moves));
            for (std::size_t i = 0; i < moves.size(); ++i) {
              after[moved[i]].description = now[i];
              after[moved[i]].parked = !moves[i].to.has_value();
            }
            return {};
          });
        },
        after);
  }

  /// This process writes to the first page of a region; the others, each to one of its own.
  void write() {
    const auto index = any_region();
    if (!index || regions_[*index].parked) return;
    Region& region = regions_[*index];
    region.stamp = ++next_stamp_;
    std::uint64_t address = region.description->base().value();
    RC_ASSERT(memory_.map()->memory.write(GuestAddress(address), region.stamp).has_value());
    mark(address);
    for (Side* side : sides_) {
      address += page;
      if (side->write(address)) mark(address);
    }
  }

  void harvest() {
    if (logs_.empty()) return;
    Log& log = logs_[static_cast<std::size_t>(random_below(static_cast<int>(logs_.size())))];
    const auto found = log.log.harvest();
    if (!found) {
      RC_ASSERT(fails_ || !memory_.unsettled().value().empty());
      return;  // and nothing is lost
    }
    const auto now = memory_.map();
    for (const std::uint64_t address : log.must_have) {
      if (!now->memory.contains({GuestAddress(address), 1})) continue;
      RC_ASSERT(std::ranges::any_of(
          *found, [&](const GuestRange& range) { return range.contains(GuestAddress(address)); }));
    }
    log.must_have.clear();
  }

  void start_or_stop_log() {
    if (logs_.size() == 2) {
      logs_.erase(logs_.begin());
    } else if (auto log = memory_.start_dirty_log()) {
      logs_.push_back({.log = *std::move(log), .must_have = {}});
    }
  }

  /// What everybody should find.
  Table expected() const {
    Table all;
    for (const Region& region : regions_) {
      const AddressSpaceRegion& description = *region.description;
      if (!region.parked)
        all.push_back({description.base().value(), description.size(), region.stamp});
    }
    std::ranges::sort(all);
    return all;
  }

  void check() {
    RC_ASSERT(gate_->depth == 0);
    const auto invariants = memory_.check_invariants();
    if (!invariants) RC_FAIL(invariants.error().message());
    settle();
    const Table model = expected();
    const auto now = memory_.map();
    Table map;
    for (const AddressSpaceRegionPtr& region : now->space) {
      const auto stamp = now->memory.read<std::uint64_t>(region->base());
      RC_ASSERT(stamp.has_value());
      map.push_back({region->base().value(), region->size(), *stamp});
    }
    RC_ASSERT(map == model);
    RC_ASSERT(now->memory.regions().size() == model.size());
    if (!memory_.unsettled().value().empty()) return;
    for (const Side* side : sides_)
      RC_ASSERT(side->table() == model);
    for (const MemoryRegionPtr& region : now->memory.regions()) {
      const auto refused = region->mapping().discard(region->size() - page, page);
      RC_ASSERT(!refused && refused.error().code == Errc::bad_state);  // devices have it
    }
  }

  /// A device that has died comes back; and mostly, what was refused is done.
  void settle() {
    if (!memory_.unsettled().value().empty() && random_below(3) != 0) {
      const auto settled = memory_.collect();
      if (!settled && !device_.is_dead()) RC_FAIL(settled.error().message());
    }
    const auto listeners = memory_.listeners().value();
    const bool is_there = std::ranges::find(listeners, device_.listener()) != listeners.end();
    if (is_there && !device_.is_dead()) return;
    if (is_there) static_cast<void>(memory_.remove_listener(*device_.listener()));
    device_.reconnect();
    // Whoever has just joined has a table of its own, though others lack a section still.
    const auto added = memory_.add_listener(device_.listener(), {.required = false});
    if (!added) RC_FAIL(added.error().message());
  }

  Kvm kvm_;  // first, as the others make their system calls through it
  Dma dma_{false};
  VhostUser device_{random_below(2) == 0 ? test::acks : test::acks | test::slots};
  Recorder recorder_;
  const std::vector<Side*> sides_{&kvm_, &dma_, &device_, &recorder_};

  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  const VmMemory memory_ = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  std::vector<Region> regions_;
  std::vector<Log> logs_;
  bool fails_ = false;  ///< in this step
  std::uint64_t next_stamp_ = 0;
  int next_name_ = 0;
};

RC_GTEST_PROP(VmTablesModel, MapMemoryAndEveryTableAgreeWhateverFails, ()) {
  Machine machine;
  const int steps = *rc::gen::inRange(10, 200);
  for (int i = 0; i < steps; ++i)
    machine.step();
}

}  // namespace
}  // namespace vmspace
