// SPDX-License-Identifier: Apache-2.0
//
// Those who have a table of guest memory, as the model of all tables sees them: each is a listener of the
// library, and what is on its other side.

#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <rapidcheck.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/vmm.hpp"

#include "vmm/fake_kvm.hpp"
#include "vmm/vhost_user_front_support.hpp"

namespace vmspace::test {

using namespace literals;
using namespace std::chrono_literals;

/// What somebody finds at a guest address: memory of this size, which begins with this number.
struct Seen {
  std::uint64_t base;
  std::uint64_t size;
  std::uint64_t stamp;
  friend auto operator<=>(const Seen&, const Seen&) = default;
};
using Table = std::vector<Seen>;  // in address order

inline std::uint64_t stamp_at(std::uint64_t host_address) {
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

class Kvm final : public Side, private FakeKvm {
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
    if (!map->memory.contains({GuestAddress(address), 4_KiB})) return false;
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
    VhostUserMemoryOptions options = with(features_ | logs);
    options.addresses = VhostUserAddresses::guest;
    front_ = memory_for(*pair_, options);
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
  const SharedLog log_{256_KiB};
  std::optional<SocketPair> pair_;
  std::optional<Backend> device_;
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

}  // namespace vmspace::test
