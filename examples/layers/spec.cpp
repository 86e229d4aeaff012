// SPDX-License-Identifier: Apache-2.0

#include "vmspace/spec.hpp"

#include <cstdio>
#include <string>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example(const std::string& option) {
  // README begin
  // --memory-backend=hugeshmem
  const auto source = VMSPACE_TRY(vmspace::parse_memory_source(option));
  const vmspace::BackingSpec backing{.source = source, .page_size = 2_MiB};
  std::printf("%s, %s\n", std::string(name_of(backing.source)).c_str(),
              backing.is_shared() ? "shared" : "private");  // hugeshmem, shared
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example("hugeshmem");
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
