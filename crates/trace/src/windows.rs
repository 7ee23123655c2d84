//! Windows in time that stay inside one stream.

use std::num::NonZeroUsize;
use std::ops::Range;

/// Runs of steps with one value of `stream`, in order; without streams all `steps` are one run.
pub(crate) fn segments(stream: Option<&[i64]>, steps: usize) -> Vec<Range<usize>> {
    let Some(stream) = stream else {
        return std::iter::once(0..steps).collect();
    };
    let mut start = 0;
    stream
        .chunk_by(|a, b| a == b)
        .map(|run| {
            let segment = start..start + run.len();
            start = segment.end;
            segment
        })
        .collect()
}

/// Consecutive windows of a trace: ranges of steps, each of the size asked for, or shorter where a stream ends.
/// Every step is in exactly one window.
#[derive(Debug, Clone)]
pub struct Windows<'a> {
    segments: &'a [Range<usize>],
    next: usize,
    size: NonZeroUsize,
}

impl<'a> Windows<'a> {
    pub(crate) fn new(segments: &'a [Range<usize>], size: NonZeroUsize) -> Self {
        Self { segments, next: segments.first().map_or(0, |s| s.start), size }
    }
}

impl Iterator for Windows<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let (segment, rest) = self.segments.split_first()?;
        let end = self.next.saturating_add(self.size.get()).min(segment.end);
        let window = self.next..end;
        if end == segment.end {
            self.segments = rest;
        }
        self.next = end;
        Some(window)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let start = |(i, segment): (usize, &Range<usize>)| if i == 0 { self.next } else { segment.start };
        let count = |(i, segment): (usize, &Range<usize>)| {
            (segment.end - start((i, segment))).div_ceil(self.size.get())
        };
        let windows = self.segments.iter().enumerate().map(count).sum();
        (windows, Some(windows))
    }
}

impl ExactSizeIterator for Windows<'_> {}
impl std::iter::FusedIterator for Windows<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_end_where_a_stream_ends() {
        let stream = [7, 7, 7, 2, 2, 2, 2, 7];
        let segments = segments(Some(&stream), 8);
        assert_eq!(segments, [0..3, 3..7, 7..8]);
        let windows = |size| Windows::new(&segments, NonZeroUsize::new(size).unwrap()).collect::<Vec<_>>();
        assert_eq!(windows(2), [0..2, 2..3, 3..5, 5..7, 7..8]);
        assert_eq!(windows(usize::MAX), [0..3, 3..7, 7..8]);
    }

    proptest! {
        #[test]
        fn windows_cover_every_step_once(stream in prop::collection::vec(0i64..3, 1..60), size in 1usize..9) {
            let segments = segments(Some(&stream), stream.len());
            let mut windows = Windows::new(&segments, NonZeroUsize::new(size).unwrap());
            let mut next = 0;
            while let (left, Some(window)) = (windows.len(), windows.next()) {
                prop_assert_eq!(window.start, next);
                prop_assert!(!window.is_empty() && window.len() <= size);
                prop_assert!(stream[window.clone()].iter().all(|s| *s == stream[window.start]));
                let ends = window.end == stream.len() || stream[window.end] != stream[window.start];
                prop_assert!(window.len() == size || ends);
                prop_assert_eq!(windows.len() + 1, left);
                next = window.end;
            }
            prop_assert_eq!(next, stream.len());
            prop_assert_eq!(windows.len(), 0);
        }
    }
}
