//! Rows of device memory.

/// Rows of bytes in device memory, `pitch` bytes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Address of the first row.
    pub base: u64,
    /// Number of rows.
    pub rows: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Bytes from one row to the next.
    pub pitch: usize,
}

impl Rows {
    /// One run of bytes.
    pub fn contiguous(base: u64, bytes: usize) -> Self {
        Self { base, rows: 1, row_bytes: bytes, pitch: bytes }
    }

    /// The same rows without gaps, at another address.
    pub fn packed_at(&self, base: u64) -> Self {
        Self { base, pitch: self.row_bytes, ..*self }
    }

    /// Whether the rows follow each other without gaps, so that they are one run of bytes.
    pub fn is_gapless(&self) -> bool {
        self.rows == 1 || self.pitch == self.row_bytes
    }

    /// The first so many bytes and the rest, where there are no gaps and both have some.
    pub fn split(&self, bytes: usize) -> Option<(Self, Self)> {
        let rest = self.bytes().checked_sub(bytes).filter(|&rest| rest > 0 && bytes > 0)?;
        self.is_gapless()
            .then(|| (Self::contiguous(self.base, bytes), Self::contiguous(self.base + bytes as u64, rest)))
    }

    /// What lies in bytes `offset..offset + bytes` of them, gaps not counted: the end of a row, whole rows and the beginning of another, as far as
    /// there are such, in this order; one run where there are no gaps.
    pub fn part(&self, offset: usize, bytes: usize) -> Vec<Self> {
        if self.is_gapless() {
            return vec![Self::contiguous(self.base + offset as u64, bytes)];
        }
        let (mut parts, mut at, end) = (Vec::new(), offset, offset + bytes);
        while at < end {
            let (row, in_row) = (at / self.row_bytes, at % self.row_bytes);
            let base = self.base + (row * self.pitch + in_row) as u64;
            let whole = (end - at) / self.row_bytes;
            let part = match in_row == 0 && whole > 0 {
                true => Self { base, rows: whole, ..*self },
                false => Self::contiguous(base, (self.row_bytes - in_row).min(end - at)),
            };
            at += part.bytes();
            parts.push(part);
        }
        parts
    }

    /// Bytes, gaps not counted.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_every_byte_once_and_no_gap() {
        for (rows, row_bytes, pitch) in [(1, 50, 50), (6, 10, 10), (6, 10, 14), (3, 1, 2)] {
            let all = Rows { base: 1000, rows, row_bytes, pitch };
            let addresses = |part: &Rows| -> Vec<u64> {
                let row = |row: usize| part.base + (row * part.pitch) as u64;
                (0..part.rows).flat_map(|number| row(number)..row(number) + part.row_bytes as u64).collect()
            };
            let expected = addresses(&all);
            for offset in 0..all.bytes() {
                for bytes in 1..=all.bytes() - offset {
                    let parts = all.part(offset, bytes);
                    assert!(parts.len() <= 3, "{parts:?}");
                    let found: Vec<u64> = parts.iter().flat_map(addresses).collect();
                    assert_eq!(found, expected[offset..offset + bytes], "{all:?} {offset} {bytes}");
                }
            }
        }
    }
}
