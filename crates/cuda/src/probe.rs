//! What of CUDA is there.

use cudarc::driver::sys;

use crate::call::{check, driver};
use crate::context::{Context, device_count};
use crate::error::CudaError;

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Newest CUDA version that the driver takes, as major * 1000 + minor * 10.
    pub driver_version: i32,
    /// The devices that this process sees.
    pub devices: Vec<DeviceFacts>,
    /// `[device][device]`: whether the first can read the second's memory directly.
    pub peer_access: Vec<Vec<bool>>,
}

/// One device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFacts {
    /// Number among those that this process sees.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Address on the PCI bus.
    pub pci: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub total_bytes: usize,
    /// Engines that copy without a kernel.
    pub copy_engines: i32,
    /// Multiprocessors.
    pub multiprocessors: i32,
}

/// Looks for a driver and devices. Makes no context and takes no memory.
///
/// # Errors
/// [`CudaError::Absent`] with what is missing, or a call that failed.
pub fn probe() -> Result<Probe, CudaError> {
    driver()?;
    let mut driver_version = 0;
    // SAFETY: writes one integer.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut driver_version) })?;
    let count = device_count()?;
    let devices: Vec<DeviceFacts> = (0..count).map(facts).collect::<Result<_, _>>()?;
    let reach = |from: usize| (0..count).map(|to| can_reach(from, to)).collect::<Result<Vec<_>, _>>();
    let peer_access = (0..count).map(reach).collect::<Result<_, _>>()?;
    Ok(Probe { driver_version, devices, peer_access })
}

fn device(ordinal: usize) -> Result<sys::CUdevice, CudaError> {
    let mut device = 0;
    // SAFETY: writes one integer.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
    Ok(device)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<i32, CudaError> {
    let mut value = 0;
    // SAFETY: writes one integer.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn facts(ordinal: usize) -> Result<DeviceFacts, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = device(ordinal)?;
    let (mut name, mut pci, mut total_bytes) = ([0u8; 128], [0u8; 32], 0);
    // SAFETY: writes at most the length given, ending with a nul.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device)
    })?;
    // SAFETY: as above.
    check("cuDeviceGetPCIBusId", unsafe {
        sys::cuDeviceGetPCIBusId(pci.as_mut_ptr().cast(), pci.len() as i32, device)
    })?;
    // SAFETY: writes one integer.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut total_bytes, device) })?;
    Ok(DeviceFacts {
        ordinal,
        name: text(&name),
        pci: text(&pci),
        capability: (
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        total_bytes,
        copy_engines: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT)?,
        multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

fn can_reach(from: usize, to: usize) -> Result<bool, CudaError> {
    if from == to {
        return Ok(true);
    }
    let (from, to, mut can) = (device(from)?, device(to)?, 0);
    // SAFETY: writes one integer.
    check("cuDeviceCanAccessPeer", unsafe { sys::cuDeviceCanAccessPeer(&mut can, from, to) })?;
    Ok(can != 0)
}

impl Probe {
    /// Contexts of the first `count` devices, each of which may reach the others' memory where the hardware lets it.
    ///
    /// # Errors
    /// There are fewer devices, or a context cannot be made.
    pub fn contexts(&self, count: usize) -> Result<Vec<std::sync::Arc<Context>>, CudaError> {
        let contexts = (0..count).map(Context::primary).collect::<Result<Vec<_>, _>>()?;
        for (from, context) in contexts.iter().enumerate() {
            for (to, other) in contexts.iter().enumerate() {
                if from != to && self.peer_access[from][to] {
                    context.enable_peer(other)?;
                }
            }
        }
        Ok(contexts)
    }
}
