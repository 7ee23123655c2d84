//! The pages in which ranks that are processes say how far they are.

use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::host::{ForeignSegment, Segment, SegmentError};
use eplb_core::RankId;

use super::bulletin::{Board, RING, WORDS};
use super::card::Nonce;
use super::socket::Line;
use crate::words::{GONE, Ready, Signals, source_of, source_word};

/// Bytes of a page: words, and the ring of messages.
const BYTES: usize = RING + WORDS as usize * 8;
/// First word of a page.
const MAGIC: u64 = u64::from_le_bytes(*b"eplbpage");
/// The rank's word, alone in its cache lines.
const WORD: usize = 256;
/// The source that the rank reads from, likewise.
const READING: usize = 384;
/// Says that the rank has closed what it had opened of others.
const CLOSED: usize = 512;
/// How often a peer's socket is looked at while its word is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// This rank's page, which it alone writes: the page of one communicator, so of one epoch.
#[derive(Debug)]
pub(super) struct OwnPage(Arc<Segment>);

impl OwnPage {
    pub(super) fn create(rank: RankId, nonce: Nonce) -> Result<Self, SegmentError> {
        let page = Segment::create(&format!("eplb words of rank {}", rank.0), BYTES)?;
        for (at, word) in [MAGIC, u64::from(rank.0), nonce[0], nonce[1]].into_iter().enumerate() {
            page.store(at * 8, word);
        }
        Ok(Self(Arc::new(page)))
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.0.file()
    }

    /// Says that nothing of others is open here any more.
    pub(super) fn close(&self) {
        self.0.store(CLOSED, 1);
    }
}

/// A peer: its page, and the socket by which its end is seen.
#[derive(Debug)]
pub(super) struct Peer {
    page: Arc<ForeignSegment>,
    line: Line,
    gone: AtomicBool,
    /// When the socket is looked at next, nanoseconds after `start`.
    next_look: AtomicU64,
    start: Instant,
}

impl Peer {
    /// Opens a peer's page.
    pub(super) fn open(rank: RankId, nonce: Nonce, file: OwnedFd, line: Line) -> Result<Self, SegmentError> {
        let page = ForeignSegment::open(file, BYTES)?;
        let expected = [MAGIC, u64::from(rank.0), nonce[0], nonce[1]].map(Some);
        if [page.load(0), page.load(8), page.load(16), page.load(24)] != expected {
            return Err(SegmentError::Stale { what: rank.to_string() });
        }
        let start = Instant::now();
        let page = Arc::new(page);
        Ok(Self { page, line, gone: AtomicBool::new(false), next_look: AtomicU64::new(0), start })
    }

    fn ready(&self) -> Option<Ready> {
        let word = self.page.load(WORD).filter(|&word| word != GONE)?;
        if self.is_gone() { None } else { Some(Ready::from_word(word)) }
    }

    /// Whether its process has ended, or closed its communicator.
    fn is_gone(&self) -> bool {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if now >= self.next_look.load(Ordering::Relaxed) {
            self.next_look.store(now.saturating_add(LOOK.as_nanos() as u64), Ordering::Relaxed);
            if self.line.is_cut() {
                self.gone.store(true, Ordering::Relaxed);
            }
        }
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether it has nothing open any more.
    pub(super) fn has_closed(&self) -> bool {
        self.page.load(CLOSED) == Some(1) || self.line.is_cut()
    }
}

/// The words of processes, as one of them uses them.
///
/// Ordering: as with words of threads. A word is stored with release and loaded with acquire, in memory that both processes map.
#[derive(Debug)]
pub(super) struct Pages {
    own: OwnPage,
    rank: RankId,
    /// By rank, none for this one.
    peers: Vec<Option<Peer>>,
    /// Sockets that others watch this rank by.
    _watched: Vec<Line>,
    patience: Duration,
    /// What others may have open, dropped when they have closed it.
    kept: Option<Box<dyn Debug + Send + Sync>>,
}

impl Pages {
    pub(super) fn new(
        own: OwnPage,
        rank: RankId,
        peers: Vec<Option<Peer>>,
        watched: Vec<Line>,
        patience: Duration,
    ) -> Self {
        Self { own, rank, peers, _watched: watched, patience, kept: None }
    }
}

impl Pages {
    /// Where ranks say something to each other. It has pages only: whoever has it keeps nothing else open.
    pub(super) fn board(&self) -> Arc<Board> {
        let others = self.peers.iter().map(|peer| peer.as_ref().map(|peer| peer.page.clone()));
        Arc::new(Board::new(self.own.0.clone(), others))
    }

    /// Keeps something until the others have closed what they have open of this rank.
    pub(super) fn keep(&mut self, what: Box<dyn Debug + Send + Sync>) {
        self.kept = Some(what);
    }
}

impl Drop for Pages {
    /// Says that nothing of others is open here any more, since the pulls were dropped before; and gives the others time to close what
    /// they have open of this rank.
    fn drop(&mut self) {
        self.own.close();
        let deadline = Instant::now() + self.patience;
        let mut pause = Duration::from_micros(50);
        while !self.peers.iter().flatten().all(Peer::has_closed) && Instant::now() < deadline {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }
}

impl Signals for Pages {
    fn ready(&self, rank: usize) -> Option<Ready> {
        match self.peers.get(rank) {
            Some(Some(peer)) => peer.ready(),
            _ if rank == self.rank.index() => {
                self.own.0.load(WORD).filter(|&word| word != GONE).map(Ready::from_word)
            }
            _ => None,
        }
    }

    fn announce(&self, ready: Ready) {
        if self.own.0.load(WORD) != Some(GONE) {
            self.own.0.store(WORD, ready.word());
        }
    }

    fn give_up(&self) {
        self.own.0.store(WORD, GONE);
    }

    fn reading(&self, rank: usize) -> Option<usize> {
        let peer = self.peers.get(rank)?.as_ref()?;
        if peer.gone.load(Ordering::Relaxed) {
            return None;
        }
        peer.page.load(READING).and_then(source_of)
    }

    fn read(&self, source: Option<usize>) {
        self.own.0.store(READING, source_word(source));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> (Pages, Pages, Line) {
        let nonces = [[1, 2], [3, 4]];
        let own: Vec<_> =
            (0..2).map(|rank| OwnPage::create(RankId::at(rank), nonces[rank]).unwrap()).collect();
        let (here, there) = Line::pair().unwrap();
        let (here2, there2) = Line::pair().unwrap();
        let open = |of: usize, line| {
            let file = own[of].file().try_clone_to_owned().unwrap();
            Some(Peer::open(RankId::at(of), nonces[of], file, line).unwrap())
        };
        let (of_0, of_1) = (vec![None, open(1, here)], vec![open(0, here2), None]);
        let mut own = own.into_iter();
        let mut make = |rank: u32, peers, line: Vec<Line>| {
            Pages::new(own.next().unwrap(), RankId(rank), peers, line, 10 * LOOK)
        };
        let first = make(0, of_0, vec![there2]);
        (first, make(1, of_1, vec![]), there)
    }

    #[test]
    fn a_word_is_read_where_it_is_waited_for() {
        let (a, b, _line) = pages();
        a.announce(Ready::default().with(0).unwrap());
        assert!(b.ready(0).unwrap().has(0) && a.ready(0).unwrap().has(0));
        assert!(!a.ready(1).unwrap().has(0));
        a.give_up();
        a.announce(Ready::default());
        assert_eq!((a.ready(0), b.ready(0), b.ready(7)), (None, None, None));
    }

    #[test]
    fn a_process_that_ended_is_gone() {
        let (a, b, line) = pages();
        b.announce(Ready::default().with(0).unwrap());
        assert!(a.ready(1).is_some());
        assert!(!a.peers[1].as_ref().unwrap().has_closed());
        drop(line);
        // A process that another test starts may have it open for a moment.
        let limit = Instant::now() + Duration::from_secs(20);
        while a.ready(1).is_some() {
            assert!(Instant::now() < limit, "the process is gone, and it is not seen");
            std::thread::sleep(LOOK);
        }
        assert!(a.peers[1].as_ref().unwrap().has_closed(), "nobody is waited for that is dead");
        drop(a);
        assert_eq!(b.peers[0].as_ref().unwrap().page.load(CLOSED), Some(1));
    }

    #[test]
    fn a_page_of_another_start_is_refused() {
        let own = OwnPage::create(RankId(1), [7, 8]).unwrap();
        let open = |rank, nonce| {
            let (here, _) = Line::pair().unwrap();
            Peer::open(RankId(rank), nonce, own.file().try_clone_to_owned().unwrap(), here).map(drop)
        };
        assert_eq!(open(1, [7, 8]), Ok(()));
        for (rank, nonce) in [(0, [7, 8]), (1, [7, 9]), (1, [8, 8])] {
            assert!(matches!(open(rank, nonce), Err(SegmentError::Stale { .. })));
        }
    }
}
