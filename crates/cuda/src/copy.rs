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

    /// Bytes, gaps not counted.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }
}
