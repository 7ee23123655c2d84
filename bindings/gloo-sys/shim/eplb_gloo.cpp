// The C interface of eplb_gloo.h on Gloo. Every function that can throw runs inside `guarded`.
#include "eplb_gloo.h"

#ifndef EPLB_GLOO_UNGUARDED
#include "guard.h"
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

// Gloo's types are shared with its library: exceptions are recognised on both sides.
#pragma GCC visibility push(default)
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/common/error.h>
#include <gloo/config.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>
#pragma GCC visibility pop

struct eplb_gloo_context {
  std::shared_ptr<gloo::rendezvous::Context> mesh;
};

struct eplb_gloo_buffer {
  // Keeps the context's connections until the buffer is gone.
  std::shared_ptr<gloo::rendezvous::Context> mesh;
  std::unique_ptr<gloo::transport::UnboundBuffer> inner;
};

namespace {

// A callback of the caller's store failed; the caller knows why.
struct StoreFailed : std::runtime_error {
  explicit StoreFailed(const std::string &key) : std::runtime_error("the store failed at key " + key) {}
};

// Longer waits than this mean for ever. Gloo adds timeouts to its clock: the largest number would overflow.
constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24 * 365);

std::chrono::milliseconds duration(int64_t ms) {
  if (ms < 0 || ms > kLongest.count()) {
    return kLongest;
  }
  return std::chrono::milliseconds(ms);
}

void say(eplb_gloo_error *error, const char *text) noexcept {
  if (error != nullptr) {
    std::snprintf(error->text, sizeof(error->text), "%s", text);
  }
}

// Runs `work`; turns whatever it throws into a status and a text.
template <typename Work>
eplb_gloo_status guarded(eplb_gloo_error *error, Work work) noexcept {
  try {
    return work();
  } catch (const StoreFailed &failure) {
    say(error, failure.what());
    return EPLB_GLOO_STORE;
  } catch (const ::gloo::IoException &failure) {
    say(error, failure.what());
    return EPLB_GLOO_IO;
  } catch (const ::gloo::InvalidOperationException &failure) {
    say(error, failure.what());
    return EPLB_GLOO_INVALID;
  } catch (const std::invalid_argument &failure) {
    say(error, failure.what());
    return EPLB_GLOO_INVALID;
  } catch (const std::bad_alloc &) {
    say(error, "out of memory");
    return EPLB_GLOO_RESOURCE;
  } catch (const std::system_error &failure) {
    say(error, failure.what());
    return EPLB_GLOO_RESOURCE;
  } catch (const std::exception &failure) {
    say(error, failure.what());
    return EPLB_GLOO_INTERNAL;
  } catch (...) {
    say(error, "an exception of no known type");
    return EPLB_GLOO_INTERNAL;
  }
}

// Gloo's view of the caller's store.
class CallerStore : public gloo::rendezvous::Store {
 public:
  explicit CallerStore(const eplb_gloo_store &store) : store_(store) {}

  void set(const std::string &key, const std::vector<char> &data) override {
    const auto *value = reinterpret_cast<const uint8_t *>(data.data());
    if (store_.set(store_.state, key.data(), key.size(), value, data.size()) != 0) {
      throw StoreFailed(key);
    }
  }

  std::vector<char> get(const std::string &key) override {
    std::vector<char> value;
    if (store_.get(store_.state, key.data(), key.size(), &value, &CallerStore::take) != 0) {
      throw StoreFailed(key);
    }
    return value;
  }

  void wait(const std::vector<std::string> &keys) override {
    for (const auto &key : keys) {
      get(key);
    }
  }

  void wait(const std::vector<std::string> &keys, const std::chrono::milliseconds &) override {
    // The caller's callbacks keep its deadline.
    wait(keys);
  }

 private:
  // Called by the caller's code, through which no exception may pass: without memory the value stays empty, which
  // Gloo refuses as an address.
  static void take(void *sink, const uint8_t *value, size_t bytes) noexcept {
    try {
      const auto *data = reinterpret_cast<const char *>(value);
      static_cast<std::vector<char> *>(sink)->assign(data, data + bytes);
    } catch (...) {
      static_cast<std::vector<char> *>(sink)->clear();
    }
  }

  eplb_gloo_store store_;
};

void require(bool holds, const char *what) {
  if (!holds) {
    throw std::invalid_argument(what);
  }
}

void require_peer(const eplb_gloo_buffer &buffer, int32_t peer) {
  require(peer >= 0 && peer < buffer.mesh->size, "no such rank");
  require(peer != buffer.mesh->rank, "a rank has no connection to itself");
}

std::shared_ptr<gloo::transport::Device> make_device(const gloo::transport::tcp::attr &where, const uint8_t *secret) {
#ifndef EPLB_GLOO_UNGUARDED
  if (secret != nullptr) {
    guard::Secret copy;
    static_assert(sizeof(copy) == EPLB_GLOO_SECRET_BYTES, "eplb_gloo.h says how long a secret is");
    std::copy_n(secret, copy.size(), copy.begin());
    return guard::make_device(where, copy);
  }
#endif
  static_cast<void>(secret);
  return gloo::transport::tcp::CreateDevice(where);
}

eplb_gloo_status finished(bool completed) { return completed ? EPLB_GLOO_OK : EPLB_GLOO_CANCELLED; }

}  // namespace

extern "C" {

uint32_t eplb_gloo_abi(void) { return EPLB_GLOO_ABI; }

uint32_t eplb_gloo_version(void) { return GLOO_VERSION; }

int32_t eplb_gloo_guards(void) {
#ifndef EPLB_GLOO_UNGUARDED
  return 1;
#else
  return 0;
#endif
}

eplb_gloo_status eplb_gloo_connect(const eplb_gloo_options *options, eplb_gloo_context **context,
                                   eplb_gloo_error *error) {
  return guarded(error, [&] {
    require(options != nullptr && context != nullptr, "options and context are needed");
    require(options->size == sizeof(eplb_gloo_options), "options of another version of eplb_gloo.h");
    require((options->address == nullptr) != (options->interface_name == nullptr),
            "one of address and interface is needed");
    require(options->world_size > 1, "a group has at least two ranks");
    require(options->rank >= 0 && options->rank < options->world_size, "no such rank");
    require(options->store.set != nullptr && options->store.get != nullptr, "the store needs its callbacks");

    gloo::transport::tcp::attr where;
    if (options->address != nullptr) {
      where.hostname = options->address;
    } else {
      where.iface = options->interface_name;
    }
    std::shared_ptr<gloo::transport::Device> device = make_device(where, options->secret);
    auto mesh = std::make_shared<gloo::rendezvous::Context>(options->rank, options->world_size);
    // Gloo waits five times this for a connection.
    mesh->setTimeout(std::max(duration(options->connect_ms) / 5, std::chrono::milliseconds(1)));
    CallerStore store(options->store);
    mesh->connectFullMesh(store, device);
    *context = new eplb_gloo_context{std::move(mesh)};
    return EPLB_GLOO_OK;
  });
}

void eplb_gloo_close(eplb_gloo_context *context) {
  guarded(nullptr, [&] {
    context->mesh->closeConnections();
    return EPLB_GLOO_OK;
  });
}

void eplb_gloo_free(eplb_gloo_context *context) {
  guarded(nullptr, [&] {
    delete context;
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_buffer_new(eplb_gloo_context *context, void *base, size_t bytes,
                                      eplb_gloo_buffer **buffer, eplb_gloo_error *error) {
  return guarded(error, [&] {
    require(context != nullptr && base != nullptr && buffer != nullptr, "context, memory and buffer are needed");
    require(bytes > 0, "a buffer has at least one byte");
    auto made = std::make_unique<eplb_gloo_buffer>();
    made->mesh = context->mesh;
    made->inner = context->mesh->createUnboundBuffer(base, bytes);
    *buffer = made.release();
    return EPLB_GLOO_OK;
  });
}

void eplb_gloo_buffer_free(eplb_gloo_buffer *buffer) {
  guarded(nullptr, [&] {
    delete buffer;
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_send(eplb_gloo_buffer *buffer, int32_t to, uint64_t slot, eplb_gloo_error *error) {
  return guarded(error, [&] {
    require_peer(*buffer, to);
    buffer->inner->send(to, slot, 0, buffer->inner->size);
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_recv(eplb_gloo_buffer *buffer, int32_t from, uint64_t slot, eplb_gloo_error *error) {
  return guarded(error, [&] {
    require_peer(*buffer, from);
    buffer->inner->recv(from, slot, 0, buffer->inner->size);
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_wait_send(eplb_gloo_buffer *buffer, int64_t timeout_ms, eplb_gloo_error *error) {
  return guarded(error, [&] { return finished(buffer->inner->waitSend(nullptr, duration(timeout_ms))); });
}

eplb_gloo_status eplb_gloo_wait_recv(eplb_gloo_buffer *buffer, int64_t timeout_ms, eplb_gloo_error *error) {
  return guarded(error, [&] { return finished(buffer->inner->waitRecv(nullptr, duration(timeout_ms))); });
}

void eplb_gloo_cancel_send(eplb_gloo_buffer *buffer) {
  guarded(nullptr, [&] {
    buffer->inner->abortWaitSend();
    return EPLB_GLOO_OK;
  });
}

void eplb_gloo_cancel_recv(eplb_gloo_buffer *buffer) {
  guarded(nullptr, [&] {
    buffer->inner->abortWaitRecv();
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_barrier(eplb_gloo_context *context, uint32_t tag, int64_t timeout_ms,
                                   eplb_gloo_error *error) {
  return guarded(error, [&] {
    gloo::BarrierOptions options(context->mesh);
    options.setTag(tag);
    options.setTimeout(duration(timeout_ms));
    gloo::barrier(options);
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_broadcast(eplb_gloo_context *context, void *base, size_t bytes, int32_t root,
                                     uint32_t tag, int64_t timeout_ms, eplb_gloo_error *error) {
  return guarded(error, [&] {
    require(base != nullptr && bytes > 0, "a broadcast has at least one byte");
    require(root >= 0 && root < context->mesh->size, "no such rank");
    gloo::BroadcastOptions options(context->mesh);
    options.setOutput(static_cast<uint8_t *>(base), bytes);
    options.setRoot(root);
    options.setTag(tag);
    options.setTimeout(duration(timeout_ms));
    gloo::broadcast(options);
    return EPLB_GLOO_OK;
  });
}

eplb_gloo_status eplb_gloo_all_reduce_sum(eplb_gloo_context *context, uint64_t *base, size_t count, uint32_t tag,
                                          int64_t timeout_ms, eplb_gloo_error *error) {
  return guarded(error, [&] {
    require(base != nullptr && count > 0, "an all-reduce has at least one number");
    gloo::AllreduceOptions options(context->mesh);
    options.setOutput(base, count);
    options.setReduceFunction([](void *sums, const void *left, const void *right, size_t numbers) {
      const auto *a = static_cast<const uint64_t *>(left);
      const auto *b = static_cast<const uint64_t *>(right);
      auto *out = static_cast<uint64_t *>(sums);
      for (size_t i = 0; i < numbers; i++) {
        out[i] = a[i] + b[i];
      }
    });
    options.setTag(tag);
    options.setTimeout(duration(timeout_ms));
    gloo::allreduce(options);
    return EPLB_GLOO_OK;
  });
}

}  // extern "C"
