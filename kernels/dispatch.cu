// Load recording and dispatch: what the router chose -> counts per logical expert and physical slots.
//
// Twins on the CPU, with the definitions: crates/comm/src/kernels/{record,dispatch}.rs. Needs no header, so that NVRTC
// takes the file as it is. All that changes from step to step (rows that count, mask, tag, salt, maps) is read from
// device memory: a captured graph replays with today's values.
//
// Launch: a one-dimensional grid of any size, blocks of up to 1024 threads (large blocks for large batches: every block adds
// each expert that it met to global memory once), dynamic shared memory of
// 4 * experts bytes if experts <= SHARED_EXPERTS and none otherwise. tokens * k < 2^31.

// Faults that the check plants to see that it finds them: kernels/test/faults.h. In what is shipped there are none.
#ifndef PLANTED
#define PLANTED(fault) false
#endif

namespace eplb_dispatch {

typedef unsigned long long u64;
typedef long long i64;
typedef unsigned int u32;

// Above this the counts go straight to global memory: a block's shared memory without opting in is 48 KiB.
constexpr u32 SHARED_EXPERTS = 8192;
// Neighbouring choices that one thread takes at once: one or two loads of 16 bytes.
constexpr u32 GROUP = 4;

// The router's choices.
struct Choices {
  const void* ids;            // [tokens, k] int32 or int64; -1 = none
  u64 row_stride;             // elements from one token to the next
  const int* valid;           // tokens that count, from the first on; null = all
  const unsigned char* mask;  // [tokens], 0 = padding; null = none
  u32 tokens;
  u32 k;
};

// Where they are counted.
struct Counts {
  u64* loads;          // [experts] of this layer under tag 0; null = count nothing. Only ever grows
  u64 tag_stride;      // elements from one tag's row of this layer to the next tag's
  const int* tag;      // null = 0; outside 0..tags: count nothing (warm-up, dummy steps)
  u64* faults;         // [2]: ids out of range, tokens for an expert with no slot; null = not wanted
  const int* phy2log;  // [slots]: ids are slots and are counted under the expert in force; null: ids are experts
  u32 tags;
  u32 experts;
  u32 slots;
  u32 unused;
};

// How they become slots.
struct Maps {
  const int* log2phy;  // [experts, columns], -1 padded
  const int* logcnt;   // [experts]
  const float* share;  // [slots]
  const u64* salt;     // mixed into the choice among replicas; null = 0
  void* out;           // [tokens, k], type of ids; may be ids itself at equal strides
  u64 out_stride;
  u32 columns;
  u32 slots;
  u32 layer;
  u32 unused;
};

static_assert(sizeof(Choices) == 40 && sizeof(Counts) == 56 && sizeof(Maps) == 64, "layouts shared with the host");

template <typename Id>
struct alignas(16) Four {
  Id id[GROUP];
};

// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
__device__ __forceinline__ u64 mix(u64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// The slots to which GROUP neighbouring choices go: expert -1 = none, and -1 for an expert that has no slot. `token` and
// `column` are those of the first choice. What all of them need is loaded before any is decided: the loads of one choice
// depend on each other, those of several do not.
__device__ __forceinline__ void choose(const Maps& maps, u64 key, u32 k, u32 token, u32 column,
                                       const int (&experts)[GROUP], int (&slots)[GROUP]) {
  const bool pairs = maps.columns > 1;
  int counts[GROUP], firsts[GROUP], seconds[GROUP];
  float first_parts[GROUP], second_parts[GROUP];
#pragma unroll
  for (u32 i = 0; i < GROUP; ++i) {
    const bool any = experts[i] >= 0;
    const int* row = maps.log2phy + (u64)(any ? experts[i] : 0) * maps.columns;
    counts[i] = any ? maps.logcnt[experts[i]] : 0;
    firsts[i] = any ? row[0] : -1;
    seconds[i] = any && pairs ? row[1] : -1;
  }
#pragma unroll
  for (u32 i = 0; i < GROUP; ++i) {
    counts[i] = counts[i] < (int)maps.columns ? counts[i] : (int)maps.columns;
    first_parts[i] = counts[i] > 1 && (u32)firsts[i] < maps.slots ? maps.share[firsts[i]] : 0.0f;
    second_parts[i] = counts[i] > 1 && (u32)seconds[i] < maps.slots ? maps.share[seconds[i]] : 0.0f;
  }
#pragma unroll
  for (u32 i = 0; i < GROUP; ++i) {
    int chosen = counts[i] > 0 && (u32)firsts[i] < maps.slots ? firsts[i] : -1;
    if (counts[i] > 1) {
      const u64 hash = mix(key ^ ((u64)token << 32 | (u32)experts[i]));
      const float point = (float)(u32)(hash >> 40) * (1.0f / 16777216.0f);
      float sum = first_parts[i] > 0.0f ? first_parts[i] : 0.0f;
      if (point >= sum && second_parts[i] > 0.0f) {
        chosen = seconds[i];
        sum += second_parts[i];
      }
      const int* row = maps.log2phy + (u64)experts[i] * maps.columns;
#pragma unroll 1
      for (int at = 2; at < counts[i] && point >= sum; ++at) {
        const int slot = row[at];
        const float part = (u32)slot < maps.slots ? maps.share[slot] : 0.0f;
        if (!(part > 0.0f)) continue;
        chosen = slot;
        sum += part;
      }
    }
    slots[i] = chosen;
    if (++column == k) column = 0, ++token;
  }
}

template <typename Id>
__device__ __forceinline__ void load(const Choices& choices, bool packed, u32 first, u32 total, Id (&id)[GROUP]) {
  const Id* ids = (const Id*)choices.ids;
  if (packed && (first + GROUP <= total || PLANTED(ReadBehind))) {
    const Four<Id> four = *(const Four<Id>*)(ids + first);
#pragma unroll
    for (u32 i = 0; i < GROUP; ++i) id[i] = four.id[i];
    return;
  }
  u32 token = first / choices.k, column = first - token * choices.k;
#pragma unroll
  for (u32 i = 0; i < GROUP; ++i) {
    id[i] = first + i < total ? ids[token * choices.row_stride + column] : (Id)-1;
    if (++column == choices.k) column = 0, ++token;
  }
}

template <typename Id, bool DISPATCH>
__device__ __forceinline__ void run(const Choices& choices, const Counts& counts, const Maps& maps) {
  extern __shared__ u32 eplb_bins[];
  const bool shared = counts.experts <= SHARED_EXPERTS;
  const int tag = counts.tag ? *counts.tag : 0;
  u64* loads = counts.loads && (u32)tag < counts.tags ? counts.loads + (u64)(u32)tag * counts.tag_stride : nullptr;
  if (shared && loads) {
    for (u32 e = threadIdx.x; e < counts.experts; e += blockDim.x) eplb_bins[e] = 0;
    __syncthreads();
  }

  const u32 k = choices.k, total = choices.tokens * k;
  u32 valid = choices.tokens;
  if (choices.valid) {
    const int rows = *choices.valid;
    valid = rows < 0 ? 0 : (u32)rows < valid ? (u32)rows : valid;
  }
  if (PLANTED(PaddingCounted)) valid = choices.tokens;
  const u32 counted = valid * k;
  const bool packed = choices.row_stride == k && ((u64)choices.ids & 15) == 0;
  const bool packed_out = DISPATCH && maps.out_stride == k && ((u64)maps.out & 15) == 0;
  const u64 layer = PLANTED(HashWithoutLayer) ? 0 : maps.layer + 1ull;
  const u64 key = DISPATCH ? mix((maps.salt ? *maps.salt : 0) + 0x9e3779b97f4a7c15ull * layer) : 0;
  // Recording stops at the last token that counts; dispatch also writes -1 behind it.
  const u32 end = DISPATCH ? total : counted;
  const u32 groups = end / GROUP + (end % GROUP != 0);
  const u32 threads = gridDim.x * blockDim.x;
  const i64 limit = counts.phy2log ? counts.slots : counts.experts;
  u32 strange = 0, missing = 0;

#pragma unroll 1
  for (u32 group = blockIdx.x * blockDim.x + threadIdx.x; group < groups; group += threads) {
    const u32 first = group * GROUP;
    Id ids[GROUP];
    load<Id>(choices, packed, first, end, ids);
    const bool tokens_matter = DISPATCH || choices.mask;
    const u32 first_token = tokens_matter ? first / k : 0, first_column = first - first_token * k;
    u32 token = first_token, column = first_column;
    int experts[GROUP];
#pragma unroll
    for (u32 i = 0; i < GROUP; ++i) {
      const Id id = ids[i];
      experts[i] = -1;
      if (first + i < counted && !(choices.mask && !choices.mask[token])) {
        if (id >= 0 && id < limit) {
          const int expert = counts.phy2log ? counts.phy2log[id] : (int)id;
          if ((u32)expert < counts.experts) {
            experts[i] = expert;
            if (loads && shared) atomicAdd(&eplb_bins[expert], 1u);
            if (loads && !shared) atomicAdd(&loads[expert], 1ull);
          } else {
            ++missing;
          }
        } else {
          strange += id != -1;
        }
      }
      if (tokens_matter && ++column == k) column = 0, ++token;
    }
    if (!DISPATCH) continue;
    int chosen[GROUP];
    choose(maps, key, k, first_token, first_column, experts, chosen);
    Four<Id> slots;
#pragma unroll
    for (u32 i = 0; i < GROUP; ++i) {
      slots.id[i] = (Id)chosen[i];
      missing += experts[i] >= 0 && chosen[i] < 0;
    }
    Id* out = (Id*)maps.out;
    if (packed_out && first + GROUP <= total) {
      *(Four<Id>*)(out + first) = slots;
      continue;
    }
    token = first_token, column = first_column;
#pragma unroll
    for (u32 i = 0; i < GROUP; ++i) {
      if (first + i < total) out[token * maps.out_stride + column] = slots.id[i];
      if (++column == k) column = 0, ++token;
    }
  }

  if (!loads) return;
  if (counts.faults) {
    if (strange) atomicAdd(&counts.faults[0], (u64)strange);
    if (missing) atomicAdd(&counts.faults[1], (u64)missing);
  }
  if (!shared) return;
  if (!PLANTED(NoBarrier)) __syncthreads();
  for (u32 e = threadIdx.x; e < counts.experts; e += blockDim.x) {
    if (eplb_bins[e]) atomicAdd(&loads[e], (u64)eplb_bins[e]);
  }
}

}  // namespace eplb_dispatch

extern "C" __global__ void __launch_bounds__(1024)
    eplb_record_i32(eplb_dispatch::Choices choices, eplb_dispatch::Counts counts) {
  eplb_dispatch::run<int, false>(choices, counts, eplb_dispatch::Maps());
}

extern "C" __global__ void __launch_bounds__(1024)
    eplb_record_i64(eplb_dispatch::Choices choices, eplb_dispatch::Counts counts) {
  eplb_dispatch::run<long long, false>(choices, counts, eplb_dispatch::Maps());
}

extern "C" __global__ void __launch_bounds__(1024)
    eplb_dispatch_i32(eplb_dispatch::Choices choices, eplb_dispatch::Counts counts, eplb_dispatch::Maps maps) {
  eplb_dispatch::run<int, true>(choices, counts, maps);
}

extern "C" __global__ void __launch_bounds__(1024)
    eplb_dispatch_i64(eplb_dispatch::Choices choices, eplb_dispatch::Counts counts, eplb_dispatch::Maps maps) {
  eplb_dispatch::run<long long, true>(choices, counts, maps);
}
