//! What a device's memory carries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Ticks;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::pool::DeviceBlock;
use crate::stream::CudaStream;

/// Copies of which the fastest counts.
const COPIES: usize = 6;
/// Longest wait for all of them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that a copy of `bytes` bytes inside the stream's device reads and writes per second, in 10^9: the best of a few. Takes twice as much
/// memory, and gives it back. For benches, with nothing else on the device.
///
/// # Errors
/// Too little memory, or the driver refused.
pub fn copy_gbps(stream: &Arc<CudaStream>, bytes: usize) -> Result<f64, CudaError> {
    let blocks = [DeviceBlock::new(stream.context(), bytes)?, DeviceBlock::new(stream.context(), bytes)?];
    let [from, to] = [&blocks[0], &blocks[1]].map(|block| Rows::contiguous(block.base(), bytes));
    let mut ticks = Ticks::new(stream, COPIES)?;
    ticks.mark()?;
    for _ in 0..COPIES {
        // SAFETY: two blocks of `bytes` bytes each, used by nobody else, that live until the stream has settled below.
        unsafe { stream.copy(from, to) }?;
        ticks.mark()?;
    }
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    while ticks.open() > 0 && begun.elapsed() < PATIENCE {
        match ticks.take()? {
            Some(microseconds) => best = best.min(microseconds),
            None => std::thread::yield_now(),
        }
    }
    stream.settle()?;
    Ok(2.0 * bytes as f64 / best.max(1e-3) / 1e3)
}
