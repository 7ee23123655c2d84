//! How far ahead of the last step that any rank has begun a commit is proposed.

/// No proposal is made further ahead than this, in steps.
const LARGEST: u64 = 1 << 16;

/// Steps from the last that any rank has begun to the one that a commit is proposed for: more when proposals come too late, fewer
/// again when exchanges complete, because every commit waits for these steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Margin {
    least: u64,
    now: u64,
}

impl Margin {
    /// Begins with `least` steps, and never has fewer.
    pub(crate) fn new(least: u64) -> Self {
        Self { least, now: least }
    }

    /// The steps.
    pub(crate) fn steps(self) -> u64 {
        self.now
    }

    /// A proposal came too late: four times as many steps. `false` where there are as many as there may be: it is not worth another try.
    #[must_use = "whether it is worth another try"]
    pub(crate) fn grow(&mut self) -> bool {
        let more = self.now.saturating_mul(4).min(LARGEST);
        let grows = more > self.now;
        if grows {
            self.now = more;
        }
        grows
    }

    /// An exchange has completed: what made proposals late may be over.
    pub(crate) fn shrink(&mut self) {
        self.now = (self.now / 2).max(self.least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_an_end_and_shrinks_to_where_it_began() {
        let mut margin = Margin::new(4);
        let mut grown = Vec::new();
        while margin.grow() {
            grown.push(margin.steps());
        }
        assert_eq!(grown, [16, 64, 256, 1024, 4096, 16_384, LARGEST]);
        for _ in 0..20 {
            margin.shrink();
        }
        assert_eq!(margin, Margin::new(4));
        let mut large = Margin::new(2 * LARGEST);
        assert!(!large.grow());
        large.shrink();
        assert_eq!(large.steps(), 2 * LARGEST);
    }
}
