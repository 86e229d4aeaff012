// SPDX-License-Identifier: Apache-2.0
//
// The first serial port of a PC, as much of a 16550A as Linux needs to print.

#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace boot_linux {

/// A UART whose transmitter is always ready.
class SerialPort {
 public:
  static constexpr std::uint16_t base = 0x3f8;
  static constexpr std::uint16_t registers = 8;
  static constexpr unsigned irq = 4;

  /// Gives what is written to `print`, and the level of its interrupt to `interrupt`.
  SerialPort(std::function<void(char)> print, std::function<void(bool)> interrupt)
      : print_(std::move(print)), interrupt_(std::move(interrupt)) {}

  void write(unsigned reg, std::uint8_t value);
  [[nodiscard]] std::uint8_t read(unsigned reg);

 private:
  void update();

  std::function<void(char)> print_;
  std::function<void(bool)> interrupt_;
  std::uint8_t interrupts_ = 0;  ///< enabled
  std::uint8_t line_ = 0;        ///< line control
  std::uint8_t modem_ = 0;       ///< modem control
  std::uint8_t scratch_ = 0;
  std::uint16_t divisor_ = 1;
  bool is_empty_news_ = false;  ///< the transmitter is empty, and nobody has read that
};

}  // namespace boot_linux
