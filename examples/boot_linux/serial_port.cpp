// SPDX-License-Identifier: Apache-2.0

#include "serial_port.hpp"

namespace boot_linux {

namespace {

// Registers, and their bits.
enum : unsigned {
  data,
  interrupt_enable,
  interrupt_id,
  line_control,
  modem_control,
  line_status,
  modem_status,
  scratch
};
constexpr std::uint8_t divisor_latch = 0x80;
constexpr std::uint8_t transmitter_interrupt = 0x02;
constexpr std::uint8_t no_interrupt = 0x01;
constexpr std::uint8_t fifos = 0xc0;
constexpr std::uint8_t transmitter_ready = 0x60;
constexpr std::uint8_t clear_to_send = 0xb0;

}  // namespace

void SerialPort::update() {
  interrupt_(is_empty_news_ && (interrupts_ & transmitter_interrupt) != 0);
}

void SerialPort::write(unsigned reg, std::uint8_t value) {
  const bool is_divisor = (line_ & divisor_latch) != 0;
  switch (reg) {
    case data:
      if (is_divisor) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
        return;
      }
      print_(static_cast<char>(value));
      is_empty_news_ = true;
      break;
    case interrupt_enable:
      if (is_divisor) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00ff) | (value << 8));
        return;
      }
      interrupts_ = value & 0x0f;
      is_empty_news_ = true;
      break;
    case line_control: line_ = value; return;
    case modem_control: modem_ = value; return;
    case scratch: scratch_ = value; return;
    default: return;
  }
  update();
}

std::uint8_t SerialPort::read(unsigned reg) {
  const bool is_divisor = (line_ & divisor_latch) != 0;
  switch (reg) {
    case data: return is_divisor ? static_cast<std::uint8_t>(divisor_ & 0xff) : 0;
    case interrupt_enable:
      return is_divisor ? static_cast<std::uint8_t>(divisor_ >> 8) : interrupts_;
    case interrupt_id: {
      const bool pending = is_empty_news_ && (interrupts_ & transmitter_interrupt) != 0;
      is_empty_news_ = false;  // reading it acknowledges it
      update();
      return fifos | (pending ? transmitter_interrupt : no_interrupt);
    }
    case line_control: return line_;
    case modem_control: return modem_;
    case line_status: return transmitter_ready;
    case modem_status: return clear_to_send;
    default: return scratch_;
  }
}

}  // namespace boot_linux
