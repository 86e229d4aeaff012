// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/load_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "os/descriptor.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

namespace {

using detail::Descriptor;
using detail::kernel;

constexpr const char* load_operation = "load_file";

struct OpenFile {
  Descriptor descriptor;
  std::uint64_t size;
};

Result<OpenFile> open_file(const std::string& path, GuestAddress at) {
  const Operand place = Operand::address(at.value());
  if (path.find('\0') != std::string::npos) {  // open() would take what is before it
    return fail({.code = Errc::invalid_argument,
                 .operation = load_operation,
                 .first = place,
                 .reason = "the path must not contain NUL"});
  }
  // O_NONBLOCK: a FIFO is refused below instead of waited for.
  Descriptor file(detail::retry([&] {
    return kernel().open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
  }));
  if (file.value() < 0) return detail::fail_os(load_operation, place, "opening the file");
  struct stat info {};
  if (detail::retry([&] { return kernel().fstat(file.value(), &info); }) < 0)
    return detail::fail_os(load_operation, place, "fstat");
  if (!S_ISREG(info.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = load_operation,
                 .first = place,
                 .reason = "the path must be a regular file's"});
  }
  const auto size = static_cast<std::uint64_t>(info.st_size);
  VMSPACE_TRY(detail::require_nonzero(load_operation, size, place));
  return OpenFile{std::move(file), size};
}

Result<GuestRange> load(const std::string& path, const GuestMemory& memory, GuestAddress at) {
  const OpenFile file = VMSPACE_TRY(open_file(path, at));
  const GuestRange range{at, file.size};
  VMSPACE_TRY_IN(load_operation, memory.check(range, Access::read));
  for (std::uint64_t done = 0; done < range.size;) {
    const GuestAddress next(at.value() + done);
    const MemoryRegionPtr region = memory.find_region(next);
    const std::uint64_t offset = next.value() - region->base().value();
    const std::uint64_t part = std::min(range.size - done, region->size() - offset);
    const std::uint64_t read = VMSPACE_TRY_IN(
        load_operation, region->load_image_from(file.descriptor.value(), offset, part));
    if (read != part) {
      auto shortened =
          detail::fail_os(load_operation, detail::operand(range), "the file has ended", EIO);
      shortened.value().second = Operand::size(done + read);
      return shortened;
    }
    done += part;
  }
  return range;
}

}  // namespace

Result<GuestRange> load_file(const std::string& path, const GuestMemory& memory, GuestAddress at) {
  auto loaded = load(path, memory, at);
  if (!loaded) loaded.error().text = loaded.error().text.with_subject(path);
  return loaded;
}

}  // namespace vmspace
