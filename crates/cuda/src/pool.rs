//! Memory of our own, taken at start-up.

use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;

/// A block of device memory. Freed when dropped, which the driver delays until its work is done; not for use while serving.
#[derive(Debug)]
pub struct DeviceBlock {
    context: Arc<Context>,
    base: u64,
    bytes: usize,
    /// The memory, where it is of the virtual memory calls.
    #[cfg(unix)]
    exported: Option<crate::ipc::VmmBlock>,
}

impl DeviceBlock {
    /// Takes `bytes` bytes; none at all takes nothing.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut base = 0;
        if bytes > 0 {
            let _entered = context.enter()?;
            // SAFETY: writes one address, which Drop frees once; the context is current.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut base, bytes) })?;
        }
        Ok(Self {
            context: context.clone(),
            base,
            bytes,
            #[cfg(unix)]
            exported: None,
        })
    }

    /// Takes memory that others can open by descriptors or fabric handles; legacy handles need no other memory than
    /// [`DeviceBlock::new`]'s.
    ///
    /// # Errors
    /// The device has no room, or no such handles.
    #[cfg(unix)]
    pub fn exportable(
        context: &Arc<Context>,
        bytes: usize,
        kind: crate::ipc::HandleKind,
    ) -> Result<Self, CudaError> {
        if kind == crate::ipc::HandleKind::Legacy || bytes == 0 {
            return Self::new(context, bytes);
        }
        let block = crate::ipc::VmmBlock::new(context, bytes, kind)?;
        Ok(Self { context: context.clone(), base: block.base(), bytes, exported: Some(block) })
    }

    /// Whether it was taken by the virtual memory calls.
    pub fn is_virtual(&self) -> bool {
        #[cfg(unix)]
        return self.exported.is_some();
        #[cfg(not(unix))]
        return false;
    }

    /// Its address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBlock {
    fn drop(&mut self) {
        if self.bytes > 0
            && !self.is_virtual()
            && let Ok(_entered) = self.context.enter()
        {
            // SAFETY: taken by `new`, freed once; whoever enqueued work on it waited for that work before dropping it.
            let _ = unsafe { sys::cuMemFree_v2(self.base) };
        }
    }
}

/// A block of host memory that devices copy from and to without a detour.
#[derive(Debug)]
pub struct PinnedBlock {
    context: Arc<Context>,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedBlock {}

impl PinnedBlock {
    /// Takes `bytes` zeroed bytes, at least one, usable from every context of the process.
    ///
    /// # Errors
    /// The system has no room, or refuses to pin so much.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(1);
        let _entered = context.enter()?;
        let mut base = std::ptr::null_mut();
        // SAFETY: writes one address, which Drop frees once; the context is current.
        check("cuMemHostAlloc", unsafe {
            sys::cuMemHostAlloc(&mut base, bytes, sys::CU_MEMHOSTALLOC_PORTABLE)
        })?;
        // SAFETY: just taken, `bytes` long, used by nobody yet.
        unsafe { std::ptr::write_bytes(base.cast::<u8>(), 0, bytes) };
        Ok(Self { context: context.clone(), base: base.cast(), bytes })
    }

    /// The bytes. No device may be writing them.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: taken by `new`, initialised there, and callers in this crate wait for their copies first.
        unsafe { std::slice::from_raw_parts(self.base, self.bytes) }
    }

    /// The bytes, to be written. No device may be using them.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the exclusive borrow keeps other users of the host out.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.bytes) }
    }

    /// Its address.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedBlock {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: taken by `new`, freed once; copies from and to it were waited for.
            let _ = unsafe { sys::cuMemFreeHost(self.base.cast()) };
        }
    }
}
