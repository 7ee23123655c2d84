// Runs kernels on the CPU with no GPU and no CUDA: the kernels' own source, compiled as C++.
//
// Every thread of a block is a fiber; blocks run one after another. Between two barriers the fibers run to the end in an
// order drawn from a seed, so that a missing barrier gives wrong results with near certainty. What this cannot show: races
// between blocks, memory ordering, alignment faults of the device (checked here by hand in the loads that need it), speed.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Shared memory is that of the one block that runs. 'extern __shared__ T name[]' is defined by the program.
#define __shared__ __thread

struct Dim3 { unsigned x; };
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };

namespace emulate {

constexpr size_t STACK = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  enum { Ready, AtBarrier, AtWarp, Done } state;
  unsigned long long offered;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline unsigned current;
inline void (*body)(void*);
inline void* argument;
inline uint64_t seed = 1;

inline unsigned draw(unsigned end) {
  seed += 0x9e3779b97f4a7c15ull;
  uint64_t z = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<unsigned>((z ^ (z >> 27)) % end);
}

inline void stop(decltype(Fiber::state) state) {
  const unsigned self = current;
  fibers[self].state = state;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void enter() {
  body(argument);
  fibers[current].state = Fiber::Done;
}

// One block: run what is ready, in a drawn order; when nothing is, open the barriers that are full.
inline void run_block(unsigned threads) {
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
    fiber.state = Fiber::Ready;
  }
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) order[t] = t;
  for (;;) {
    for (unsigned t = threads; t > 1; --t) std::swap(order[t - 1], order[draw(t)]);
    bool any = false;
    for (unsigned t : order) {
      if (fibers[t].state != Fiber::Ready) continue;
      any = true, current = t, threadIdx.x = t;
      swapcontext(&scheduler, &fibers[t].context);
    }
    if (any) continue;
    bool warp = false, barrier = false;
    for (unsigned t = 0; t < threads; ++t) warp |= fibers[t].state == Fiber::AtWarp;
    for (unsigned t = 0; t < threads; ++t) barrier |= fibers[t].state == Fiber::AtBarrier;
    if (warp && barrier) {
      // A full mask names every lane: a warp that waits while another part of it waits elsewhere hangs on a device.
      for (unsigned t = 0; t < threads; ++t) {
        const unsigned first = t / 32 * 32;
        if (fibers[t].state == Fiber::AtWarp && fibers[first].state != Fiber::AtWarp) {
          std::fprintf(stderr, "emulate: warp of thread %u diverged at a shuffle\n", t);
          std::exit(3);
        }
      }
    }
    if (!warp && !barrier) return;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].state == (warp ? Fiber::AtWarp : Fiber::AtBarrier)) fibers[t].state = Fiber::Ready;
    }
  }
}

}  // namespace emulate

inline void __syncthreads() { emulate::stop(emulate::Fiber::AtBarrier); }

inline unsigned long long __shfl_down_sync(unsigned, unsigned long long value, int lanes) {
  const unsigned self = emulate::current, lane = self % 32;
  emulate::fibers[self].offered = value;
  emulate::stop(emulate::Fiber::AtWarp);
  const unsigned long long taken = lane + lanes < 32 ? emulate::fibers[self + lanes].offered : value;
  emulate::stop(emulate::Fiber::AtWarp);
  return taken;
}

template <typename T>
inline T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}

// A load or store of a device must lie at a multiple of its size.
template <typename T>
inline const T* aligned(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T)) {
    std::fprintf(stderr, "emulate: misaligned access of %zu bytes\n", sizeof(T));
    std::exit(3);
  }
  return at;
}

template <typename T>
inline T __ldcs(const T* at) { return *aligned(at); }

template <typename T>
inline void __stcs(T* at, T value) { *const_cast<T*>(aligned(at)) = value; }

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), unsigned grid, unsigned block, unsigned, Args... args) {
  std::tuple<void (*)(Params...), std::tuple<Params...>> call{kernel, std::tuple<Params...>{static_cast<Params>(args)...}};
  emulate::argument = &call;
  emulate::body = [](void* call) {
    auto& [kernel, params] = *static_cast<std::tuple<void (*)(Params...), std::tuple<Params...>>*>(call);
    std::apply(kernel, params);
  };
  gridDim.x = grid, blockDim.x = block;
  for (unsigned b = 0; b < grid; ++b) {
    blockIdx.x = b;
    emulate::run_block(block);
  }
  emulate::argument = nullptr;
}
