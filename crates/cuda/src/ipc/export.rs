//! From addresses to handles.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::sys;

use super::block::HandleKind;
use super::handle::{Chunk, Handle, Spot};
use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;

/// Whether a legacy handle can be had, one byte.
const LEGACY: sys::CUpointer_attribute =
    sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE;
/// Kinds of handles that the memory's creator asked for, as bits.
const ALLOWED: sys::CUpointer_attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES;

/// What a process gives to others so that they open its memory.
#[derive(Debug)]
pub struct Export {
    /// Allocations, each once, in runs that follow each other in its address space without gaps.
    pub ranges: Vec<Vec<Chunk>>,
    /// Descriptors, in the order of the chunks that are opened by one.
    pub files: Vec<OwnedFd>,
    /// Where each of the given pieces lies.
    pub spots: Vec<Spot>,
}

/// Handles of all allocations in which pieces of memory lie: `(address, bytes)` each.
///
/// # Errors
/// [`CudaError::NotShareable`] with the reason, or a call that failed.
pub fn export(context: &Arc<Context>, pieces: &[(u64, usize)]) -> Result<Export, CudaError> {
    let _entered = context.enter()?;
    // By address: size, and whether a legacy handle stands for it.
    let mut found: BTreeMap<u64, (usize, bool)> = BTreeMap::new();
    for &(address, bytes) in pieces {
        let mut at = address;
        let end = address + bytes.max(1) as u64;
        while at < end {
            let known = found.range(..=at).next_back().filter(|(base, (size, _))| at < *base + *size as u64);
            let (base, size) = match known {
                Some((&base, &(size, _))) => (base, size),
                None => {
                    let (base, size) = allocation(at)?;
                    let legacy = attribute(at, LEGACY)?;
                    found.insert(base, (size, legacy & 0xff != 0));
                    (base, size)
                }
            };
            at = base + size as u64;
        }
    }
    let (mut ranges, mut starts, mut files): (Vec<Vec<Chunk>>, Vec<u64>, Vec<OwnedFd>) = Default::default();
    let mut open_end = None;
    for (&base, &(bytes, legacy)) in &found {
        let chunk = if legacy { legacy_chunk(base, bytes)? } else { chunk(base, bytes, &mut files)? };
        match ranges.last_mut() {
            Some(range) if !legacy && open_end == Some(base) => range.push(chunk),
            _ => {
                ranges.push(vec![chunk]);
                starts.push(base);
            }
        }
        open_end = (!legacy).then_some(base + bytes as u64);
    }
    let spot = |&(address, _): &(u64, usize)| {
        let range = starts.partition_point(|&start| start <= address) - 1;
        Spot { range, offset: (address - starts[range]) as usize }
    };
    let spots = pieces.iter().map(spot).collect();
    Ok(Export { ranges, files, spots })
}

impl HandleKind {
    /// How the memory at an address is opened by others, if it is.
    ///
    /// # Errors
    /// It is no device memory.
    pub fn of(context: &Context, address: u64) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        if attribute(address, LEGACY)? & 0xff != 0 {
            return Ok(Self::Legacy);
        }
        let allowed = attribute(address, ALLOWED)?;
        Ok(if allowed & u64::from(Self::Fabric.raw().0) != 0 { Self::Fabric } else { Self::Descriptor })
    }
}

/// Base and size of the allocation that an address lies in; a context has been entered.
pub(super) fn allocation(address: u64) -> Result<(u64, usize), CudaError> {
    let (mut base, mut size) = (0, 0);
    // SAFETY: writes two numbers.
    check("cuMemGetAddressRange", unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut size, address) })?;
    match base <= address && address < base + size as u64 {
        true => Ok((base, size)),
        false => Err(CudaError::NotShareable(format!("nothing is allocated at address {address:#x}"))),
    }
}

/// An attribute that is a number of at most 8 bytes.
fn attribute(address: u64, which: sys::CUpointer_attribute) -> Result<u64, CudaError> {
    let mut value = 0u64;
    // SAFETY: writes at most 8 bytes for these attributes.
    check("cuPointerGetAttribute", unsafe {
        sys::cuPointerGetAttribute(std::ptr::from_mut(&mut value).cast(), which, address)
    })?;
    Ok(value)
}

fn legacy_chunk(base: u64, bytes: usize) -> Result<Chunk, CudaError> {
    let mut raw = sys::CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: writes one handle.
    check("cuIpcGetMemHandle", unsafe { sys::cuIpcGetMemHandle(&mut raw, base) })?;
    Ok(Chunk { bytes, handle: Handle::Legacy(Box::new(raw.reserved.map(|byte| byte as u8))) })
}

/// A chunk of virtual memory: by fabric handle if its creator asked for that, else by descriptor.
fn chunk(base: u64, bytes: usize, files: &mut Vec<OwnedFd>) -> Result<Chunk, CudaError> {
    let allowed = attribute(base, ALLOWED)?;
    let asked = |kind: HandleKind| allowed & u64::from(kind.raw().0) != 0;
    let kind = match (asked(HandleKind::Fabric), asked(HandleKind::Descriptor)) {
        (true, _) => HandleKind::Fabric,
        (false, true) => HandleKind::Descriptor,
        (false, false) => {
            return Err(CudaError::NotShareable(
                "it is memory of a stream-ordered pool, or virtual memory that was made without handles; with PyTorch leave \
                 backend:cudaMallocAsync out of PYTORCH_CUDA_ALLOC_CONF"
                    .into(),
            ));
        }
    };
    let mut handle = 0;
    // SAFETY: writes one handle, which is let go of below; the address is that of a live mapping.
    check("cuMemRetainAllocationHandle", unsafe {
        sys::cuMemRetainAllocationHandle(&mut handle, base as *mut std::ffi::c_void)
    })?;
    let exported = export_as(handle, kind, files);
    // SAFETY: retained just before, let go of once.
    check("cuMemRelease", unsafe { sys::cuMemRelease(handle) })?;
    Ok(Chunk { bytes, handle: exported? })
}

fn export_as(
    handle: sys::CUmemGenericAllocationHandle,
    kind: HandleKind,
    files: &mut Vec<OwnedFd>,
) -> Result<Handle, CudaError> {
    const CALL: &str = "cuMemExportToShareableHandle";
    if kind == HandleKind::Fabric {
        let mut bytes = Box::new([0u8; 64]);
        // SAFETY: a fabric handle is 64 bytes, which the call writes.
        check(CALL, unsafe {
            sys::cuMemExportToShareableHandle(bytes.as_mut_ptr().cast(), handle, kind.raw(), 0)
        })?;
        return Ok(Handle::Fabric(bytes));
    }
    let mut file: std::ffi::c_int = -1;
    // SAFETY: a descriptor is one integer, which the call writes.
    check(CALL, unsafe {
        sys::cuMemExportToShareableHandle(std::ptr::from_mut(&mut file).cast(), handle, kind.raw(), 0)
    })?;
    // SAFETY: the call made the descriptor for us alone.
    files.push(unsafe { OwnedFd::from_raw_fd(file) });
    Ok(Handle::Descriptor)
}
