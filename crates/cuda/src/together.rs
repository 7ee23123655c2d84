//! Copies that are handed to the copy engines together.
//!
//! A copy engine begins a copy some microseconds after the one before it on the stream has ended, for 44 MB a twentieth of the time they take.
//! Copies of one batch (`cuMemcpyBatchAsync`, from drivers of CUDA 13 on) follow each other at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys;

use crate::call::check;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::stream::CudaStream;

/// Copies that go in one batch at most; rows with gaps are a copy each.
const MOST: usize = 64;

/// A driver has the call and does not support it for this device.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether copies are made together. Before the driver is loaded, and where it has no such call or supports it not, they are not.
pub fn is_supported() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    if crate::call::driver().is_err() || REFUSED.load(Ordering::Relaxed) {
        return false;
    }
    *FOUND.get_or_init(|| {
        // SAFETY: the driver is there, as just seen, so this does not panic.
        let library = unsafe { sys::culib() };
        // SAFETY: only looked for; the address is not used under this type.
        unsafe { library.get::<unsafe extern "C" fn()>(b"cuMemcpyBatchAsync_v2") }.is_ok()
    })
}

/// One run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    from: u64,
    to: u64,
    bytes: usize,
}

/// Runs of bytes that copies consist of; the others stay whole.
fn runs(copies: &[(Rows, Rows)]) -> (Vec<Run>, Vec<(Rows, Rows)>) {
    let (mut runs, mut whole) = (Vec::with_capacity(MOST), Vec::new());
    for &(from, to) in copies {
        let gapless = from.is_gapless() && to.is_gapless();
        let rows = if gapless { 1 } else { from.rows };
        if from.bytes() == 0 {
            continue;
        }
        if runs.len() + rows > MOST {
            whole.push((from, to));
        } else if gapless {
            runs.push(Run { from: from.base, to: to.base, bytes: from.bytes() });
        } else {
            let row = |row: usize| (from.base + (row * from.pitch) as u64, to.base + (row * to.pitch) as u64);
            runs.extend((0..rows).map(row).map(|(source, dest)| Run {
                from: source,
                to: dest,
                bytes: from.row_bytes,
            }));
        }
    }
    (runs, whole)
}

impl CudaStream {
    /// Enqueues copies of rows between places of device memory, in no order among themselves; by as few calls as the driver has for it.
    ///
    /// # Errors
    /// The driver refused; some may be enqueued.
    ///
    /// # Safety
    /// As for [`CudaStream::copy`], for every pair (from, to); and no copy writes what another reads or writes.
    pub unsafe fn copy_together(&self, copies: &[(Rows, Rows)]) -> Result<(), CudaError> {
        let (runs, whole) =
            if copies.len() > 1 && is_supported() { runs(copies) } else { (Vec::new(), copies.to_vec()) };
        for (from, to) in whole {
            // SAFETY: passed on to the caller.
            unsafe { self.copy(from, to) }?;
        }
        if runs.is_empty() {
            return Ok(());
        }
        // SAFETY: these are the caller's copies, run by run.
        let outcome = unsafe { self.batch(&runs) };
        if !matches!(&outcome, Err(CudaError::Call { code, .. }) if *code == NOT_SUPPORTED) {
            return outcome;
        }
        REFUSED.store(true, Ordering::Relaxed);
        for Run { from, to, bytes } in runs {
            // SAFETY: as above; the refused call enqueued nothing.
            unsafe { self.copy(Rows::contiguous(from, bytes), Rows::contiguous(to, bytes)) }?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`CudaStream::copy_together`]; the driver has the call.
    unsafe fn batch(&self, runs: &[Run]) -> Result<(), CudaError> {
        let nowhere =
            sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        let mut how = sys::CUmemcpyAttributes {
            // What is read is written by what is ahead on streams and in other processes, never by the host after this call.
            srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: sys::CUmemcpyFlags::CU_MEMCPY_FLAG_DEFAULT as u32,
        };
        let mut to: Vec<u64> = runs.iter().map(|run| run.to).collect();
        let mut from: Vec<u64> = runs.iter().map(|run| run.from).collect();
        let mut bytes: Vec<usize> = runs.iter().map(|run| run.bytes).collect();
        let mut first = 0;
        let _entered = self.context().enter()?;
        // SAFETY: all lists have as many entries as said and are read during the call; what they name is passed on to the caller.
        check("cuMemcpyBatchAsync", unsafe {
            sys::cuMemcpyBatchAsync_v2(
                to.as_mut_ptr(),
                from.as_mut_ptr(),
                bytes.as_mut_ptr(),
                runs.len(),
                &mut how,
                &mut first,
                1,
                self.raw(),
            )
        })
    }
}

/// `CUDA_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: u32 = 801;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_run_or_stays_whole() {
        let flat = Rows::contiguous(1000, 48);
        let pitched = Rows { base: 5000, rows: 3, row_bytes: 8, pitch: 32 };
        let (runs_of, whole) =
            runs(&[(flat, Rows::contiguous(2000, 48)), (pitched, pitched.packed_at(9000))]);
        let run = |from, to, bytes| Run { from, to, bytes };
        assert_eq!(
            runs_of,
            [run(1000, 2000, 48), run(5000, 9000, 8), run(5032, 9008, 8), run(5064, 9016, 8)]
        );
        assert_eq!(whole, []);
        // Rows beyond what a batch holds stay one copy, and what comes after them still finds room.
        let many = Rows { rows: MOST, ..pitched };
        let copies = [(flat, Rows::contiguous(2000, 48)), (many, many.packed_at(9000)), (flat, flat)];
        let (runs_of, whole) = runs(&copies);
        assert_eq!(runs_of, [run(1000, 2000, 48), run(1000, 1000, 48)]);
        assert_eq!(whole, [(many, many.packed_at(9000))]);
        // A copy of nothing is none.
        assert_eq!(runs(&[(Rows::contiguous(1, 0), Rows::contiguous(2, 0))]), (vec![], vec![]));
    }
}
