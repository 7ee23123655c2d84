//! Arguments of the kernels, laid out as `kernels/*.cu` declare them.

/// Integer type of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdType {
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
}

/// What the router chose. Addresses are of device memory; 0 = not given.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct DeviceChoices {
    /// `[tokens, k]` ids; -1 = none.
    pub ids: u64,
    /// Elements from one token to the next, at least `k`.
    pub row_stride: u64,
    /// An int32: tokens that count, from the first on. 0 = all.
    pub valid: u64,
    /// `[tokens]` bytes, 0 = padding. 0 = no token is masked.
    pub mask: u64,
    /// Number of tokens, padding included; `tokens * k` is below 2^31.
    pub tokens: u32,
    /// Choices per token, at least 1.
    pub k: u32,
}

/// Where choices are counted. Addresses are of device memory; 0 = not given.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct DeviceCounts {
    /// uint64 `[experts]` of this layer under tag 0. 0 = nothing is counted.
    pub loads: u64,
    /// Elements from one tag's row of this layer to the next tag's.
    pub tag_stride: u64,
    /// An int32: the tag of the step; outside `0..tags` nothing is counted. 0 = tag 0.
    pub tag: u64,
    /// uint64 `[2]`: ids out of range, choices of an expert with no slot. 0 = not wanted.
    pub faults: u64,
    /// int32 `[slots]`: ids are slots, counted under the expert that this map names. 0 = ids are experts.
    pub phy2log: u64,
    /// Number of tags, at least 1.
    pub tags: u32,
    /// Number of logical experts.
    pub experts: u32,
    /// Number of slots.
    pub slots: u32,
    /// 0.
    pub unused: u32,
}

/// How choices become slots. Addresses are of device memory; 0 = not given.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct DeviceMaps {
    /// int32 `[experts, columns]`, -1 padded.
    pub log2phy: u64,
    /// int32 `[experts]`.
    pub logcnt: u64,
    /// float32 `[slots]`.
    pub share: u64,
    /// A uint64 that is mixed into the choice among replicas. 0 = none.
    pub salt: u64,
    /// `[tokens, k]` slots in the type of the ids; may be the ids themselves, at an equal stride.
    pub out: u64,
    /// Elements from one token to the next, at least `k`.
    pub out_stride: u64,
    /// Most replicas of an expert.
    pub columns: u32,
    /// Number of slots.
    pub slots: u32,
    /// Number of the layer.
    pub layer: u32,
    /// 0.
    pub unused: u32,
}

/// A list in device memory: entries of [`eplb_comm::kernels::RowCopy`] or [`eplb_comm::kernels::ChecksumPart`] one after
/// another, in the layout of their `to_bytes`, with their units numbered.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceList {
    /// Address of the first entry.
    pub entries: u64,
    /// Number of entries.
    pub count: u32,
    /// Units of the whole list.
    pub units: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of};

    #[test]
    fn layouts_are_those_of_the_kernels() {
        // The same sizes stand in static assertions of the source.
        assert_eq!(
            (size_of::<DeviceChoices>(), size_of::<DeviceCounts>(), size_of::<DeviceMaps>()),
            (40, 56, 64)
        );
        assert_eq!(
            (align_of::<DeviceChoices>(), align_of::<DeviceCounts>(), align_of::<DeviceMaps>()),
            (8, 8, 8)
        );
        assert_eq!((offset_of!(DeviceChoices, tokens), offset_of!(DeviceCounts, tags)), (32, 40));
        assert_eq!((offset_of!(DeviceMaps, columns), offset_of!(DeviceMaps, layer)), (48, 56));
    }
}
