//! Copies of one expert from place to place.

use eplb_core::{CoreError, ExpertId, LayerLayout};

use super::content::Content;
use super::guards::{ReadGuard, WriteGuard};
use super::plant::CopyFault;
use super::site::View;
use crate::error::CommError;

/// Checks that two layers have the same tensors, row by row; pitches may differ.
///
/// # Errors
/// The first tensor that differs.
fn check_alike(source: &ReadGuard, dest: &WriteGuard) -> Result<(), CommError> {
    let (from, to): (&LayerLayout, &LayerLayout) = (source.layout(), dest.layout());
    let shape = |layout: &LayerLayout| -> Vec<usize> {
        layout.tensors().iter().flat_map(|t| [t.rows, t.row_bytes]).collect()
    };
    // Ranks of one process mostly share one layout.
    if std::ptr::eq(from, to) {
        return Ok(());
    }
    let alike = from.tensors().len() == to.tensors().len()
        && from
            .tensors()
            .iter()
            .zip(to.tensors())
            .all(|(a, b)| a.rows == b.rows && a.row_bytes == b.row_bytes);
    if alike {
        return Ok(());
    }
    Err(CommError::Core(CoreError::Shape {
        what: "rows and row bytes of the tensors at the destination",
        found: shape(to),
        expected: format!("{:?} as at the source, {}", shape(from), source.place()),
    }))
}

/// A run of bytes to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

impl Run {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// # Safety
    /// The runs of one pair of guards are copied while both guards live, and no run by two threads at a time.
    pub(super) unsafe fn copy(self) {
        // SAFETY: `runs` cuts runs out of the views of a read guard and a write guard: both lie in live regions, and
        // no place can be under both at a time, so they do not overlap. The caller keeps the guards alive and gives
        // each run to one thread.
        unsafe { std::ptr::copy_nonoverlapping(self.from, self.to, self.bytes) }
    }
}

/// Calls `visit` for each run of at most `most` bytes that makes up a tensor.
fn tensor_runs(from: View, to: View, most: usize, visit: &mut impl FnMut(Run)) {
    let (rows, bytes) = match from.is_gapless() && to.is_gapless() {
        true => (1, from.rows * from.row_bytes),
        false => (from.rows, from.row_bytes),
    };
    for row in 0..rows {
        let mut at = 0;
        while at < bytes {
            let take = most.min(bytes - at);
            visit(Run {
                from: from.base.as_ptr().wrapping_add(row * from.pitch + at),
                to: to.base.as_ptr().wrapping_add(row * to.pitch + at),
                bytes: take,
            });
            at += take;
        }
    }
}

/// Checks a copy, marks the destination as unknown, and lists its runs of at most `most` bytes.
///
/// # Errors
/// The source does not hold `expert`, or the layers differ. Nothing was changed then.
pub(super) fn runs(
    source: &ReadGuard,
    dest: &mut WriteGuard,
    expert: ExpertId,
    most: usize,
    mut visit: impl FnMut(Run),
) -> Result<(), CommError> {
    source.expect(expert)?;
    check_alike(source, dest)?;
    dest.begin();
    let fault = dest.memory().take_fault(dest.place());
    if fault == Some(CopyFault::Panic) {
        panic!("a planted fault, in the copy to {}", dest.place());
    }
    for tensor in 0..source.layout().tensors().len() {
        if fault != Some(CopyFault::SkipTensor(tensor)) {
            tensor_runs(source.view(tensor), dest.view(tensor), most, &mut visit);
        }
    }
    Ok(())
}

/// Copies all tensors of an expert, and names the content of the destination. A tensor that lies without gaps on
/// both sides is one `memcpy`; else each row is one.
///
/// # Errors
/// The source does not hold `expert`, or the layers differ in rows or row bytes. Nothing was changed then.
pub fn copy(source: &ReadGuard, dest: &mut WriteGuard, expert: ExpertId) -> Result<(), CommError> {
    runs(source, dest, expert, usize::MAX, |run| {
        // SAFETY: both guards are borrowed for the whole call, and this thread alone copies.
        unsafe { run.copy() }
    })?;
    dest.set_content(Content::Expert(expert));
    Ok(())
}
