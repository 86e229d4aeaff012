// SPDX-License-Identifier: Apache-2.0
//
// QEMU's qtest protocol, and the driver of a modern virtio device behind PCI that speaks it: a test in
// the place of the guest's processor.
//
// Sources: QEMU's docs/devel/testing.rst ("QTest"), and virtio 1.2, section 4.1.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "clients/process.hpp"

namespace vmspace::test {

/// Ports and memory of a machine, as its processor would use them.
class Qtest {
 public:
  explicit Qtest(const std::string& path)
      : connection_(connect_to(path, std::chrono::seconds(20))) {}

  void out32(std::uint64_t port, std::uint32_t value) { command("outl", port, value); }
  void out8(std::uint64_t port, std::uint8_t value) { command("outb", port, value); }
  std::uint32_t in32(std::uint64_t port) {
    return static_cast<std::uint32_t>(command("inl", port));
  }
  void write8(std::uint64_t address, std::uint8_t value) { command("writeb", address, value); }
  void write16(std::uint64_t address, std::uint16_t value) { command("writew", address, value); }
  void write32(std::uint64_t address, std::uint32_t value) { command("writel", address, value); }
  void write64(std::uint64_t address, std::uint64_t value) { command("writeq", address, value); }
  std::uint8_t read8(std::uint64_t address) {
    return static_cast<std::uint8_t>(command("readb", address));
  }
  std::uint16_t read16(std::uint64_t address) {
    return static_cast<std::uint16_t>(command("readw", address));
  }
  std::uint32_t read32(std::uint64_t address) {
    return static_cast<std::uint32_t>(command("readl", address));
  }

  void fill(std::uint64_t address, std::uint64_t size, std::uint8_t value) {
    ask("memset " + number(address) + " " + number(size) + " " + number(value));
  }
  void write(std::uint64_t address, std::string_view text) {
    std::string hex = "0x";
    for (const char letter : text) {
      constexpr std::string_view digits = "0123456789abcdef";
      hex += digits[static_cast<std::uint8_t>(letter) >> 4];
      hex += digits[static_cast<std::uint8_t>(letter) & 15];
    }
    ask("write " + number(address) + " " + number(text.size()) + " " + hex);
  }
  std::string read(std::uint64_t address, std::uint64_t size) {
    const std::string answer = ask("read " + number(address) + " " + number(size));
    std::string text;
    for (std::size_t at = std::string("OK 0x").size(); at + 1 < answer.size(); at += 2)
      text += static_cast<char>(std::stoi(answer.substr(at, 2), nullptr, 16));
    return text;
  }

 private:
  static std::string number(std::uint64_t value) { return std::to_string(value); }

  std::string ask(const std::string& text) {
    const std::string line = text + "\n";
    EXPECT_EQ(::send(connection_.fd(), line.data(), line.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(line.size()));
    while (auto answer = connection_.next(std::chrono::seconds(20))) {
      if (answer->starts_with("IRQ ")) continue;
      EXPECT_TRUE(answer->starts_with("OK")) << text << ": " << *answer;
      return *answer;
    }
    ADD_FAILURE() << text << ": no answer";
    return "OK 0x0";
  }
  template <typename... Value>
  std::uint64_t command(const char* name, std::uint64_t where, Value... value) {
    std::string text = std::string(name) + " " + number(where);
    ((text += " " + number(value)), ...);
    const std::string answer = ask(text);
    return answer.size() > 3 ? std::stoull(answer.substr(3), nullptr, 0) : 0;
  }

  Lines connection_;
};

/// A virtio device on PCI bus 0 with one queue in use, whose rings lie from `rings` on.
class VirtioPci {
 public:
  static constexpr std::uint64_t rings = 0x10'0000;
  static constexpr std::uint64_t descriptors = rings;
  static constexpr std::uint64_t available = rings + 0x4000;
  static constexpr std::uint64_t used = rings + 0x5000;
  static constexpr std::uint16_t size = 64;

  VirtioPci(Qtest& machine, unsigned slot) : machine_(machine), slot_(slot) {
    constexpr std::uint32_t window = 0xc000'0000;
    constexpr unsigned memory_bar = 4;
    set_config(0x10 + 4 * memory_bar, window);
    set_config(0x14 + 4 * memory_bar, 0);
    set_config(0x04, config(0x04) | 6);  // memory, and access of its own
    for (unsigned at = config(0x34) & 0xff; at != 0; at = (config(at) >> 8) & 0xff) {
      if ((config(at) & 0xff) != 9) continue;  // vendor-specific: virtio's
      const std::uint64_t place = window + config(at + 8);
      switch (config(at) >> 24) {
        case 1: common_ = place; break;
        case 2:
          notify_ = place;
          notify_step_ = config(at + 16);
          break;
        case 4: device_ = place; break;
        default: break;
      }
    }
  }

  /// From nothing to DRIVER_OK, with these features beside VERSION_1.
  void start(std::uint32_t features = 0) {
    constexpr std::uint8_t acknowledge = 1, driver = 2, driver_ok = 4, features_ok = 8;
    machine_.write8(common_ + 0x14, 0);
    machine_.write8(common_ + 0x14, acknowledge | driver);
    machine_.write32(common_ + 0x08, 0);
    machine_.write32(common_ + 0x0c, features);
    machine_.write32(common_ + 0x08, 1);
    machine_.write32(common_ + 0x0c, 1);  // VIRTIO_F_VERSION_1
    machine_.write8(common_ + 0x14, acknowledge | driver | features_ok);
    EXPECT_NE(machine_.read8(common_ + 0x14) & features_ok, 0);
    machine_.write16(common_ + 0x16, 0);
    machine_.write16(common_ + 0x18, size);
    machine_.write64(common_ + 0x20, descriptors);
    machine_.write64(common_ + 0x28, available);
    machine_.write64(common_ + 0x30, used);
    notify_at_ = notify_ + machine_.read16(common_ + 0x1e) * std::uint64_t{notify_step_};
    machine_.fill(rings, 0x8000, 0);
    offered_ = taken_ = 0;
    machine_.write16(common_ + 0x1c, 1);
    machine_.write8(common_ + 0x14, acknowledge | driver | features_ok | driver_ok);
  }

  void describe(std::uint64_t table, unsigned index, std::uint64_t address, std::uint32_t length,
                std::uint16_t flags, std::uint16_t next) {
    const std::uint64_t at = table + 16 * std::uint64_t{index};
    machine_.write64(at, address);
    machine_.write32(at + 8, length);
    machine_.write16(at + 12, flags);
    machine_.write16(at + 14, next);
  }
  void offer(std::uint16_t head) {
    machine_.write16(available + 4 + 2 * std::uint64_t{offered_} % (2 * size), head);
    set_available(static_cast<std::uint16_t>(offered_ + 1));
  }
  void set_available(std::uint16_t index) {
    offered_ = index;
    machine_.write16(available + 2, index);
    machine_.write16(notify_at_, 0);
  }
  /// Whether a request more is given back in time.
  bool take_used(std::chrono::milliseconds limit) {
    const auto end = steady_clock::now() + limit;
    while (machine_.read16(used + 2) == taken_) {
      if (steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ++taken_;
    return true;
  }
  [[nodiscard]] std::uint64_t device_config() const { return device_; }

 private:
  [[nodiscard]] std::uint32_t address_of(unsigned offset) const {
    return 0x8000'0000U | slot_ << 11 | (offset & ~3U);
  }
  std::uint32_t config(unsigned offset) {
    machine_.out32(0xcf8, address_of(offset));
    return machine_.in32(0xcfc);
  }
  void set_config(unsigned offset, std::uint32_t value) {
    machine_.out32(0xcf8, address_of(offset));
    machine_.out32(0xcfc, value);
  }

  Qtest& machine_;
  unsigned slot_;
  std::uint64_t common_ = 0, notify_ = 0, device_ = 0, notify_at_ = 0;
  std::uint32_t notify_step_ = 0;
  std::uint16_t offered_ = 0, taken_ = 0;
};

}  // namespace vmspace::test
