//! Contexts: the device's own, shared with PyTorch and NCCL, or one that a server lends.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::{check, driver};
use crate::error::CudaError;

/// A device's context. Calls made under [`Context::enter`] go to it.
#[derive(Debug)]
pub struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
    ordinal: usize,
    retained: bool,
}

// SAFETY: a context handle may be used from any thread; the driver locks inside.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Number of devices that this process sees.
///
/// # Errors
/// There is no driver.
pub fn device_count() -> Result<usize, CudaError> {
    driver()?;
    let mut count = 0;
    // SAFETY: writes one integer.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

impl Context {
    /// The primary context of a device, which PyTorch, NCCL and every user of the CUDA runtime share.
    ///
    /// # Errors
    /// There is no such device, or its context cannot be made.
    pub fn primary(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let count = device_count()?;
        let Some(number) = i32::try_from(ordinal).ok().filter(|_| ordinal < count) else {
            return Err(CudaError::NoDevice { ordinal, count });
        };
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        // SAFETY: writes one integer.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, number) })?;
        // SAFETY: writes one handle, which Drop releases once.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        Ok(Arc::new(Self { raw, device, ordinal, retained: true }))
    }

    /// A context that the caller keeps: it is never released here.
    ///
    /// # Errors
    /// The handle is no context.
    ///
    /// # Safety
    /// `raw` is a `CUcontext` that lives until the last clone of the result, and everything made under it, is dropped.
    pub unsafe fn borrow(raw: *mut std::ffi::c_void) -> Result<Arc<Self>, CudaError> {
        driver()?;
        let mut context = Self { raw: raw.cast(), device: 0, ordinal: 0, retained: false };
        let device = {
            let _entered = context.enter()?;
            let mut device = 0;
            // SAFETY: writes one integer; the context is current.
            check("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&mut device) })?;
            device
        };
        (context.device, context.ordinal) = (device, usize::try_from(device).unwrap_or(0));
        Ok(Arc::new(context))
    }

    pub(crate) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Number of the device among those that this process sees.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Makes the context current on this thread until the result is dropped; then what was current before is again.
    ///
    /// # Errors
    /// The context is gone.
    pub fn enter(&self) -> Result<Entered<'_>, CudaError> {
        let mut current = std::ptr::null_mut();
        // SAFETY: writes one handle, null if there is none.
        check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut current) })?;
        // A server's thread is there most of the time, and ours nest.
        let pushed = current != self.raw;
        if pushed {
            // SAFETY: the handle lives while `self` does.
            check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.raw) })?;
        }
        Ok(Entered { pushed, _context: PhantomData })
    }

    /// Lets kernels and copies of this context reach the memory of another device's. Once is enough; again does nothing.
    ///
    /// # Errors
    /// The devices cannot reach each other.
    pub fn enable_peer(&self, other: &Context) -> Result<(), CudaError> {
        if self.device == other.device {
            return Ok(());
        }
        let _entered = self.enter()?;
        // SAFETY: both contexts live; the flags must be 0.
        match unsafe { sys::cuCtxEnablePeerAccess(other.raw, 0) } {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => check("cuCtxEnablePeerAccess", code),
        }
    }

    /// Checks that memory lies on this device.
    ///
    /// # Errors
    /// [`CudaError::Address`] with where it lies.
    pub fn check_address(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        let _entered = self.enter()?;
        let ends = if bytes == 0 { vec![] } else { vec![address, address + (bytes - 1) as u64] };
        for at in ends {
            let mut ordinal = -1i32;
            let which = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
            // SAFETY: writes one integer, which is what this attribute is; any number may be asked about.
            let code =
                unsafe { sys::cuPointerGetAttribute(std::ptr::from_mut(&mut ordinal).cast(), which, at) };
            let lies = match code {
                sys::CUresult::CUDA_SUCCESS if ordinal == self.device => continue,
                sys::CUresult::CUDA_SUCCESS => format!("on device {ordinal}"),
                _ => "in no memory of a device".into(),
            };
            return Err(CudaError::Address(format!(
                "address {at:#x} lies {lies}, not on device {}: register what lies on the engine's device",
                self.ordinal
            )));
        }
        Ok(())
    }

    /// Multiprocessors of the device.
    ///
    /// # Errors
    /// The driver refused.
    pub fn multiprocessors(&self) -> Result<u32, CudaError> {
        let mut count = 0;
        let which = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: writes one integer; the device is one that the driver named.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut count, which, self.device) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Free and total bytes of the device.
    ///
    /// # Errors
    /// The context is gone.
    pub fn memory_info(&self) -> Result<(usize, usize), CudaError> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.retained {
            // SAFETY: retained once by `primary`, released once here; what was made under it holds an `Arc` and is gone.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// A context is current on this thread while this lives.
#[derive(Debug)]
pub struct Entered<'a> {
    pushed: bool,
    // Not Send: it belongs to the thread's own stack of contexts.
    _context: PhantomData<(&'a Context, *const ())>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.pushed {
            return;
        }
        let mut popped = std::ptr::null_mut();
        // SAFETY: takes what `enter` pushed on this thread, which this guard cannot have left.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}
