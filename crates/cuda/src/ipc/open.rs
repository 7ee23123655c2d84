//! From handles to addresses.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::sys;

use super::block::{HandleKind, Reserved};
use super::export::allocation;
use super::handle::{Chunk, Handle, Spot};
use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;

/// Another process's memory, open here: each allocation once, closed when dropped.
#[derive(Debug)]
pub struct Opened {
    ranges: Vec<Range>,
}

#[derive(Debug)]
enum Range {
    Legacy { context: Arc<Context>, base: u64, bytes: usize },
    Mapped(Reserved),
}

impl Range {
    fn place(&self) -> (u64, usize) {
        match self {
            Self::Legacy { base, bytes, .. } => (*base, *bytes),
            Self::Mapped(reserved) => (reserved.base, reserved.mapped),
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Self::Legacy { context, base, .. } = self
            && let Ok(_entered) = context.enter()
        {
            // SAFETY: opened by `legacy`, closed once; whoever enqueued copies from it waited for them before dropping it.
            let _ = unsafe { sys::cuIpcCloseMemHandle(*base) };
        }
    }
}

impl Opened {
    /// Opens all ranges of an [`Export`](super::Export) for copies of `context`'s device.
    ///
    /// # Errors
    /// A handle that cannot be opened here (the reason and what may help stand in the message), or descriptors that are missing.
    pub fn new(
        context: &Arc<Context>,
        ranges: &[Vec<Chunk>],
        files: Vec<OwnedFd>,
    ) -> Result<Self, CudaError> {
        let mut files = files.into_iter();
        let open = |chunks: &Vec<Chunk>| match chunks.as_slice() {
            [Chunk { bytes, handle: Handle::Legacy(handle) }] => legacy(context, handle, *bytes),
            chunks => mapped(context, chunks, &mut files),
        };
        Ok(Self { ranges: ranges.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Address of a spot with `bytes` bytes behind it; `None` if it does not lie inside.
    pub fn address(&self, spot: Spot, bytes: usize) -> Option<u64> {
        let (base, size) = self.ranges.get(spot.range)?.place();
        let end = spot.offset.checked_add(bytes)?;
        (end <= size).then(|| base + spot.offset as u64)
    }
}

fn legacy(context: &Arc<Context>, handle: &[u8; 64], bytes: usize) -> Result<Range, CudaError> {
    let _entered = context.enter()?;
    let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
    let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    let mut base = 0;
    // SAFETY: writes one address, which Drop closes once; the flags are those that the call knows.
    check("cuIpcOpenMemHandle", unsafe { sys::cuIpcOpenMemHandle_v2(&mut base, handle, flags) })?;
    let range = Range::Legacy { context: context.clone(), base, bytes };
    // A handle carries no size that can be read, so the owner's word is held against what the driver has mapped. A driver that does not know
    // the range of what it opened leaves it at that word.
    match allocation(base) {
        Ok((start, size)) if (base - start).saturating_add(bytes as u64) > size as u64 => {
            Err(CudaError::NotShareable(format!(
                "{bytes} bytes were said to lie behind a legacy handle that stands for {size}; do all ranks run the same version?"
            )))
        }
        _ => Ok(range),
    }
}

/// Maps chunks behind each other. Sizes need no check: the driver maps nothing that lies beyond what a handle stands for.
fn mapped(
    context: &Arc<Context>,
    chunks: &[Chunk],
    files: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Range, CudaError> {
    let bytes = chunks.iter().try_fold(0usize, |sum, chunk| sum.checked_add(chunk.bytes));
    let Some(bytes) = bytes.filter(|&bytes| bytes > 0) else {
        return Err(CudaError::NotShareable("what was said of it has no size".into()));
    };
    let mut reserved = Reserved::new(context, bytes)?;
    for chunk in chunks {
        let handle = {
            let _entered = context.enter()?;
            import(&chunk.handle, files)?
        };
        reserved.map(handle, chunk.bytes)?;
    }
    reserved.allow()?;
    Ok(Range::Mapped(reserved))
}

fn import(
    handle: &Handle,
    files: &mut impl Iterator<Item = OwnedFd>,
) -> Result<sys::CUmemGenericAllocationHandle, CudaError> {
    let mut imported = 0;
    let mut call = |raw: *mut std::ffi::c_void, kind: HandleKind| {
        // SAFETY: writes one handle, which the mapping lets go of; `raw` is a descriptor as an address, or points to 64 bytes, as
        // the kind says.
        check("cuMemImportFromShareableHandle", unsafe {
            sys::cuMemImportFromShareableHandle(&mut imported, raw, kind.raw())
        })
    };
    match handle {
        Handle::Descriptor => {
            let Some(file) = files.next() else {
                return Err(CudaError::NotShareable("a descriptor of it is missing".into()));
            };
            // The descriptor may be closed afterwards: the import keeps the memory.
            call(file.as_raw_fd() as usize as *mut std::ffi::c_void, HandleKind::Descriptor)?;
        }
        Handle::Fabric(bytes) => {
            let mut bytes = **bytes;
            call(bytes.as_mut_ptr().cast(), HandleKind::Fabric)?;
        }
        Handle::Legacy(_) => {
            return Err(CudaError::NotShareable("legacy handles stand for whole ranges".into()));
        }
    }
    Ok(imported)
}
