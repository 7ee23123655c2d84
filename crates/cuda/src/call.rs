//! The way into the driver: is it there, and what did a call say.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::CudaError;

/// Every function of the driver that this crate calls. A missing one would end in a panic at its first use, so all are
/// looked up before the first call.
const NEEDED: &[&str] = &[
    "cuCtxEnablePeerAccess",
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuGetErrorName",
    "cuInit",
    "cuIpcCloseMemHandle",
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuLaunchHostFunc",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemAlloc_v2",
    "cuMemCreate",
    "cuMemExportToShareableHandle",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetAddressRange_v2",
    "cuMemGetAllocationGranularity",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemImportFromShareableHandle",
    "cuMemMap",
    "cuMemRelease",
    "cuMemRetainAllocationHandle",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemcpy2DAsync_v2",
    "cuMemcpyAsync",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuPointerGetAttribute",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Loads and starts the driver, once. Every object of this crate begins here, so that its calls find the library.
pub(crate) fn driver() -> Result<(), CudaError> {
    static STATE: OnceLock<Result<(), CudaError>> = OnceLock::new();
    STATE.get_or_init(start).clone()
}

fn start() -> Result<(), CudaError> {
    // SAFETY: opens and closes the driver's library by its usual names; its initialisers are NVIDIA's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Absent(
            "libcuda.so.1 cannot be loaded; install the NVIDIA driver, or set LD_LIBRARY_PATH to its folder"
                .into(),
        ));
    }
    // SAFETY: present, as just seen, so this does not panic.
    let library = unsafe { sys::culib() };
    let missing: Vec<&str> = NEEDED
        .iter()
        .copied()
        .filter(|name| {
            // SAFETY: only looked for; the address is not used under this type.
            unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
        })
        .collect();
    if !missing.is_empty() {
        return Err(CudaError::Absent(format!(
            "libcuda.so.1 has no {}; a driver of CUDA 11.8 or later is needed",
            missing.join(", ")
        )));
    }
    // SAFETY: no arguments but the flags, which must be 0.
    check("cuInit", unsafe { sys::cuInit(0) })
}

/// The outcome of a call.
pub(crate) fn check(call: &'static str, code: sys::CUresult) -> Result<(), CudaError> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: writes a pointer to a static string, or leaves null for a code that it does not know.
    let known = unsafe { sys::cuGetErrorName(code, &mut name) };
    let name = if known == sys::CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: a static, nul-terminated string of the driver.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        "unknown code".into()
    };
    Err(CudaError::Call { call, code: code as u32, name })
}
