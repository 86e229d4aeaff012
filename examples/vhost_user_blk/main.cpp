// SPDX-License-Identifier: Apache-2.0
//
// A block device in a process of its own: QEMU, or another VMM, shares its guest's memory with it over
// vhost-user, and the guest's disk is a file here.
//
// Read in this order: session (messages), ring and logged_queue (the virtqueue), ../virtio_blk.hpp
// (requests).

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "vmspace/base/try.hpp"
#include "vmspace/host/fault_guard.hpp"

#include "session.hpp"

namespace vhost_user_blk {
namespace {

using vmspace::Errc;
using vmspace::fail;
using vmspace::Result;

Result<Descriptor> listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = "listen",
                 .reason = "the socket's path is too long",
                 .text = {{}, path}});
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const auto os_failure = [&](const char* call) {
    return fail({.code = Errc::os,
                 .operation = "listen",
                 .reason = call,
                 .os_errno = errno,
                 .text = {{}, path}});
  };
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) return os_failure("socket");
  ::unlink(path.c_str());  // of a process that was killed
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return os_failure("bind");
  }
  if (::listen(socket.get(), 1) != 0) return os_failure("listen");
  return socket;
}

Result<void> serve(const std::string& path, const std::string& image, bool is_once) {
  // A front-end may send a pipe that nobody reads as the event of a ring, or truncate the file of its
  // memory: then a write or an access is an error, not a signal.
  ::signal(SIGPIPE, SIG_IGN);
  const auto guard = VMSPACE_TRY(vmspace::FaultGuard::install());
  const Disk disk = VMSPACE_TRY(Disk::open(image.c_str()));
  const Descriptor listener = VMSPACE_TRY(listen_at(path));
  fmt::print("vhost_user_blk: {} has {} sectors; waiting at {}\n", image, disk.sectors, path);
  do {
    std::fflush(stdout);
    Descriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.get() < 0) {
      if (errno == EINTR) continue;
      return fail({.code = Errc::os, .operation = "accept4", .os_errno = errno});
    }
    fmt::print("vhost_user_blk: connected\n");
    std::fflush(stdout);
    auto session = VMSPACE_TRY(Session::create(std::move(socket), disk));
    const auto ended = session.run();
    if (!ended) fmt::print(stderr, "vhost_user_blk: {}\n", ended.error().message());
    fmt::print("vhost_user_blk: disconnected\n");
  } while (!is_once);
  return {};
}

}  // namespace
}  // namespace vhost_user_blk

int main(int argc, char** argv) {
  CLI::App app("A vhost-user block device on memory that vmspace manages.");
  std::string socket;
  std::string image;
  bool is_once = false;
  app.add_option("--socket", socket, "the Unix socket to wait at")->required();
  app.add_option("--image", image, "the disk, a file of whole sectors")->required();
  app.add_flag("--once", is_once, "end with the first front-end");
  CLI11_PARSE(app, argc, argv);
  const auto served = vhost_user_blk::serve(socket, image, is_once);
  if (!served) fmt::print(stderr, "vhost_user_blk: {}\n", served.error().message());
  return served ? 0 : 1;
}
