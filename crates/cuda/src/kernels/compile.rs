//! Compilation at start-up by NVRTC, the compiler that comes with CUDA and with PyTorch.

use std::ffi::CString;

use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys;

use crate::call::check as check_driver;
use crate::context::Context;
use crate::error::CudaError;

fn failed(call: &'static str, code: sys::nvrtcResult, log: &str) -> CudaError {
    CudaError::Call {
        call,
        code: code as u32,
        name: format!("{code:?}{}{}", if log.is_empty() { "" } else { ": " }, log),
    }
}

fn check(call: &'static str, code: sys::nvrtcResult) -> Result<(), CudaError> {
    if code == sys::nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(failed(call, code, "")) }
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, destroyed once.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

impl Program {
    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: writes one number.
        if unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut bytes) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; bytes];
        // SAFETY: the buffer has the size that was just asked for.
        if unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) }
            != sys::nvrtcResult::NVRTC_SUCCESS
        {
            return String::new();
        }
        String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_string()
    }
}

/// Compute capability of a context's device.
fn capability(context: &Context) -> Result<(i32, i32), CudaError> {
    use driver::CUdevice_attribute_enum as Attribute;
    let mut numbers = [0; 2];
    let which = [
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    ];
    for (number, which) in numbers.iter_mut().zip(which) {
        // SAFETY: writes one integer; the device is one that the driver named.
        check_driver("cuDeviceGetAttribute", unsafe {
            driver::cuDeviceGetAttribute(number, which, context.device())
        })?;
    }
    Ok((numbers[0], numbers[1]))
}

/// Machine code of a source for the context's device; no PTX, which an older driver may refuse.
///
/// # Errors
/// There is no NVRTC, or it refused the source or the architecture.
pub(crate) fn compile(context: &Context, text: &str) -> Result<Vec<u8>, CudaError> {
    // SAFETY: opens the library by its usual names; its initialisers are NVIDIA's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Absent("libnvrtc.so cannot be loaded".into()));
    }
    let (major, minor) = capability(context)?;
    let text = CString::new(text).map_err(|error| CudaError::Absent(error.to_string()))?;
    let architecture = CString::new(format!("--gpu-architecture=sm_{major}{minor}"))
        .map_err(|error| CudaError::Absent(error.to_string()))?;
    let options = [architecture.as_ptr(), c"--std=c++17".as_ptr()];
    let mut raw = std::ptr::null_mut();
    // SAFETY: the text is nul-terminated and read during the call; no headers; writes one handle, which Drop destroys.
    check("nvrtcCreateProgram", unsafe {
        sys::nvrtcCreateProgram(
            &mut raw,
            text.as_ptr(),
            text.as_ptr().wrapping_add(text.count_bytes()),
            0,
            std::ptr::null(),
            std::ptr::null(),
        )
    })?;
    let program = Program(raw);
    // SAFETY: as many options as said, each nul-terminated and alive.
    let code = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    if code != sys::nvrtcResult::NVRTC_SUCCESS {
        return Err(failed("nvrtcCompileProgram", code, &program.log()));
    }
    let mut bytes = 0;
    // SAFETY: writes one number.
    check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) })?;
    let mut image = vec![0u8; bytes];
    // SAFETY: the buffer has the size that was just asked for.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) })?;
    Ok(image)
}
