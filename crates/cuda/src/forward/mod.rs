//! Something like a forward pass, for benches of what runs beside one: matrix products captured in a graph, replayed without pause.

mod bandwidth;
mod cublas;
mod ticks;

use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;
pub use bandwidth::copy_gbps;
use cublas::{Cublas, Product};
pub use ticks::Ticks;

/// What is multiplied, in bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// A grouped product, as the experts of a rank compute: 32 experts, 64 tokens each, 7168 x 2048. Bound by memory.
    Grouped,
    /// A dense product, 4096 x 7168 x 4096. Bound by arithmetic.
    Dense,
    /// A tenth of a thousandth of the grouped one, to try a bench where there is no device.
    Tiny,
}

impl Load {
    /// Bytes that a copy takes by which the memory is judged.
    pub fn copy_bytes(self) -> usize {
        if self == Self::Tiny { 1 << 20 } else { 1 << 30 }
    }

    fn product(self) -> Product {
        match self {
            Self::Grouped => Product { batch: 32, rows: 64, inner: 7168, columns: 2048 },
            Self::Dense => Product { batch: 1, rows: 4096, inner: 7168, columns: 4096 },
            Self::Tiny => Product { batch: 2, rows: 4, inner: 64, columns: 64 },
        }
    }
}

/// Functions of the driver that only this module calls; a missing one would end in a panic.
const NEEDED: [&str; 7] = [
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuEventElapsedTime_v2",
];

/// Scratch memory of cuBLAS: what its manual advises for Hopper.
const SCRATCH_BYTES: usize = 32 << 20;

/// Random bytes that all operands are made of: more than a row, so that rows differ.
const PATTERN_BYTES: usize = 1 << 20;

/// A captured product on a stream, with its operands.
#[derive(Debug)]
pub struct Forward {
    stream: Arc<CudaStream>,
    graph: sys::CUgraphExec,
    // Dropped behind the graph that names them.
    _cublas: Cublas,
    _blocks: [DeviceBlock; 4],
}

// SAFETY: handles of a graph and of cuBLAS may be used from any thread, one at a time; `&mut self` sees to that.
unsafe impl Send for Forward {}

impl Forward {
    /// Takes operands of random numbers between -2 and 2, and captures the product. For start-up: takes memory and waits for the device.
    ///
    /// # Errors
    /// There is no cuBLAS, or too little memory.
    pub fn capture(stream: &Arc<CudaStream>, load: Load) -> Result<Self, CudaError> {
        // SAFETY: a stream exists, so the library is loaded; the addresses are not used under this type.
        let lacks =
            |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
        if let Some(name) = NEEDED.iter().find(|name| lacks(name)) {
            return Err(CudaError::Absent(format!("libcuda.so.1 has no {name}")));
        }
        let context = stream.context();
        let product = load.product();
        let Product { batch, rows, inner, columns } = product;
        let bytes = |a: usize, b: usize| 2 * batch * a * b;
        let a = DeviceBlock::new(context, bytes(rows, inner))?;
        let b = DeviceBlock::new(context, bytes(inner, columns))?;
        let c = DeviceBlock::new(context, bytes(rows, columns))?;
        let scratch = DeviceBlock::new(context, SCRATCH_BYTES)?;
        for (seed, block) in [&a, &b].into_iter().enumerate() {
            fill(stream, block, seed as u64 + 1)?;
        }
        let _entered = context.enter()?;
        // SAFETY: the stream and the scratch block live in the result.
        let cublas = unsafe { Cublas::new(stream.as_raw(), scratch.base(), scratch.bytes()) }?;
        // SAFETY: the blocks have the sizes of the product and live in the result. Once without a graph: cuBLAS loads its kernels then.
        unsafe { cublas.multiply(product, a.base(), b.base(), c.base()) }?;
        stream.settle()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our own stream, with nothing enqueued; the capture is ended below whatever happens.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) })?;
        // SAFETY: as for the first product.
        let enqueued = unsafe { cublas.multiply(product, a.base(), b.base(), c.base()) };
        let mut captured = std::ptr::null_mut();
        // SAFETY: writes one handle, destroyed below.
        let ended =
            check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream.raw(), &mut captured) });
        enqueued.and(ended)?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the graph was just made; writes one handle, which Drop destroys.
        let made =
            check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut graph, captured, 0) });
        // SAFETY: made by the capture, destroyed once; what was instantiated does not need it.
        let _ = unsafe { sys::cuGraphDestroy(captured) };
        made?;
        Ok(Self { stream: stream.clone(), graph, _cublas: cublas, _blocks: [a, b, c, scratch] })
    }

    /// Enqueues the product.
    ///
    /// # Errors
    /// The driver refused.
    pub fn launch(&mut self) -> Result<(), CudaError> {
        let _entered = self.stream.context().enter()?;
        // SAFETY: both live; the operands live in `self`, whose Drop waits for the stream.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.graph, self.stream.raw()) })
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // A device that is lost says so at once.
        let _ = self.stream.settle();
        if let Ok(_entered) = self.stream.context().enter() {
            // SAFETY: made by `capture`, destroyed once, with nothing of it running.
            let _ = unsafe { sys::cuGraphExecDestroy(self.graph) };
        }
    }
}

/// Fills a block with bfloat16 numbers between -2 and 2.
fn fill(stream: &Arc<CudaStream>, block: &DeviceBlock, seed: u64) -> Result<(), CudaError> {
    let context: &Arc<Context> = stream.context();
    let piece = PATTERN_BYTES.min(block.bytes());
    let mut pinned = PinnedBlock::new(context, piece)?;
    let mut state = seed;
    for pair in pinned.as_mut_slice().chunks_exact_mut(2) {
        // Knuth's multiplier for 64-bit linear congruences. Sign and fraction at random, exponent 2^-2 to 2^0.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = (state >> 33) as u16;
        let bits = (random & 0x807f) | ((125 + (random >> 8) % 3) << 7);
        pair.copy_from_slice(&bits.to_le_bytes());
    }
    let _entered = context.enter()?;
    for at in (0..block.bytes()).step_by(piece) {
        let bytes = piece.min(block.bytes() - at);
        // SAFETY: inside the block; the pinned bytes live until `settle` has waited.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(block.base() + at as u64, pinned.base().cast(), bytes, stream.raw())
        })?;
    }
    stream.settle()
}
