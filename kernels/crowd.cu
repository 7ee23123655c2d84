// A kernel that takes every multiprocessor of a device at once, for tests of what runs beside one.
//
// Launched cooperatively, with as many blocks as fit: none of them begins before all can. In each round all blocks keep busy for a while, and
// then wait for each other. Needs no header, so that NVRTC takes the file as it is.
//
// Launch: a one-dimensional grid, the same each time, cooperative, blocks of 1024 threads, no dynamic shared memory; `arrived` is 0 before the
// first launch and left alone by everyone else: it counts blocks over all launches and rounds.

namespace eplb_crowd {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr u32 THREADS = 1024;

}  // namespace eplb_crowd

extern "C" __global__ void __launch_bounds__(eplb_crowd::THREADS)
    eplb_crowd_rounds(eplb_crowd::u64 *arrived, eplb_crowd::u32 rounds, eplb_crowd::u32 clocks) {
  using namespace eplb_crowd;
  for (u32 round = 0; round < rounds; ++round) {
    long long begin = clock64();
    while (clock64() - begin < (long long)clocks) {
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      u64 before = atomicAdd(arrived, 1ull);
      u64 all = (before / gridDim.x + 1) * gridDim.x;
      while (atomicAdd(arrived, 0ull) < all) {
      }
    }
    __syncthreads();
  }
}
