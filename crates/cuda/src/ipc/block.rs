//! Memory of our own that others can open by descriptors or fabric handles.

use std::sync::Arc;

use cudarc::driver::sys;

use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;

/// How memory of our own is to be opened by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandleKind {
    /// By legacy handles: memory of `cuMemAlloc`.
    #[default]
    Legacy,
    /// By descriptors: memory of the virtual memory calls.
    Descriptor,
    /// By fabric handles.
    Fabric,
}

impl HandleKind {
    pub(super) fn raw(self) -> sys::CUmemAllocationHandleType {
        match self {
            Self::Legacy => sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            Self::Descriptor => sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
            Self::Fabric => sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_FABRIC,
        }
    }
}

/// Memory of a device, as the virtual memory calls describe it.
pub(super) fn location(context: &Context) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: context.device() }
}

/// Addresses that are reserved, and given back when dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    context: Arc<Context>,
    pub(super) base: u64,
    pub(super) bytes: usize,
    /// Bytes from the beginning that are mapped.
    pub(super) mapped: usize,
}

impl Reserved {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut base = 0;
        // SAFETY: writes one address, which Drop gives back once.
        check("cuMemAddressReserve", unsafe { sys::cuMemAddressReserve(&mut base, bytes, 0, 0, 0) })?;
        Ok(Self { context: context.clone(), base, bytes, mapped: 0 })
    }

    /// Maps an allocation behind what is mapped, and lets go of its handle: the mapping keeps the memory.
    pub(super) fn map(
        &mut self,
        handle: sys::CUmemGenericAllocationHandle,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        let at = self.base + self.mapped as u64;
        // SAFETY: inside what was reserved, which the caller planned; nothing is mapped there yet.
        let mapped = check("cuMemMap", unsafe { sys::cuMemMap(at, bytes, 0, handle, 0) });
        // SAFETY: the caller gives the handle away; a mapping holds the memory by itself.
        let released = check("cuMemRelease", unsafe { sys::cuMemRelease(handle) });
        mapped?;
        self.mapped += bytes;
        released
    }

    /// Lets the device use what is mapped.
    pub(super) fn allow(&self) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location: location(&self.context), flags };
        // SAFETY: the range is mapped; the description is read during the call.
        check("cuMemSetAccess", unsafe { sys::cuMemSetAccess(self.base, self.mapped, &access, 1) })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        if self.mapped > 0 {
            // SAFETY: mapped by `map`, unmapped once; whoever enqueued work on it waited for that work before dropping it.
            let _ = unsafe { sys::cuMemUnmap(self.base, self.mapped) };
        }
        // SAFETY: reserved by `new`, given back once, with nothing mapped any more.
        let _ = unsafe { sys::cuMemAddressFree(self.base, self.bytes) };
    }
}

/// A block of device memory that other processes can open by a descriptor or a fabric handle. Freed when dropped; not for use while serving.
#[derive(Debug)]
pub struct VmmBlock {
    reserved: Reserved,
}

impl VmmBlock {
    /// Takes at least `bytes` bytes, of a kind that is not legacy.
    ///
    /// # Errors
    /// The device has no room, or no handles of that kind.
    pub fn new(context: &Arc<Context>, bytes: usize, kind: HandleKind) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let property = sys::CUmemAllocationProp {
            type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: kind.raw(),
            location: location(context),
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        };
        let mut grain = 0;
        let least = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: writes one number; the property is read during the call.
        check("cuMemGetAllocationGranularity", unsafe {
            sys::cuMemGetAllocationGranularity(&mut grain, &property, least)
        })?;
        let bytes = bytes.max(1).next_multiple_of(grain.max(1));
        let mut reserved = Reserved::new(context, bytes)?;
        let mut handle = 0;
        // SAFETY: writes one handle, which `map` lets go of.
        check("cuMemCreate", unsafe { sys::cuMemCreate(&mut handle, bytes, &property, 0) })?;
        reserved.map(handle, bytes)?;
        reserved.allow()?;
        Ok(Self { reserved })
    }

    /// Its address.
    pub fn base(&self) -> u64 {
        self.reserved.base
    }
}
