//! The kernels against their twins on this machine's device, through the launches of [`Kernels`].

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::sys;
use eplb_comm::kernels::vectors::Case;
use eplb_comm::kernels::{ChecksumPart, RowCopy, WordWrite};

use super::args::{DeviceChoices, DeviceCounts, DeviceList, DeviceMaps, IdType};
use super::launch::Kernels;
use crate::call::check;
use crate::context::Context;
use crate::error::CudaError;
use crate::pool::DeviceBlock;
use crate::stream::CudaStream;

/// An array that is not what the twin gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the case.
    pub case: String,
    /// Name of the array.
    pub array: &'static str,
    /// First byte that differs.
    pub byte: usize,
}

/// Runs cases and lists what differs: empty = the kernels agree with their twins. For start-up and checks: waits for the
/// device and takes memory for each case.
///
/// # Errors
/// The driver refused, or a case is not one of those that [`eplb_comm::kernels::vectors::cases`] makes.
pub fn differences(
    context: &Arc<Context>,
    kernels: &Kernels,
    cases: &[Case],
) -> Result<Vec<Difference>, CudaError> {
    let stream = CudaStream::new(context, 0)?;
    let mut differ = Vec::new();
    for case in cases {
        let mut scene = Scene::new(&stream, case)?;
        match case.name.split('/').next() {
            Some("dispatch" | "replay") => scene.choices(kernels)?,
            Some(kind @ ("rows" | "commit" | "checksum")) => scene.memory(kernels, kind)?,
            _ => return Err(CudaError::Absent(format!("{} is a case of unknown kind", case.name))),
        }
        stream.settle()?;
        for (name, expected) in &case.arrays {
            let Some(array) = name.strip_prefix("after_") else { continue };
            let found = scene.download(array)?;
            if let Some(byte) = found.iter().zip(expected).position(|(a, b)| a != b) {
                differ.push(Difference { case: case.name.clone(), array, byte });
            }
        }
    }
    Ok(differ)
}

/// The arrays of a case on the device.
struct Scene<'a> {
    stream: &'a Arc<CudaStream>,
    arrays: BTreeMap<&'static str, &'a [u8]>,
    blocks: BTreeMap<&'static str, DeviceBlock>,
    shape: Vec<u64>,
}

impl<'a> Scene<'a> {
    fn new(stream: &'a Arc<CudaStream>, case: &'a Case) -> Result<Self, CudaError> {
        let arrays: BTreeMap<_, _> = case.arrays.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
        let shape = arrays.get("shape").copied().unwrap_or_default();
        let shape = shape.as_chunks::<8>().0.iter().map(|&number| u64::from_le_bytes(number)).collect();
        let mut scene = Self { stream, arrays, blocks: BTreeMap::new(), shape };
        for (name, bytes) in &case.arrays {
            if !name.starts_with("after_") {
                // One byte more: an empty array still has an address.
                let block = DeviceBlock::new(stream.context(), bytes.len() + 1)?;
                scene.blocks.insert(name, block);
                scene.upload(name, bytes)?;
            }
        }
        Ok(scene)
    }

    /// Address of an array, 0 if the case has none.
    fn at(&self, name: &str) -> u64 {
        self.blocks.get(name).map_or(0, DeviceBlock::base)
    }

    fn number(&self, at: usize) -> u64 {
        self.shape.get(at).copied().unwrap_or(0)
    }

    fn small(&self, at: usize) -> u32 {
        self.number(at) as u32
    }

    fn upload(&self, name: &str, bytes: &[u8]) -> Result<(), CudaError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let _entered = self.stream.context().enter()?;
        // SAFETY: the block of this array has room for its bytes, which live until `settle` has waited for the copy.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(self.at(name), bytes.as_ptr().cast(), bytes.len(), self.stream.raw())
        })?;
        self.stream.settle()
    }

    fn download(&self, name: &str) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0u8; self.arrays.get(name).map_or(0, |array| array.len())];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let _entered = self.stream.context().enter()?;
        // SAFETY: the block of this array is as large as its bytes; `settle` waits before the buffer is used.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                bytes.as_mut_ptr().cast(),
                self.at(name),
                bytes.len(),
                self.stream.raw(),
            )
        })?;
        self.stream.settle()?;
        Ok(bytes)
    }

    fn choices(&mut self, kernels: &Kernels) -> Result<(), CudaError> {
        let id_bytes = self.number(6);
        let ids = if id_bytes == 4 { IdType::I32 } else { IdType::I64 };
        let choices = DeviceChoices {
            ids: self.at("ids") + self.number(4) * id_bytes,
            row_stride: self.number(2),
            valid: self.at("valid"),
            mask: self.at("mask"),
            tokens: self.small(0),
            k: self.small(1),
        };
        let counts = DeviceCounts {
            loads: if self.number(14) != 0 { self.at("loads") } else { 0 },
            tag_stride: self.number(11),
            tag: self.at("tag"),
            faults: self.at("faults"),
            phy2log: self.at("phy2log"),
            tags: self.small(10),
            experts: self.small(7),
            slots: self.small(8),
            unused: 0,
        };
        let maps = DeviceMaps {
            log2phy: self.at("log2phy"),
            logcnt: self.at("logcnt"),
            share: self.at("share"),
            salt: self.at("salt"),
            // A case that expects other ids is one in place.
            out: self.at(if self.arrays.contains_key("after_ids") { "ids" } else { "out" })
                + self.number(5) * id_bytes,
            out_stride: self.number(3),
            columns: self.small(9),
            slots: self.small(8),
            layer: self.small(12),
            unused: 0,
        };
        // SAFETY: all arrays have the shape of the case and live in `self`; `settle` waits before they are freed.
        unsafe {
            if self.number(13) != 0 {
                kernels.dispatch(self.stream, ids, &choices, &counts, &maps)
            } else {
                kernels.record(self.stream, ids, &choices, &counts)
            }
        }
    }

    /// Makes addresses of the offsets in a list: adds `base` to the 64-bit number at `field` of every entry.
    fn rebase(&self, list: &mut [u8], entry: usize, field: usize, base: u64) {
        for entry in list.chunks_exact_mut(entry) {
            if let Some(number) = entry[field..].first_chunk_mut::<8>() {
                *number = u64::from_le_bytes(*number).wrapping_add(base).to_le_bytes();
            }
        }
    }

    fn memory(&mut self, kernels: &Kernels, kind: &str) -> Result<(), CudaError> {
        let bytes = |name: &str| self.arrays.get(name).map_or(Vec::new(), |array| array.to_vec());
        let mut list = bytes("list");
        let mut words = bytes("words");
        if kind == "checksum" {
            self.rebase(&mut list, ChecksumPart::BYTES, 0, self.at("source"));
        } else {
            self.rebase(&mut list, RowCopy::BYTES, 0, self.at("source"));
            self.rebase(&mut list, RowCopy::BYTES, 8, self.at("dest"));
            self.rebase(&mut words, WordWrite::BYTES, 0, self.at("maps"));
        }
        self.upload("list", &list)?;
        self.upload("words", &words)?;
        let list = DeviceList { entries: self.at("list"), count: self.small(0), units: self.number(1) };
        // SAFETY: the lists name arrays of the case, which live in `self`; `settle` waits before they are freed.
        unsafe {
            match kind {
                "checksum" => kernels.checksum(self.stream, list, self.at("sums")),
                "commit" => kernels.commit(self.stream, list, self.at("words"), self.small(2)),
                _ => kernels.copy_rows(self.stream, list),
            }
        }
    }
}
