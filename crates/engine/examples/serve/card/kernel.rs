//! The kernel that reads slots, and blocks that bytes go to and from the device in.

use std::sync::Arc;

use eplb_cuda::{Context, Module, PinnedBlock};

use super::super::rank::Failure;

/// Sums over the bytes of slots: `sum_of` of `model.rs`, a block for each.
const SOURCE: &str = r#"
typedef unsigned long long u64;
struct Tensor { u64 base, rows, row_bytes, pitch, slot_stride; };
__device__ u64 mix(u64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
extern "C" __global__ void serve_sums(const unsigned* slots, unsigned count, const Tensor* tensors, unsigned tensor_count, u64* sums) {
  __shared__ u64 total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  u64 sum = 0, before = 0;
  for (unsigned t = 0; t < tensor_count; ++t) {
    const Tensor tensor = tensors[t];
    const unsigned char* slot = (const unsigned char*)(tensor.base + slots[blockIdx.x] * tensor.slot_stride);
    const u64 bytes = tensor.rows * tensor.row_bytes;
    for (u64 at = threadIdx.x; at < bytes; at += blockDim.x) {
      const u64 row = at / tensor.row_bytes;
      // Past the caches of this multiprocessor: what is asked about are the bytes in memory.
      sum += mix((before + at) << 8 | __ldcv(slot + row * tensor.pitch + (at - row * tensor.row_bytes)));
    }
    before += bytes;
  }
  atomicAdd(&total, sum);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}
"#;

/// The kernel: the image that `EPLB_SERVE_IMAGE` names, or what NVRTC makes of the source.
pub(super) fn module(context: &Arc<Context>) -> Result<Arc<Module>, Failure> {
    match std::env::var_os("EPLB_SERVE_IMAGE") {
        Some(path) => Ok(Module::load(context, &std::fs::read(path)?)?),
        None => Ok(Module::compile(context, SOURCE)?),
    }
}

/// A little-endian number.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// Bytes of a pinned block.
///
/// # Safety
/// No copy to it is under way, and it lives as long as the result is used.
pub(super) unsafe fn bytes(block: &PinnedBlock) -> &[u8] {
    // SAFETY: initialised when it was taken; the rest is the caller's promise.
    unsafe { std::slice::from_raw_parts(block.base(), block.bytes()) }
}

/// Writes bytes to a block, from its beginning.
pub(super) fn write(block: &mut PinnedBlock, words: impl Iterator<Item = u8>) {
    for (at, byte) in words.enumerate().take(block.bytes()) {
        // SAFETY: inside the block, which nobody else uses: copies from it were waited for.
        unsafe { block.base().add(at).write(byte) };
    }
}
