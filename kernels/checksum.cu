// A 64-bit checksum of each of a list of experts, over the bytes of all their tensors.
//
// Twin on the CPU, with the definition: crates/comm/src/kernels/checksum.rs. Needs no header, so that NVRTC takes the
// file as it is. The sum over words does not depend on their order, so blocks add their parts as they finish.
//
// Work is cut into units of UNIT bytes, numbered over the whole list; a block takes a run of neighbouring units, and sums
// what of it lies in one entry as one piece. Launch: a one-dimensional grid of any size, blocks of THREADS threads, no
// dynamic shared memory; sums set to 0 before.

// Faults that the check plants to see that it finds them: kernels/test/faults.h. In what is shipped there are none.
#ifndef PLANTED
#define PLANTED(fault) false
#endif

namespace eplb_checksum {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr u64 UNIT = 8192;
constexpr u32 THREADS = 256;
constexpr u32 IN_FLIGHT = 8;
// Most units of a piece: offsets in it are 32-bit numbers.
constexpr u64 PIECE = 1 << 17;
constexpr u64 GOLDEN = 0x9e3779b97f4a7c15ull;

// One tensor of one expert. Its stream is its rows one after another, without gaps.
struct Part {
  u64 base;
  u64 rows;
  u64 row_bytes;
  u64 pitch;
  u64 first_unit;  // units of the entries before this one
  u32 tensor;      // number of the tensor in its layer
  u32 sum;         // entry of sums that it goes to
};

static_assert(sizeof(Part) == 48, "layout shared with the host");

// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
__device__ __forceinline__ u64 mix(u64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// What a word adds. A bijection of the word, so that a single wrong word never goes unseen; about half the
// multiplications of a full finaliser, since the sum needs no more.
__device__ __forceinline__ u64 weigh(u64 word, u64 key) {
  u64 x = (word ^ key) * 0xbf58476d1ce4e5b9ull;
  x ^= x >> 32;
  x *= 0x94d049bb133111ebull;
  // Half a finaliser's last step: without it, high bits of the sum come from high bits of the words alone.
  return x ^ (x >> 32);
}

__device__ __forceinline__ u64 key_at(u64 key, u64 word) {
  return key + (PLANTED(PositionLeftOut) ? 0 : word * GOLDEN);
}

// Bytes of the stream from at on, at most 8, as a little-endian word; what is behind end is 0.
__device__ __forceinline__ u64 gather(const Part& part, u64 at, u64 end, u64 row, u64 column) {
  u64 word = 0;
  const u32 bytes = end - at < 8 ? (u32)(end - at) : 8;
  for (u32 i = 0; i < bytes; ++i) {
    word |= (u64) * (const unsigned char*)(part.base + row * part.pitch + column) << (8 * i);
    if (++column == part.row_bytes) column = 0, ++row;
  }
  return word;
}

// A stream without gaps at an address that is a multiple of 16: whole words in pairs, then the rest.
__device__ __forceinline__ u64 sum_run(const Part& part, u64 key, u64 begin, u64 end) {
  constexpr u32 ROUND = THREADS * IN_FLIGHT;
  const u32 pairs = (u32)((end - begin) / 16);
  const ulonglong2* from = (const ulonglong2*)(part.base + begin) + threadIdx.x;
  u64 place = begin / 8 + 2 * threadIdx.x, sum = 0;
  u32 left = pairs;
#pragma unroll 1
  for (; left >= ROUND; left -= ROUND, from += ROUND, place += 2 * ROUND) {
    ulonglong2 held[IN_FLIGHT];
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT; ++i) held[i] = __ldcs(from + i * THREADS);
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT; ++i) {
      const u64 at = place + 2 * i * THREADS;
      sum += weigh(held[i].x, key_at(key, at)) + weigh(held[i].y, key_at(key, at + 1));
    }
  }
#pragma unroll 1
  for (u32 at = threadIdx.x; at < left; at += THREADS, from += THREADS, place += 2 * THREADS) {
    const ulonglong2 held = __ldcs(from);
    sum += weigh(held.x, key_at(key, place)) + weigh(held.y, key_at(key, place + 1));
  }
  const u64 at = begin + pairs * 16ull + threadIdx.x * 8ull;
  if (at < end && !PLANTED(LastWordLeftOut)) sum += weigh(gather(part, at, end, 0, at), key_at(key, at / 8));
  return sum;
}

// Any stream: a load of 8 bytes where a word lies in one row at a multiple of 8, single bytes elsewhere.
__device__ __forceinline__ u64 sum_pitched(const Part& part, u64 key, u64 begin, u64 end) {
  const u64 step = THREADS * 8;
  const u64 rows = step / part.row_bytes, rest = step - rows * part.row_bytes;
  u64 at = begin + threadIdx.x * 8ull;
  u64 row = at / part.row_bytes, column = at - row * part.row_bytes;
  u64 sum = 0;
#pragma unroll 4
  for (; at < end; at += step) {
    const u64 address = part.base + row * part.pitch + column;
    const bool whole = column + 8 <= part.row_bytes && (address & 7) == 0;
    const u64 word = whole ? __ldcs((const u64*)address) : gather(part, at, end, row, column);
    sum += weigh(word, key_at(key, at / 8));
    row += rows, column += rest;
    if (column >= part.row_bytes) column -= part.row_bytes, ++row;
  }
  return sum;
}

// Part begin..end of the stream of a tensor.
__device__ __forceinline__ u64 sum_part(const Part* entry, u64 begin, u64 end) {
  Part part = *entry;
  const u64 key = mix(GOLDEN * (part.tensor + 1ull));
  const u64 bytes = part.rows * part.row_bytes;
  end = end < bytes ? end : bytes;
  const u64 size = begin == 0 && threadIdx.x == 0 ? mix(key ^ bytes) : 0;
  if (part.rows == 1 || part.pitch == part.row_bytes) {
    part.rows = 1, part.row_bytes = bytes, part.pitch = bytes;
    if ((part.base & 15) == 0) return size + sum_run(part, key, begin, end);
  }
  return size + sum_pitched(part, key, begin, end);
}

// Adds what all threads of the block have to one entry of sums.
__device__ __forceinline__ void add_up(u64 sum, u64* total) {
  static __shared__ u64 warps[THREADS / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  if (!PLANTED(SumsNotAwaited)) __syncthreads();
  if (threadIdx.x == 0) {
    for (u32 warp = 1; warp < THREADS / 32; ++warp) sum += warps[warp];
    atomicAdd(total, sum);
  }
  __syncthreads();
}

// The entry that holds a unit: the last one whose first unit is not above it.
__device__ __forceinline__ u32 entry_of(const Part* parts, u32 count, u64 unit) {
  u32 low = 0, high = count;
  while (high - low > 1) {
    const u32 middle = low + (high - low) / 2;
    if (parts[middle].first_unit <= unit) low = middle;
    else high = middle;
  }
  return low;
}

}  // namespace eplb_checksum

extern "C" __global__ void __launch_bounds__(256, 2)
    eplb_checksum_parts(const eplb_checksum::Part* parts, unsigned int count, unsigned long long units,
                        unsigned long long* sums) {
  using namespace eplb_checksum;
  u64 unit = units * blockIdx.x / gridDim.x;
  const u64 last = units * (blockIdx.x + 1ull) / gridDim.x;
  if (unit >= last) return;
  u32 entry = entry_of(parts, count, unit);
  u32 into = parts[entry].sum;
  u64 sum = 0;
  while (unit < last) {
    const u64 first = parts[entry].first_unit;
    const u64 next = entry + 1 < count ? parts[entry + 1].first_unit : units;
    u64 stop = next < last ? next : last;
    stop = stop - unit < PIECE ? stop : unit + PIECE;
    if (parts[entry].sum != into) {
      add_up(sum, &sums[into]);
      sum = 0, into = parts[entry].sum;
    }
    sum += sum_part(&parts[entry], (unit - first) * UNIT, (stop - first) * UNIT);
    entry += stop == next;
    unit = stop;
  }
  add_up(sum, &sums[into]);
}
