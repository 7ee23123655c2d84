//! Copies of one expert from place to place.

use eplb_core::{CoreError, ExpertId, LayerLayout};

use super::content::Content;
use super::guards::{ReadGuard, WriteGuard};
use super::plant::CopyFault;
use super::site::View;
use crate::error::CommError;
use crate::memory::Place;

/// Checks that two layers have the same tensors, row by row; pitches may differ.
///
/// # Errors
/// The first tensor that differs.
fn check_alike(from: &LayerLayout, place: Place, dest: &WriteGuard) -> Result<(), CommError> {
    let to: &LayerLayout = dest.layout();
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
        expected: format!("{:?} as at the source, {}", shape(from), place),
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
    check_alike(source.layout(), source.place(), dest)?;
    let skipped = begin(dest);
    for tensor in 0..source.layout().tensors().len() {
        if skipped != Some(tensor) {
            tensor_runs(source.view(tensor), dest.view(tensor), most, &mut visit);
        }
    }
    Ok(())
}

/// Marks the destination as unknown; the tensor that a planted fault leaves out.
fn begin(dest: &mut WriteGuard) -> Option<usize> {
    dest.begin();
    match dest.memory().take_fault(dest.place()) {
        Some(CopyFault::Panic) => panic!("a planted fault, in the copy to {}", dest.place()),
        Some(CopyFault::SkipTensor(tensor)) => Some(tensor),
        None => None,
    }
}

/// Copies all tensors of a place of another process, whose tag the caller compares before and after.
///
/// # Errors
/// The layers differ; nothing was changed then.
///
/// # Safety
/// Each view lies in live memory, apart from the destination's, with the rows of `layout`.
#[cfg(target_os = "linux")]
pub(super) unsafe fn copy_views(
    layout: &LayerLayout,
    place: Place,
    view: impl Fn(usize) -> View,
    dest: &mut WriteGuard,
) -> Result<(), CommError> {
    check_alike(layout, place, dest)?;
    let skipped = begin(dest);
    for tensor in (0..layout.tensors().len()).filter(|&tensor| skipped != Some(tensor)) {
        tensor_runs(view(tensor), dest.view(tensor), usize::MAX, &mut |run| {
            // SAFETY: passed on to the caller; the guard is borrowed for the whole call, and this thread alone copies.
            unsafe { run.copy() }
        });
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
