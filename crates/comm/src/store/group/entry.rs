//! What a member shows in a collective, as it looks in the store.

use super::error::Collective;
use crate::store::fields::{Fields, Malformed, put_bytes};

/// First byte of the entry of a member that gives up.
const GAVE_UP: u8 = 255;
/// Longest reason that is shown, bytes.
pub(super) const LONGEST_REASON: usize = 512;

/// What a member shows in a collective.
pub(super) struct Entry<'a> {
    /// `None` when it gives up; the message is then its reason.
    pub(super) collective: Option<Collective>,
    pub(super) label: &'a str,
    pub(super) message: &'a [u8],
}

impl<'a> Entry<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.collective.map_or(GAVE_UP, |collective| collective as u8)];
        put_bytes(&mut out, self.label.as_bytes());
        out.extend_from_slice(self.message);
        out
    }

    pub(super) fn decode(entry: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(entry);
        let collective = match fields.u8()? {
            GAVE_UP => None,
            byte => Some(Collective::of(byte).ok_or("it is of no known collective")?),
        };
        let label = fields.text()?;
        Ok(Self { collective, label, message: fields.remainder() })
    }
}
