//! The header of an expert's first message.

use eplb_core::Transfer;

use crate::cut::HEADER_BYTES;
use crate::slot::WaveId;

const MAGIC: [u8; 8] = *b"eplbglo1";

/// What a sender says about an expert, `[HEADER_BYTES]`, numbers little-endian.
pub(crate) fn write(wave: &WaveId, transfer: &Transfer, expert_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let fields = [
        MAGIC,
        wave.generation.to_le_bytes(),
        wave.sequence.to_le_bytes(),
        wave.hash.to_le_bytes(),
        pair(transfer.layer.0, transfer.expert.0),
        pair(transfer.source.0, transfer.dest.0),
        pair(transfer.source_slot.0, transfer.dest_slot.0),
        (expert_bytes as u64).to_le_bytes(),
    ];
    for (place, field) in header.chunks_exact_mut(8).zip(fields) {
        place.copy_from_slice(&field);
    }
    header
}

fn pair(a: u32, b: u32) -> [u8; 8] {
    (u64::from(a) | u64::from(b) << 32).to_le_bytes()
}

/// Checks that a header is the one that was waited for.
///
/// # Errors
/// The first field that is another, with both values.
pub(crate) fn check(
    found: &[u8],
    wave: &WaveId,
    transfer: &Transfer,
    expert_bytes: usize,
) -> Result<(), String> {
    const NAMES: [&str; 8] = [
        "magic",
        "generation",
        "wave number",
        "wave hash",
        "layer and expert",
        "source and destination rank",
        "source and destination slot",
        "bytes",
    ];
    let expected = write(wave, transfer, expert_bytes);
    for (name, (found, expected)) in NAMES.iter().zip(found.chunks_exact(8).zip(expected.chunks_exact(8))) {
        if found != expected {
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
            let (found, expected) = (number(found), number(expected));
            return Err(format!(
                "its message for {} of {} has another {name}: {found:#x}, not {expected:#x}; do all ranks run the same version?",
                transfer.expert, transfer.layer
            ));
        }
    }
    Ok(())
}
