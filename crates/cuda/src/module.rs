//! Kernels from an image: cubin, fatbin or PTX.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::kernels::{Shape, compile, start};
use crate::stream::CudaStream;

/// A loaded image, unloaded when dropped.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// SAFETY: a module handle may be used from any thread; the driver locks inside.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module that stays loaded while this lives.
#[derive(Debug, Clone)]
pub struct Kernel {
    module: Arc<Module>,
    raw: *mut sys::CUfunc_st,
}

// SAFETY: as for the module that holds it.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Module {
    /// Loads an image into a context. Takes device memory for code: for start-up only.
    ///
    /// # Errors
    /// The image is none, or for another architecture.
    pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Self>, CudaError> {
        let _entered = context.enter()?;
        // PTX is text and must end with a nul; behind a binary image one more byte is not looked at.
        let mut ended = image.to_vec();
        ended.push(0);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image is copied during the call; writes one handle, which Drop unloads once.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut raw, ended.as_ptr().cast()) })?;
        Ok(Arc::new(Self { context: context.clone(), raw }))
    }

    /// What NVRTC makes of a source in CUDA C++ for the context's device. Takes time and device memory: for start-up only.
    ///
    /// # Errors
    /// There is no NVRTC, or it refused the source; the message holds its log.
    pub fn compile(context: &Arc<Context>, text: &str) -> Result<Arc<Self>, CudaError> {
        Self::load(context, &compile(context, text)?)
    }

    /// A kernel by its C name.
    ///
    /// # Errors
    /// The image has no such kernel.
    pub fn kernel(self: &Arc<Self>, name: &str) -> Result<Kernel, CudaError> {
        let name = CString::new(name).map_err(|error| CudaError::Absent(error.to_string()))?;
        let _entered = self.context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module lives; the name is nul-terminated; writes one handle.
        check("cuModuleGetFunction", unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, name.as_ptr()) })?;
        Ok(Kernel { module: self.clone(), raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: loaded by `load`, unloaded once; kernels hold the module.
            let _ = unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

impl Kernel {
    /// The module that it is part of.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    pub(crate) fn raw(&self) -> *mut sys::CUfunc_st {
        self.raw
    }

    /// Launches it on a one-dimensional grid without dynamic shared memory.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// `arguments` point to what the kernel declares; what it reads and writes is live until it has run, and used by nobody else in a way that
    /// it does not expect.
    pub unsafe fn launch(
        &self,
        stream: &CudaStream,
        (blocks, threads): (u32, u32),
        arguments: &mut [*mut std::ffi::c_void],
    ) -> Result<(), CudaError> {
        let shape = Shape { blocks, threads, shared: 0 };
        // SAFETY: passed on to the caller.
        unsafe { start(self, stream, shape, arguments) }
    }

    /// The handle, for a launch.
    pub fn as_raw(&self) -> *mut std::ffi::c_void {
        self.raw.cast()
    }
}
