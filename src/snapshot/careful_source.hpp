// SPDX-License-Identifier: Apache-2.0
//
// A source of pages whose exceptions are errors.

#pragma once

#include <cerrno>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "vmspace/base/result.hpp"
#include "vmspace/snapshot/page_source.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

/// Asks another source, and throws nothing: above a thread that restores is nobody who could catch it.
class CarefulSource final : public PageSource {
 public:
  explicit CarefulSource(std::shared_ptr<PageSource> source) noexcept
      : source_(std::move(source)) {}

  [[nodiscard]] Result<void> read(GuestAddress at, std::span<std::byte> to) noexcept override {
    return ask("PageSource::read", [&] { return source_->read(at, to); });
  }
  [[nodiscard]] Result<GuestRange> next_data(GuestRange range) noexcept override {
    return ask("PageSource::next_data", [&] { return source_->next_data(range); });
  }

 private:
  template <typename Call>
  static std::invoke_result_t<Call> ask(const char* operation, Call call) noexcept {
    try {
      return call();
    } catch (const std::bad_alloc&) {
      return fail_os(operation, {}, "the source has run out of memory", ENOMEM);
    } catch (...) {
      return fail({.code = Errc::bad_state,
                   .operation = operation,
                   .reason = "the source threw an exception"});
    }
  }

  std::shared_ptr<PageSource> source_;
};

}  // namespace vmspace::detail
