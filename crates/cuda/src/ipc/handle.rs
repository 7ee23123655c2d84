//! What travels between processes.

/// How another process opens a piece of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handle {
    /// Bytes of `cuIpcGetMemHandle`.
    Legacy(Box<[u8; 64]>),
    /// The next descriptor.
    Descriptor,
    /// Bytes of a fabric handle.
    Fabric(Box<[u8; 64]>),
}

impl Handle {
    /// In words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Legacy(_) => "legacy",
            Self::Descriptor => "descriptor",
            Self::Fabric(_) => "fabric",
        }
    }
}

/// One allocation: what one handle stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its size in bytes.
    pub bytes: usize,
    /// How it is opened.
    pub handle: Handle,
}

/// Where something lies in ranges of chunks that follow each other without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Number of the range.
    pub range: usize,
    /// Bytes from its beginning.
    pub offset: usize,
}
