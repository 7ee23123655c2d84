// See guard.h. Gloo's classes are extended where they are virtual; its locks and threads stay as they are:
// - a pair's fields are changed under its lock `m_`. The device's thread only ever tries that lock: who holds it may be waiting for a turn
//   of that thread;
// - a descriptor that is unregistered by another thread is no longer handled when the call returns.
#include "guard.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>

#pragma GCC visibility push(default)
#include <gloo/transport/tcp/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/tcp/pair.h>
#pragma GCC visibility pop

namespace guard {
namespace {

namespace tcp = gloo::transport::tcp;

// What the side that connects says first.
using Greeting = std::array<uint8_t, 32>;

Greeting greeting(const Secret &secret, int from, int to) {
  Greeting words{};
  std::memcpy(words.data(), "eplbgrt1", 8);
  std::memcpy(words.data() + 8, secret.data(), secret.size());
  const std::array<uint32_t, 2> ranks{static_cast<uint32_t>(from), static_cast<uint32_t>(to)};
  std::memcpy(words.data() + 24, ranks.data(), sizeof(ranks));
  return words;
}

// In a time that does not tell how much of it is right.
bool equal(const Greeting &a, const Greeting &b) {
  uint8_t differs = 0;
  for (size_t i = 0; i < a.size(); i++) {
    differs |= a[i] ^ b[i];
  }
  return differs == 0;
}

// Keeps the device's thread from handling anything: pairs are handled by name of their class, which they have when they are whole.
class Pause final : public tcp::Handler {
 public:
  explicit Pause(tcp::Device &device) : device_(device), fd_(::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_ == -1) {
      throw std::system_error(errno, std::generic_category(), "eventfd");
    }
    try {
      device_.registerDescriptor(fd_, EPOLLIN, this);
    } catch (...) {
      ::close(fd_);
      throw;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return held_; });
  }

  ~Pause() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      released_ = true;
      changed_.notify_all();
    }
    try {
      device_.unregisterDescriptor(fd_, this);
    } catch (...) {
      // Registered above and nowhere unregistered: epoll cannot refuse it.
    }
    ::close(fd_);
  }

  Pause(const Pause &) = delete;
  Pause &operator=(const Pause &) = delete;

  void handleEvents(int) override {
    std::unique_lock<std::mutex> lock(mutex_);
    held_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return released_; });
  }

 private:
  tcp::Device &device_;
  const int fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool released_ = false;
};

class Pair final : public tcp::Pair {
 public:
  // Within a `Pause`, and so that nothing throws once the base is made: its destructor would wait for a turn of the thread.
  Pair(tcp::Context *context, tcp::Device *device, int peer, std::chrono::milliseconds timeout, const Secret &secret) noexcept(false)
      : tcp::Pair(context, device, peer, timeout),
        says_(greeting(secret, context->rank, peer)),
        expects_(greeting(secret, peer, context->rank)) {
    for (auto &guest : guests_) {
      guest.pair = this;
    }
    std::lock_guard<std::mutex> lock(m_);
    const int flags = ::fcntl(fd_, F_GETFL);
    ready_ = flags != -1 && ::fcntl(fd_, F_SETFL, flags | O_NONBLOCK) != -1 && ::listen(fd_, kBacklog) != -1;
  }

  ~Pair() override {
    // The base would go on being handled as such. It does the same under the same lock.
    {
      std::lock_guard<std::mutex> lock(m_);
      if (state_ != CLOSED) {
        tcp::Pair::changeState(CLOSED);
      }
    }
    {
      std::lock_guard<std::mutex> lock(gate_);
      closing_ = true;
    }
    for (auto &guest : guests_) {
      release(guest);
    }
  }

  void handleEvents(int events) override {
    {
      std::unique_lock<std::mutex> lock(m_, std::try_to_lock);
      if (!lock) {
        return;
      }
      if (state_ == LISTENING) {
        welcome();
        return;
      }
    }
    try {
      tcp::Pair::handleEvents(events);
    } catch (const std::exception &failure) {
      fail(failure.what());
    } catch (...) {
      fail("an exception of no known type");
    }
  }

 protected:
  // With the lock held.
  void handleReadWrite(int events) override {
    try {
      tcp::Pair::handleReadWrite(events);
    } catch (const std::exception &failure) {
      fail_locked(failure.what());
    } catch (...) {
      fail_locked("an exception of no known type");
    }
  }

  // With the lock held. A connection of ours that has just come up greets before anything else can be sent through it.
  void changeState(state next) noexcept override {
    if (next == CONNECTED && state_ == CONNECTING) {
      // A new connection has room for so little; if not, it is of no use, and reading it says so.
      if (::send(fd_, says_.data(), says_.size(), MSG_NOSIGNAL | MSG_DONTWAIT) != static_cast<ssize_t>(says_.size())) {
        ::shutdown(fd_, SHUT_RDWR);
      }
    }
    tcp::Pair::changeState(next);
  }

 private:
  // Connections that have not greeted; beyond, the oldest makes room.
  static constexpr size_t kGuests = 32;
  static constexpr int kBacklog = 64;

  // A connection that has not greeted. Reused and never freed before the pair: the thread may hold an event for it.
  struct Guest final : tcp::Handler {
    Pair *pair = nullptr;
    int fd = -1;
    uint64_t number = 0;
    size_t heard = 0;
    Greeting words{};

    void handleEvents(int) override { pair->hear(*this); }
  };

  // Takes in who has connected. The lock is held.
  void welcome() {
    std::lock_guard<std::mutex> gate(gate_);
    for (size_t taken = 0; ready_ && !closing_ && taken < kGuests; taken++) {
      const int fd = ::accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd == -1) {
        return;
      }
      Guest *place = &guests_[0];
      for (auto &guest : guests_) {
        if (guest.fd == -1 || (place->fd != -1 && guest.number < place->number)) {
          place = &guest;
        }
      }
      release(*place);
      place->fd = fd;
      place->number = ++arrivals_;
      place->heard = 0;
      try {
        device_->registerDescriptor(fd, EPOLLIN, place);
      } catch (const std::exception &) {
        ::close(fd);
        place->fd = -1;
      }
    }
  }

  // A guest has said something.
  void hear(Guest &guest) {
    std::lock_guard<std::mutex> gate(gate_);
    if (closing_ || guest.fd == -1) {
      return;
    }
    // The last byte is only looked at, so that there is another event if the pair is locked now.
    while (guest.heard + 1 < guest.words.size()) {
      const auto got = ::recv(guest.fd, guest.words.data() + guest.heard, guest.words.size() - 1 - guest.heard, 0);
      if (got == -1 && errno == EINTR) {
        continue;
      }
      if (got == -1 && errno == EAGAIN) {
        return;
      }
      if (got <= 0) {
        release(guest);
        return;
      }
      guest.heard += static_cast<size_t>(got);
    }
    const auto last = ::recv(guest.fd, &guest.words.back(), 1, MSG_PEEK);
    if (last == -1 && (errno == EAGAIN || errno == EINTR)) {
      return;
    }
    if (last != 1 || !equal(guest.words, expects_)) {
      release(guest);
      return;
    }
    std::unique_lock<std::mutex> lock(m_, std::try_to_lock);
    if (lock) {
      adopt(guest);
    }
  }

  // The peer has come: its connection is that of the pair, which listens no longer. Both locks are held.
  void adopt(Guest &guest) {
    uint8_t last;
    if (state_ != LISTENING || ::recv(guest.fd, &last, 1, 0) != 1) {
      release(guest);
      return;
    }
    try {
      device_->unregisterDescriptor(guest.fd, &guest);
      const int fd = guest.fd;
      guest.fd = -1;
      device_->unregisterDescriptor(fd_, this);
      ::close(fd_);
      fd_ = fd;
      handleConnected();
    } catch (const std::exception &failure) {
      fail_locked(failure.what());
    }
    for (auto &other : guests_) {
      release(other);
    }
  }

  // Turns a guest away. By the device's thread, or when that handles guests no longer.
  void release(Guest &guest) noexcept {
    if (guest.fd == -1) {
      return;
    }
    try {
      device_->unregisterDescriptor(guest.fd, &guest);
    } catch (...) {
      // A descriptor that is not registered needs nothing.
    }
    ::close(guest.fd);
    guest.fd = -1;
  }

  void fail(const char *why) {
    std::unique_lock<std::mutex> lock(m_, std::try_to_lock);
    if (lock) {
      fail_locked(why);
    }
  }

  void fail_locked(const char *why) {
    if (ex_ == nullptr && state_ != CLOSED) {
      signalException("connection with " + peer_.str() + " broke Gloo's protocol: " + why);
    }
  }

  const Greeting says_;
  const Greeting expects_;
  // Guards what follows. Taken after the pair's lock, or before a try for it.
  std::mutex gate_;
  std::array<Guest, kGuests> guests_;
  uint64_t arrivals_ = 0;
  bool ready_ = false;
  bool closing_ = false;
};

class Context final : public tcp::Context {
 public:
  Context(std::shared_ptr<tcp::Device> device, const Secret &secret, int rank, int size)
      : tcp::Context(std::move(device), rank, size), secret_(secret) {
    pause_.emplace(*device_);
  }

  std::unique_ptr<gloo::transport::Pair> &createPair(int peer) override {
    auto &place = pairs_[peer];
    place = std::make_unique<Pair>(this, device_.get(), peer, getTimeout(), secret_);
    if (++made_ == size - 1) {
      pause_.reset();
    }
    return place;
  }

 private:
  const Secret secret_;
  int made_ = 0;
  // From the first pair to the last. Ends before the pairs do: it is of this class, and they of the base.
  std::optional<Pause> pause_;
};

class Device final : public tcp::Device {
 public:
  Device(const tcp::attr &where, const Secret &secret) : tcp::Device(where), secret_(secret) {}

  std::shared_ptr<gloo::transport::Context> createContext(int rank, int size) override {
    return std::make_shared<Context>(shared_from_this(), secret_, rank, size);
  }

 private:
  const Secret secret_;
};

}  // namespace

std::shared_ptr<gloo::transport::Device> make_device(const tcp::attr &where, const Secret &secret) {
  return std::make_shared<Device>(tcp::CreateDeviceAttr(where), secret);
}

}  // namespace guard
