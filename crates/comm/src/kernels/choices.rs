//! What the router chose for the tokens of one step and layer.

use std::fmt;

use super::error::{KernelError, at_least};

mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
}

/// An integer type that ids come in: `i32` or `i64`.
pub trait RoutedId: sealed::Sealed + Copy + fmt::Debug + Into<i64> {
    /// Bytes of an id.
    const BYTES: usize = size_of::<Self>();

    /// The number in this type; upper bits that it cannot hold are cut off.
    fn cut(id: i64) -> Self;
}

impl RoutedId for i32 {
    fn cut(id: i64) -> Self {
        id as i32
    }
}

impl RoutedId for i64 {
    fn cut(id: i64) -> Self {
        id
    }
}

/// Most choices of one launch, exclusive: positions are 32-bit numbers on the device.
pub const MOST_CHOICES: usize = 1 << 31;

/// Top-k ids of the tokens of one step and layer, and which of them count.
///
/// A token counts if it is among the first `valid` and its mask is not 0. An id of -1 in a token that counts is a choice
/// not made: neither counted nor a fault.
#[derive(Debug, Clone, Copy)]
pub struct Choices<'a, I> {
    ids: &'a [I],
    tokens: usize,
    k: usize,
    row_stride: usize,
    valid: Option<i32>,
    mask: Option<&'a [u8]>,
}

impl<'a, I: RoutedId> Choices<'a, I> {
    /// Ids `[tokens, k]`, tokens `row_stride` elements apart. All tokens count.
    ///
    /// # Errors
    /// `k` is 0 or above `row_stride`, `ids` is too short, or there are [`MOST_CHOICES`] choices or more.
    pub fn new(ids: &'a [I], tokens: usize, k: usize, row_stride: usize) -> Result<Self, KernelError> {
        if k == 0 || k > row_stride {
            return Err(KernelError::Range {
                what: "k, the choices per token,",
                value: k as u64,
                allowed: "1 or more, and at most the stride of a token",
            });
        }
        if tokens.checked_mul(k).is_none_or(|choices| choices >= MOST_CHOICES) {
            return Err(KernelError::Range {
                what: "the number of tokens",
                value: tokens as u64,
                allowed: "such that tokens * k is below 2^31: split the batch",
            });
        }
        let need = tokens.saturating_sub(1).saturating_mul(row_stride) + if tokens > 0 { k } else { 0 };
        at_least("ids", ids.len(), need, || format!("[{tokens}, {k}], tokens {row_stride} apart"))?;
        Ok(Self { ids, tokens, k, row_stride, valid: None, mask: None })
    }

    /// Only the first `valid` tokens count (the rest of the batch is padding). Negative is 0; above the number of tokens is
    /// all of them.
    #[must_use]
    pub fn with_valid(mut self, valid: i32) -> Self {
        self.valid = Some(valid);
        self
    }

    /// Tokens with mask 0 do not count; `[tokens]`.
    ///
    /// # Errors
    /// A mask that is too short.
    pub fn with_mask(mut self, mask: &'a [u8]) -> Result<Self, KernelError> {
        at_least("the mask", mask.len(), self.tokens, || format!("[{}], one per token", self.tokens))?;
        self.mask = Some(mask);
        Ok(self)
    }

    /// Number of tokens, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Choices per token.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether the choices of a token count.
    pub fn counts(&self, token: usize) -> bool {
        let valid = self.valid.map_or(self.tokens, |rows| usize::try_from(rows).unwrap_or(0));
        token < valid && self.mask.is_none_or(|mask| mask[token] != 0)
    }

    /// The ids of a token, `[k]`.
    pub fn of(&self, token: usize) -> &'a [I] {
        &self.ids[token * self.row_stride..][..self.k]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_behind_valid_or_masked() {
        let ids = [0i32; 8];
        let choices = Choices::new(&ids, 4, 2, 2).unwrap();
        assert!((0..4).all(|t| choices.counts(t)));
        let some = choices.with_valid(3).with_mask(&[1, 0, 7, 1]).unwrap();
        assert_eq!((0..4).map(|t| some.counts(t)).collect::<Vec<_>>(), [true, false, true, false]);
        assert!(!choices.with_valid(-5).counts(0));
        assert!(choices.with_valid(99).counts(3));
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let ids = [0i64; 7];
        assert!(Choices::new(&ids, 2, 3, 4).is_ok(), "the last token needs no gap behind it");
        assert!(matches!(Choices::new(&ids, 3, 3, 3), Err(KernelError::Short { need: 9, .. })));
        assert!(matches!(Choices::new(&ids, 1, 4, 3), Err(KernelError::Range { .. })));
        assert!(matches!(Choices::new(&ids, 1, 0, 3), Err(KernelError::Range { .. })));
        assert!(matches!(Choices::new(&ids, 1 << 30, 2, 2), Err(KernelError::Range { .. })));
        assert!(matches!(Choices::new(&ids, usize::MAX, 2, 2), Err(KernelError::Range { .. })));
        assert!(Choices::new(&ids, 2, 3, 3).unwrap().with_mask(&[1]).is_err());
        assert!(Choices::new(&ids[..0], 0, 1, 1).is_ok());
    }
}
