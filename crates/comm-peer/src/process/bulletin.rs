//! Messages between processes: a ring of words in each rank's page, which it alone writes.
//!
//! A message is the number of its bytes, and the bytes, in whole words. The writer first says how far it is about to write ([`WRITING`]), then
//! writes, then says how far it has written ([`HEAD`]); both count words since the page was made. A reader takes the words up to the head, and
//! then looks how far the writer may have come meanwhile: if that is more than a ring beyond what it took, what it took may be of
//! two messages, and it says so. Words are stored with release and loaded with acquire: who has loaded a word of a later message also sees
//! that it was announced. A writer that ends amid a message has not moved the head: nobody sees it.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use eplb_comm::bulletin::{Bulletin, BulletinError};
use eplb_comm::host::{ForeignSegment, Segment};
use eplb_core::RankId;

/// How far words are written.
pub(super) const HEAD: usize = 1024;
/// How far words may be being written.
pub(super) const WRITING: usize = 1280;
/// Where the ring begins in the page.
pub(super) const RING: usize = 4096;
/// Words of the ring: some hundred notes.
pub(super) const WORDS: u64 = 4096;
/// Longest message: what a reader takes may be eight of them behind.
const LONGEST: usize = WORDS as usize;

/// A word of shared memory that is written.
pub(super) trait Write: Debug + Send + Sync {
    fn store(&self, offset: usize, value: u64);
}

/// A word of shared memory that is read.
pub(super) trait Read: Debug + Send + Sync {
    fn load(&self, offset: usize) -> u64;
}

impl Write for Segment {
    fn store(&self, offset: usize, value: u64) {
        Segment::store(self, offset, value);
    }
}

impl Read for ForeignSegment {
    fn load(&self, offset: usize) -> u64 {
        // Every offset used here lies in a page whose size was checked when it was opened.
        ForeignSegment::load(self, offset).unwrap_or(0)
    }
}

fn place(word: u64) -> usize {
    RING + (word % WORDS) as usize * 8
}

/// Writes a message behind `head`; the head then.
pub(super) fn write(page: &dyn Write, head: u64, message: &[u8]) -> Result<u64, BulletinError> {
    if message.len() > LONGEST {
        return Err(BulletinError::TooLong { bytes: message.len(), most: LONGEST });
    }
    let end = head + 1 + message.len().div_ceil(8) as u64;
    page.store(WRITING, end);
    page.store(place(head), message.len() as u64);
    for (word, bytes) in (head + 1..).zip(message.chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        page.store(place(word), u64::from_le_bytes(padded));
    }
    page.store(HEAD, end);
    Ok(end)
}

/// Takes the messages from `tail` on, and moves it behind them.
pub(super) fn read(page: &dyn Read, from: RankId, tail: &mut u64) -> Result<Vec<Vec<u8>>, BulletinError> {
    let head = page.load(HEAD);
    let mut messages = Vec::new();
    if head == *tail {
        return Ok(messages);
    }
    // A head that goes back, or that the writer has not come to, is none that this program writes.
    let ahead = head.checked_sub(*tail).ok_or(BulletinError::Malformed { from })?;
    let words: Vec<u64> = (0..ahead.min(WORDS)).map(|word| page.load(place(*tail + word))).collect();
    match page.load(WRITING).checked_sub(*tail) {
        Some(writing) if writing > WORDS => return Err(BulletinError::Missed { from }),
        Some(writing) if writing >= ahead => {}
        _ => return Err(BulletinError::Malformed { from }),
    }
    let mut rest = &words[..];
    while let Some((&bytes, behind)) = rest.split_first() {
        let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes <= LONGEST);
        let bytes = bytes.ok_or(BulletinError::Malformed { from })?;
        let Some((message, behind)) = behind.split_at_checked(bytes.div_ceil(8)) else {
            return Err(BulletinError::Malformed { from });
        };
        let mut message: Vec<u8> = message.iter().flat_map(|word| word.to_le_bytes()).collect();
        message.truncate(bytes);
        messages.push(message);
        rest = behind;
    }
    *tail = head;
    Ok(messages)
}

/// Another rank's page, and how far it is read.
#[derive(Debug)]
struct Other {
    page: Arc<ForeignSegment>,
    tail: u64,
}

/// The pages of all ranks, as one of them uses them for messages.
#[derive(Debug)]
pub(super) struct Board {
    own: Arc<Segment>,
    head: Mutex<u64>,
    /// By rank, none for this one.
    others: Mutex<Vec<Option<Other>>>,
}

impl Board {
    /// What is posted and read from now on.
    pub(super) fn new(
        own: Arc<Segment>,
        others: impl IntoIterator<Item = Option<Arc<ForeignSegment>>>,
    ) -> Self {
        let others = others.into_iter().map(|page| page.map(|page| Other { page, tail: 0 })).collect();
        Self { own, head: Mutex::new(0), others: Mutex::new(others) }
    }
}

impl Bulletin for Board {
    fn post(&self, message: &[u8]) -> Result<(), BulletinError> {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        *head = write(&*self.own, *head, message)?;
        Ok(())
    }

    fn read(&self) -> Result<Vec<(RankId, Vec<u8>)>, BulletinError> {
        let mut said = Vec::new();
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        for (rank, other) in others.iter_mut().enumerate() {
            let rank = RankId::at(rank);
            if let Some(Other { page, tail }) = other {
                said.extend(read(&**page, rank, tail)?.into_iter().map(|message| (rank, message)));
            }
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    /// A page of this process.
    #[derive(Debug)]
    struct Page(Vec<AtomicU64>);

    impl Page {
        fn new() -> Self {
            Self((0..RING as u64 / 8 + WORDS).map(|_| AtomicU64::new(0)).collect())
        }
    }

    impl Write for Page {
        fn store(&self, offset: usize, value: u64) {
            self.0[offset / 8].store(value, Ordering::Release);
        }
    }

    impl Read for Page {
        fn load(&self, offset: usize) -> u64 {
            self.0[offset / 8].load(Ordering::Acquire)
        }
    }

    /// A message that says by itself whether it is whole.
    fn message(number: u64) -> Vec<u8> {
        let length = 8 + (number * 7 % 200) as usize;
        number.to_le_bytes().into_iter().cycle().take(length).collect()
    }

    #[test]
    fn messages_of_all_lengths_come_whole_and_in_order() {
        let (page, from) = (Page::new(), RankId(3));
        let (mut head, mut tail, mut next) = (0, 0, 0u64);
        for number in 0..5000u64 {
            head = write(&page, head, &message(number)).unwrap();
            if number % 17 == 0 {
                for got in read(&page, from, &mut tail).unwrap() {
                    assert_eq!(got, message(next));
                    next += 1;
                }
            }
        }
        assert!(next > 4900 && head > 10 * WORDS);
        assert_eq!(read(&page, from, &mut tail).unwrap().len() as u64, 5000 - next);
        assert_eq!(write(&page, head, &[]).and_then(|_| read(&page, from, &mut tail)), Ok(vec![vec![]]));
        let long = vec![0; LONGEST + 1];
        assert_eq!(
            write(&page, head, &long),
            Err(BulletinError::TooLong { bytes: LONGEST + 1, most: LONGEST })
        );
    }

    #[test]
    fn what_was_overwritten_is_missed_and_never_read_as_something_else() {
        let (page, from) = (Page::new(), RankId(1));
        let (mut head, mut tail) = (0, 0);
        while head <= WORDS {
            head = write(&page, head, &message(head)).unwrap();
        }
        assert_eq!(read(&page, from, &mut tail), Err(BulletinError::Missed { from }));
        // A length that no message has.
        let (page, mut tail) = (Page::new(), 0);
        page.store(place(0), u64::MAX);
        page.store(WRITING, 1);
        page.store(HEAD, 1);
        assert_eq!(read(&page, from, &mut tail), Err(BulletinError::Malformed { from }));
        // One that says more than was written.
        page.store(place(0), 9);
        assert_eq!(read(&page, from, &mut tail), Err(BulletinError::Malformed { from }));
        assert_eq!(tail, 0);
    }

    #[test]
    fn a_head_that_no_writer_has_come_to_is_malformed() {
        let (page, from) = (Page::new(), RankId(1));
        let (head, mut tail) = (write(&page, 0, &message(0)).unwrap(), 0);
        assert_eq!(read(&page, from, &mut tail), Ok(vec![message(0)]));
        // Back behind what was read; beyond what is being written; as far as words count.
        for told in [head - 1, head + 5, u64::MAX] {
            page.store(HEAD, told);
            assert_eq!(read(&page, from, &mut tail), Err(BulletinError::Malformed { from }), "{told}");
        }
        page.store(HEAD, head);
        write(&page, head, &message(1)).unwrap();
        assert_eq!(read(&page, from, &mut tail), Ok(vec![message(1)]), "it is read on from where it was");
    }

    #[test]
    fn a_writer_that_does_not_wait_is_never_read_wrong() {
        let (page, over) = (Arc::new(Page::new()), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (page, over) = (page.clone(), over.clone());
            std::thread::spawn(move || {
                let mut head = 0;
                for number in 0..20_000u64 {
                    head = write(&*page, head, &message(number)).unwrap();
                }
                over.store(true, Ordering::Release);
            })
        };
        let (mut tail, mut whole) = (0, 0u64);
        loop {
            let last = over.load(Ordering::Acquire);
            match read(&*page, RankId(0), &mut tail) {
                Ok(messages) => {
                    for got in messages {
                        let number = u64::from_le_bytes(got[..8].try_into().unwrap());
                        assert_eq!(got, message(number), "a message of two");
                        whole += 1;
                    }
                }
                // Too slow: it goes on with what comes next.
                Err(error) => {
                    assert_eq!(error, BulletinError::Missed { from: RankId(0) });
                    tail = page.load(HEAD);
                }
            }
            if last {
                break;
            }
        }
        writer.join().unwrap();
        assert!(whole > 0 || tail > 0);
    }
}
