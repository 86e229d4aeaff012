// SPDX-License-Identifier: Apache-2.0
//
// What gdb looks at in gdb_test.cpp.

#include <cerrno>
#include <cstdint>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/allocator.hpp"

using vmspace::Errc;
using vmspace::Error;
using vmspace::GuestAddress;
using vmspace::IntervalTree;
using vmspace::Operand;
using vmspace::Range;
using vmspace::Result;

namespace {

// Where gdb stops: everything is made.
[[gnu::noinline]] void look_here(const void* object) {
  asm volatile("" : : "r"(object) : "memory");
}

}  // namespace

int main() {
  const Range range = Range::of(0xc000'0000, 0xc000'3fff);
  const GuestAddress address(0xfee0'0000);
  const Errc code = Errc::no_space;
  const Error error{.code = Errc::overlap,
                    .operation = "insert",
                    .first = Operand::range(0x200, 0x2ff),
                    .second = Operand::range(0x100, 0x20f)};
  const Error os_error{.code = Errc::os,
                       .operation = "mmap",
                       .first = Operand::size(0x1000),
                       .reason = "reserving",
                       .os_errno = ENOMEM};
  const Result<Range> value = range;
  const Result<Range> failed = vmspace::fail(error);
  const Result<> done;
  const Result<> undone = vmspace::fail(os_error);

  IntervalTree<const char*> tree;
  IntervalTree<> stateless;
  IntervalTree<std::uint64_t> large;
  const IntervalTree<int> empty;
  bool made = tree.insert(range, "nic0") && tree.insert(Range::of(0xc000'4000, 0xffff'ffff)) &&
              tree.allocate_at(Range::of(0xc000'4000, 0xc000'4fff)) &&
              tree.allocate_at(Range::of(0xffff'f000, 0xffff'ffff), "rom") &&
              stateless.insert(Range::of(0, 9)) && stateless.allocate({.size = 1}, {});
  // More than one leaf holds.
  for (std::uint64_t i = 0; i < 100; ++i)
    made = made && large.insert(Range::point(i * 2), i);
  IntervalTree<int> pool;
  made = made && pool.insert(Range::of(0x1000, 0x1fff));
  const auto valued = pool.allocate({.size = 0x10}, 5);
  if (!made || !valued) return 1;

  look_here(&tree);
  look_here(&large);
  look_here(&stateless);
  look_here(&empty);
  look_here(&value);
  look_here(&valued);
  look_here(&failed);
  look_here(&done);
  look_here(&undone);
  look_here(&code);
  look_here(&address);
  return 0;
}
