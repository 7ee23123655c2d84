//! What the files of a file store hold, and how they are named.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::LOCKS;
use crate::store::fields::{Fields, Malformed, put_bytes};
use crate::store::identity::Nonce;
use crate::store::limits::MAX_KEY_BYTES;

const VALUE_MAGIC: &[u8; 8] = b"EPLBVAL1";
const FORMAT_MAGIC: &[u8; 8] = b"EPLBDIR1";
const CHECKSUM_BYTES: usize = 8;

/// Size of the file `format`, bytes.
pub(super) const FORMAT_FILE_BYTES: usize = FORMAT_MAGIC.len() + 16;

/// Name of the file of a key: what a person can read of it, and a hash that tells any two keys apart, also where
/// file names are short or ignore case.
pub(super) fn file_name(key: &str) -> String {
    const READABLE: usize = 80;
    let readable: String = key
        .chars()
        .take(READABLE)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '.' })
        .collect();
    format!("{readable}-{:032x}", xxh3_128(key.as_bytes()))
}

/// Which of the lock files a key belongs to.
pub(super) fn lock_number(key: &str) -> u64 {
    xxh3_64(key.as_bytes()) % LOCKS
}

/// Largest file of a value, bytes.
pub(super) fn largest(max_value: usize) -> usize {
    VALUE_MAGIC.len() + 4 + MAX_KEY_BYTES + 4 + max_value + CHECKSUM_BYTES
}

/// Magic, key, value, checksum of it all.
pub(super) fn encode(key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(largest(value.len()));
    out.extend_from_slice(VALUE_MAGIC);
    put_bytes(&mut out, key.as_bytes());
    put_bytes(&mut out, value);
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The value in a file that should be `key`'s.
pub(super) fn decode(key: &str, file: &[u8]) -> Result<Vec<u8>, Malformed> {
    let body = file.len().checked_sub(CHECKSUM_BYTES).ok_or("the file is too short")?;
    let (body, checksum) = file.split_at(body);
    let mut fields = Fields::new(body);
    if fields.take(VALUE_MAGIC.len())? != VALUE_MAGIC {
        return Err("the file was not written by this kind of store");
    }
    if xxh3_64(body).to_le_bytes() != *checksum {
        return Err("the file's checksum is wrong: it was damaged");
    }
    if fields.text()? != key {
        return Err("the file holds another key of the same hash: rename one of the two keys");
    }
    let value = fields.bytes()?.to_vec();
    fields.end()?;
    Ok(value)
}

/// Contents of the file `format`.
pub(super) fn format_file(id: Nonce) -> Vec<u8> {
    let mut out = FORMAT_MAGIC.to_vec();
    out.extend_from_slice(&id.to_bytes());
    out
}

/// The id in the file `format`.
pub(super) fn parse_format_file(file: &[u8]) -> Result<Nonce, Malformed> {
    let mut fields = Fields::new(file);
    if fields.take(FORMAT_MAGIC.len())? != FORMAT_MAGIC {
        return Err("the folder holds a store of another version, or `format` is someone else's file");
    }
    let id = Nonce::from_bytes(fields.array()?);
    fields.end()?;
    Ok(id)
}
