// SPDX-License-Identifier: Apache-2.0
//
// Programs that a test starts, and talks to line by line.

#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace vmspace::test {

using std::chrono::steady_clock;

/// Lines that arrive at a descriptor, which it closes.
class Lines {
 public:
  explicit Lines(int fd = -1) : fd_(fd) {}
  Lines(Lines&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        rest_(std::move(other.rest_)),
        all_(std::move(other.all_)) {}
  Lines& operator=(Lines&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(rest_, other.rest_);
    std::swap(all_, other.all_);
    return *this;
  }
  ~Lines() {
    if (fd_ >= 0) ::close(fd_);
  }

  [[nodiscard]] int fd() const { return fd_; }
  /// Everything so far.
  [[nodiscard]] const std::string& all() const { return all_; }

  /// The next line; nothing at the end, or when none has come in time.
  std::optional<std::string> next(std::chrono::milliseconds limit) {
    const auto end = steady_clock::now() + limit;
    for (;;) {
      const std::size_t line = rest_.find('\n');
      if (line != std::string::npos) {
        std::string found = rest_.substr(0, line);
        rest_.erase(0, line + 1);
        while (!found.empty() && found.back() == '\r')
          found.pop_back();
        return found;
      }
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(end - steady_clock::now()).count();
      pollfd ready{.fd = fd_, .events = POLLIN, .revents = 0};
      if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0) return std::nullopt;
      char buffer[4096];
      const ssize_t got = ::read(fd_, buffer, sizeof buffer);
      if (got <= 0) return std::nullopt;
      rest_.append(buffer, static_cast<std::size_t>(got));
      all_.append(buffer, static_cast<std::size_t>(got));
    }
  }

  /// The next line that has this in it.
  std::optional<std::string> find(const std::string& text, std::chrono::seconds limit) {
    const auto end = steady_clock::now() + limit;
    while (steady_clock::now() < end) {
      auto line =
          next(std::chrono::duration_cast<std::chrono::milliseconds>(end - steady_clock::now()));
      if (!line || line->find(text) != std::string::npos) return line;
    }
    return std::nullopt;
  }

 private:
  int fd_;
  std::string rest_;
  std::string all_;
};

/// A running program, killed at the end. Its two outputs are one.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int nothing = ::open("/dev/null", O_RDONLY);
      ::dup2(nothing, 0);
      ::dup2(ends[1], 1);
      ::dup2(ends[1], 2);
      std::vector<char*> words;
      for (const std::string& argument : arguments)
        words.push_back(const_cast<char*>(argument.c_str()));
      words.push_back(nullptr);
      ::execvp(words[0], words.data());
      ::_exit(127);
    }
    ::close(ends[1]);
    output = Lines(ends[0]);
  }
  Process(Process&& other) noexcept
      : output(std::move(other.output)), pid_(std::exchange(other.pid_, -1)) {}
  Process& operator=(Process&& other) noexcept {
    std::swap(output, other.output);
    std::swap(pid_, other.pid_);
    return *this;
  }
  ~Process() { kill(); }

  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }
  /// The exit status, or 128 and the signal; nothing while it runs on.
  std::optional<int> wait(std::chrono::seconds limit) {
    const auto end = steady_clock::now() + limit;
    while (pid_ > 0) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
      if (steady_clock::now() >= end) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return std::nullopt;
  }

  Lines output;

 private:
  pid_t pid_ = -1;
};

/// A connection to a Unix socket, made as soon as somebody waits there.
inline Lines connect_to(const std::string& path, std::chrono::seconds limit) {
  const auto end = steady_clock::now() + limit;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  while (steady_clock::now() < end) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return Lines(fd);
    }
    ::close(fd);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return Lines();
}

}  // namespace vmspace::test
