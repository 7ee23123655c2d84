//! A set of small numbers that is emptied in no time.

/// Numbers below [`Marks::resize`]'s length, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Marks {
    stamp: Vec<u32>,
    now: u32,
    pub(super) list: Vec<u32>,
}

impl Marks {
    /// Makes room for numbers below `length`.
    pub(super) fn resize(&mut self, length: usize) {
        if self.stamp.len() < length {
            self.stamp.resize(length, self.now.wrapping_sub(1));
        }
    }

    /// Forgets all numbers.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.now = self.now.wrapping_add(1);
        if self.now == 0 {
            // Stamps of the last round would look like those of rounds to come.
            self.stamp.fill(u32::MAX);
        }
    }

    #[inline]
    pub(super) fn insert(&mut self, number: usize) {
        if self.stamp[number] != self.now {
            self.stamp[number] = self.now;
            self.list.push(number as u32);
        }
    }
}
