// Copies of strided rows (gather to and scatter from staging), and the commit: rows and words of the maps in one launch.
//
// Twins on the CPU, with the definitions: crates/comm/src/kernels/{rows,commit}.rs. Needs no header, so that NVRTC takes
// the file as it is.
//
// Work is cut into units of UNIT bytes, numbered over the whole list; a block takes a run of neighbouring units, and copies
// what of it lies in one entry as one piece. Launch: a one-dimensional grid of any size, blocks of THREADS threads, no
// dynamic shared memory. No two entries of a list may write the same byte, and none may write what another reads.

// Faults that the check plants to see that it finds them: kernels/test/faults.h. In what is shipped there are none.
#ifndef PLANTED
#define PLANTED(fault) false
#endif

namespace eplb_rows {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr u64 UNIT = 4096;
constexpr u32 THREADS = 256;
// Most units of a piece: offsets in it are 32-bit numbers.
constexpr u64 PIECE = 1 << 18;

// Loads that a thread has in flight; three blocks of them per multiprocessor are well above its share of the memory's
// bandwidth times latency (about 25 KB). Narrow words are rare, and fewer of them keep the registers of this body, in which
// all widths meet, low enough for the three blocks.
template <typename Word>
constexpr u32 IN_FLIGHT = sizeof(Word) == 16 ? 8 : 2;

// Rows of row_bytes bytes, pitched at both ends. The stream of a copy is its rows one after another, without gaps.
struct RowCopy {
  u64 source;
  u64 dest;
  u64 rows;
  u64 row_bytes;
  u64 source_pitch;
  u64 dest_pitch;
  u64 first_unit;  // units of the entries before this one
  u64 unused;
};

// A 32-bit entry of a map: a slot, a count, or the bits of a share.
struct WordWrite {
  u64 dest;
  u32 value;
  u32 unused;
};

static_assert(sizeof(RowCopy) == 64 && sizeof(WordWrite) == 16, "layouts shared with the host");

__device__ __forceinline__ u64 lowest_bit(u64 x) { return x & (~x + 1); }

// Words of one type, both ends without gaps.
template <typename Word>
__device__ __forceinline__ void copy_words(u64 source, u64 dest, u32 words) {
  constexpr u32 ROUND = THREADS * IN_FLIGHT<Word>;
  const Word* from = (const Word*)source + threadIdx.x;
  Word* to = (Word*)dest + threadIdx.x;
  u32 left = words;
#pragma unroll 1
  for (; left >= ROUND; left -= ROUND, from += ROUND, to += ROUND) {
    Word held[IN_FLIGHT<Word>];
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT<Word>; ++i) held[i] = __ldcs(from + i * THREADS);
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT<Word>; ++i) __stcs(to + i * THREADS, held[i]);
  }
  // What is left of a round, two words at a time.
#pragma unroll 1
  for (u32 at = threadIdx.x; at < left; at += 2 * THREADS, from += 2 * THREADS, to += 2 * THREADS) {
    const bool two = at + THREADS < left;
    const Word one = __ldcs(from), other = two ? __ldcs(from + THREADS) : one;
    __stcs(to, one);
    if (two) __stcs(to + THREADS, other);
  }
}

// Bytes without gaps, anywhere: single bytes up to the widest alignment that both ends share, words, single bytes.
__device__ __forceinline__ void copy_run(u64 source, u64 dest, u32 bytes) {
  const u32 width = (u32)lowest_bit((source ^ dest) | 16);
  u32 head = (u32)(0 - source) & (width - 1);
  head = head < bytes ? head : bytes;
  const u32 words = (bytes - head) / width, tail = (bytes - head) % width;
  if (head) copy_words<unsigned char>(source, dest, head);
  const u64 from = source + head, to = dest + head;
  switch (width) {
    case 16: copy_words<uint4>(from, to, words); break;
    case 8: copy_words<u64>(from, to, words); break;
    case 4: copy_words<u32>(from, to, words); break;
    case 2: copy_words<unsigned short>(from, to, words); break;
    default: copy_words<unsigned char>(from, to, words); break;
  }
  if (tail && !PLANTED(TailLeftOut)) copy_words<unsigned char>(from + words * width, to + words * width, tail);
}

// Part begin..end of the stream of a pitched copy, where every address and row is a multiple of the word.
template <typename Word>
__device__ __forceinline__ void copy_pitched(const RowCopy& copy, u64 begin, u64 end) {
  constexpr u32 PARALLEL = sizeof(Word) == 16 ? 3 : 2;
  const u64 step = THREADS * sizeof(Word);
  const u64 rows = step / copy.row_bytes, rest = step - rows * copy.row_bytes;
  u64 at = begin + threadIdx.x * sizeof(Word);
  u64 row = at / copy.row_bytes, column = at - row * copy.row_bytes;
#pragma unroll 1
  while (at < end) {
    Word held[PARALLEL];
    u64 to[PARALLEL];
#pragma unroll
    for (u32 i = 0; i < PARALLEL; ++i) {
      to[i] = 0;
      if (at < end) {
        to[i] = copy.dest + row * (PLANTED(PitchIgnored) ? copy.row_bytes : copy.dest_pitch) + column;
        held[i] = __ldcs((const Word*)(copy.source + row * copy.source_pitch + column));
      }
      at += step, row += rows, column += rest;
      if (column >= copy.row_bytes) column -= copy.row_bytes, ++row;
    }
#pragma unroll
    for (u32 i = 0; i < PARALLEL; ++i) {
      if (to[i]) __stcs((Word*)to[i], held[i]);
    }
  }
}

__device__ __forceinline__ bool gapless(const RowCopy& copy) {
  return copy.rows == 1 || (copy.source_pitch == copy.row_bytes && copy.dest_pitch == copy.row_bytes);
}

// Part begin..end of the stream of a copy.
__device__ __forceinline__ void copy_part(const RowCopy* entry, u64 begin, u64 end) {
  const RowCopy copy = *entry;
  if (gapless(copy)) {
    copy_run(copy.source + begin, copy.dest + begin, (u32)(end - begin));
    return;
  }
  switch (lowest_bit(copy.source | copy.dest | copy.row_bytes | copy.source_pitch | copy.dest_pitch | 16)) {
    case 16: copy_pitched<uint4>(copy, begin, end); break;
    case 8: copy_pitched<u64>(copy, begin, end); break;
    case 4: copy_pitched<u32>(copy, begin, end); break;
    case 2: copy_pitched<unsigned short>(copy, begin, end); break;
    default: copy_pitched<unsigned char>(copy, begin, end); break;
  }
}

// The entry that holds a unit: the last one whose first unit is not above it.
__device__ __forceinline__ u32 entry_of(const RowCopy* copies, u32 count, u64 unit) {
  u32 low = 0, high = count;
  while (high - low > 1) {
    const u32 middle = low + (high - low) / 2;
    if (copies[middle].first_unit <= unit) low = middle;
    else high = middle;
  }
  return low;
}

__device__ __forceinline__ void copy_rows(const RowCopy* copies, u32 count, u64 units) {
  u64 unit = units * blockIdx.x / gridDim.x;
  const u64 last = units * (blockIdx.x + 1ull) / gridDim.x;
  if (unit >= last) return;
  u32 entry = entry_of(copies, count, unit);
  while (unit < last) {
    const u64 first = copies[entry].first_unit, bytes = copies[entry].rows * copies[entry].row_bytes;
    const u64 next = entry + 1 < count ? copies[entry + 1].first_unit : units;
    u64 stop = next < last ? next : last;
    stop = stop - unit < PIECE ? stop : unit + PIECE;
    const u64 end = (stop - first) * UNIT;
    copy_part(&copies[entry], (unit - first) * UNIT, end < bytes ? end : bytes);
    entry += stop == next;
    unit = stop;
  }
}

}  // namespace eplb_rows

extern "C" __global__ void __launch_bounds__(256, 3)
    eplb_copy_rows(const eplb_rows::RowCopy* copies, unsigned int count, unsigned long long units) {
  eplb_rows::copy_rows(copies, count, units);
}

extern "C" __global__ void __launch_bounds__(256, 3)
    eplb_commit(const eplb_rows::RowCopy* copies, unsigned int count, unsigned long long units,
                const eplb_rows::WordWrite* words, unsigned int word_count) {
  for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < word_count; i += gridDim.x * blockDim.x) {
    if (!PLANTED(WordsLeftOut)) *(unsigned int*)words[i].dest = words[i].value;
  }
  eplb_rows::copy_rows(copies, count, units);
}
