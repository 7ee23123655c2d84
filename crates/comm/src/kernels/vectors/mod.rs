//! Inputs for the kernels, with the outputs that their twins give: what `kernels/test/check.cu` compares with.
//!
//! A file of cases is `EPLBVEC1`, the number of cases, and for each its name, the number of its arrays, and for each of
//! those its name and bytes. Numbers are 64-bit, texts and bytes are led by their length; all little-endian. The name of a
//! case begins with its kind (`dispatch`, `replay`, `rows`, `commit`, `checksum`). Addresses in lists are offsets.

mod choices;
mod memory;

use std::io::{self, Write};

use crate::random::Random;

/// An input with its expected output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Kind and what is special about it.
    pub name: String,
    /// Named arrays; those called `after_*` are expected.
    pub arrays: Vec<(&'static str, Vec<u8>)>,
}

/// How much there is to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Hundreds of tokens, kilobytes: for kernels that run on the CPU.
    Small,
    /// Tens of thousands of tokens, megabytes.
    Large,
}

/// Cases drawn from a seed: edge cases by design, and random ones.
pub fn cases(seed: u64, size: Size) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut cases = choices::cases(&mut random, size);
    cases.extend(memory::cases(&mut random, size));
    cases
}

/// Writes a file of cases.
///
/// # Errors
/// The writer's.
pub fn write(cases: &[Case], mut to: impl Write) -> io::Result<()> {
    let bytes = |to: &mut dyn Write, bytes: &[u8]| -> io::Result<()> {
        to.write_all(&(bytes.len() as u64).to_le_bytes())?;
        to.write_all(bytes)
    };
    to.write_all(b"EPLBVEC1")?;
    to.write_all(&(cases.len() as u64).to_le_bytes())?;
    for case in cases {
        bytes(&mut to, case.name.as_bytes())?;
        to.write_all(&(case.arrays.len() as u64).to_le_bytes())?;
        for (name, array) in &case.arrays {
            bytes(&mut to, name.as_bytes())?;
            bytes(&mut to, array)?;
        }
    }
    to.flush()
}

fn numbers(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_the_same_on_every_machine_and_all_kinds_are_there() {
        let made = cases(1, Size::Small);
        assert_eq!(made, cases(1, Size::Small));
        assert_ne!(made, cases(2, Size::Small));
        for kind in ["dispatch", "replay", "rows", "commit", "checksum"] {
            assert!(made.iter().any(|case| case.name.starts_with(kind)), "{kind}");
        }
        assert!(
            made.iter().all(|case| case.arrays.iter().any(|(name, _)| name.starts_with("after_"))),
            "every case expects something"
        );
        let mut file = Vec::new();
        write(&made[..1], &mut file).unwrap();
        assert_eq!(&file[..16], b"EPLBVEC1\x01\0\0\0\0\0\0\0");
    }
}
