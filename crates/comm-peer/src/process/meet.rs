//! How ranks come together: cards through the store, descriptors through sockets, and a verdict that all share.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::store::Store;
use eplb_comm::{CommError, Extent};
use eplb_core::{LayerId, ModelLayout, RankId};

use super::card::{Card, Memory, Nonce};
use super::error::PeerError;
use super::page::{OwnPage, Pages, Peer};
use super::socket::{Door, Line, ask};

/// What a word to the store may take where the meeting's own time is over.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a rank brings when all ranks make a communicator together.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// This rank.
    pub rank: RankId,
    /// Number of ranks.
    pub world_size: usize,
    /// A corner of the store that no other communicator has used.
    pub store: Arc<dyn Store>,
    /// Names the host: ranks of one name can reach each other's memory.
    pub host: String,
    /// When it must be made.
    pub deadline: Instant,
}

/// What a rank offers to the others.
pub(super) struct Offer<'a> {
    pub(super) layout: &'a Arc<ModelLayout>,
    pub(super) extent: Extent,
    pub(super) memory: Memory,
    /// Descriptors that belong to it, behind that of the page.
    pub(super) files: Vec<BorrowedFd<'a>>,
    /// How long the others may take to close it before it may be freed; zero where it lives as long as it is open anywhere.
    pub(super) patience: Duration,
}

/// What a rank learns of another.
pub(super) struct Neighbour {
    pub(super) rank: RankId,
    /// Its layout: the tensors of this rank, with its own pitches.
    pub(super) layout: Arc<ModelLayout>,
    pub(super) extent: Extent,
    pub(super) memory: Memory,
    pub(super) files: Vec<OwnedFd>,
}

/// What others find a rank by: its page, and the socket that gives it away.
pub(super) struct Stand {
    nonce: Nonce,
    pub(super) page: OwnPage,
    socket: String,
    door: Door,
}

/// All ranks, met.
pub(super) struct Met<T> {
    pub(super) pages: Pages,
    pub(super) extents: Vec<Extent>,
    /// By rank, none for this one.
    pub(super) opened: Vec<Option<T>>,
}

impl Meeting {
    fn draw(&self) -> Result<Nonce, PeerError> {
        let mut drawn = [0; 16];
        getrandom::fill(&mut drawn).map_err(|error| self.refused("a random number", &error))?;
        let drawn = u128::from_le_bytes(drawn);
        Ok([drawn as u64, (drawn >> 64) as u64])
    }

    fn refused(&self, what: &str, error: &dyn std::fmt::Display) -> PeerError {
        PeerError::Refused { rank: self.rank, what: what.into(), detail: error.to_string() }
    }

    fn store<T>(&self, result: Result<T, eplb_comm::store::StoreError>) -> Result<T, PeerError> {
        result.map_err(|source| PeerError::Store { rank: self.rank, source })
    }

    /// The keys of one kind of all ranks.
    fn keys(&self, kind: &str) -> Vec<String> {
        (0..self.world_size).map(|rank| format!("{kind}/{rank}")).collect()
    }

    /// What every rank has said, once all have.
    pub(super) fn gather(&self, kind: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>, PeerError> {
        let keys = self.keys(kind);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let Some(own) = keys.get(self.rank.index()) else {
            let detail = format!("there are ranks 0..{}", self.world_size);
            return Err(PeerError::Refused { rank: self.rank, what: "its place".into(), detail });
        };
        self.store(self.store.set(own, mine, self.deadline))?;
        self.store(self.store.wait(&keys, self.deadline))?;
        let said = self.store(self.store.get_many(&keys, self.deadline))?;
        Ok(said.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Comes together with all ranks; `open` opens the memory of each other one. Unless all of them could open all, nobody gets anything, and
    /// all get the error of the lowest rank that could not.
    pub(super) fn meet<T>(
        &self,
        offer: Offer<'_>,
        mut open: impl FnMut(Neighbour) -> Result<T, PeerError>,
    ) -> Result<Met<T>, PeerError> {
        let stand = self.stand()?;
        let ((peers, opened, extents), watched) = self.attend(&offer, Some(&stand), |cards| {
            let found = self.open_all(cards, &offer, &mut open);
            let verdict = self.agree(found.as_ref().err(), offer.patience);
            let found = found?;
            verdict.map(|()| found)
        })?;
        let pages = Pages::new(stand.page, self.rank, peers, watched, offer.patience);
        Ok(Met { pages, extents, opened })
    }

    /// What others find this rank by.
    pub(super) fn stand(&self) -> Result<Stand, PeerError> {
        let nonce = self.draw()?;
        let page = OwnPage::create(self.rank, nonce).map_err(|error| PeerError::page(self.rank, &error))?;
        // A number of its own: every user of the host can read the names of sockets, and the nonce is what opens this one.
        let name = self.draw()?;
        let socket = format!("eplb-{:016x}{:016x}", name[0], name[1]);
        let door = Door::open(&socket, nonce).map_err(|error| self.refused("a Unix socket", &error))?;
        Ok(Stand { nonce, page, socket, door })
    }

    /// This rank's card.
    fn card(&self, offer: &Offer<'_>, stand: Option<&Stand>) -> Card {
        let pitches = (0..offer.layout.layers()).map(|layer| {
            let tensors = offer.layout.layer(LayerId::at(layer)).tensors();
            tensors.iter().map(|tensor| (tensor.pitch, tensor.slot_stride)).collect()
        });
        Card {
            rank: self.rank,
            nonce: stand.map_or([0; 2], |stand| stand.nonce),
            host: self.host.clone(),
            socket: stand.map_or_else(String::new, |stand| stand.socket.clone()),
            layout: offer.layout.hash64(),
            slots: offer.extent.slots.clone(),
            staging_bytes: offer.extent.staging_bytes,
            pitches: pitches.collect(),
            files: 1 + offer.files.len(),
            memory: offer.memory.clone(),
        }
    }

    /// Does something with the cards of all ranks, while this one's descriptors are given to whoever comes for them; and the sockets of those who came.
    pub(super) fn attend<R>(
        &self,
        offer: &Offer<'_>,
        stand: Option<&Stand>,
        work: impl FnOnce(&[Vec<u8>]) -> Result<R, PeerError>,
    ) -> Result<(R, Vec<Line>), PeerError> {
        let cards = self.gather("card", &self.card(offer, stand).encode())?;
        let Some(stand) = stand else { return work(&cards).map(|done| (done, Vec::new())) };
        let over = AtomicBool::new(false);
        let mut files = vec![stand.page.file()];
        files.extend(&offer.files);
        std::thread::scope(|scope| {
            let over = &over;
            let (door, files, me) = (&stand.door, &files, self.rank.0);
            let (world, deadline) = (self.world_size, self.deadline);
            let server = scope.spawn(move || door.serve(me, world, files, over, deadline));
            let done = work(&cards);
            // Whoever has not come by now has failed, and said so.
            over.store(true, Ordering::Relaxed);
            let watched = server.join().unwrap_or_default();
            done.map(|done| (done, watched))
        })
    }

    #[expect(clippy::type_complexity, reason = "used once, taken apart at once")]
    fn open_all<T>(
        &self,
        cards: &[Vec<u8>],
        offer: &Offer<'_>,
        open: &mut impl FnMut(Neighbour) -> Result<T, PeerError>,
    ) -> Result<(Vec<Option<Peer>>, Vec<Option<T>>, Vec<Extent>), PeerError> {
        // All cards before the first socket: what they say, all ranks see alike.
        let mut known = Vec::new();
        for (rank, bytes) in cards.iter().enumerate() {
            let rank = RankId::at(rank);
            let unreadable = PeerError::Unreadable { rank, what: "its card" };
            let card = Card::decode(bytes).filter(|card| card.rank == rank).ok_or(unreadable)?;
            let layout = if rank == self.rank { None } else { Some(self.compare(&card, offer)?) };
            known.push((card, layout));
        }
        let (mut peers, mut opened, mut extents) = (Vec::new(), Vec::new(), Vec::new());
        for (card, layout) in known {
            let rank = card.rank;
            let extent = Extent { rank, slots: card.slots.clone(), staging_bytes: card.staging_bytes };
            extents.push(extent.clone());
            let Some(layout) = layout else {
                peers.push(None);
                opened.push(None);
                continue;
            };
            let (peer, found) = self.open_one(card, layout, extent, self.deadline, open)?;
            opened.push(Some(found));
            peers.push(Some(peer));
        }
        Ok((peers, opened, extents))
    }

    /// Opens the page and the memory of another rank, which answers until `deadline`.
    pub(super) fn open_one<T>(
        &self,
        card: Card,
        layout: Arc<ModelLayout>,
        extent: Extent,
        deadline: Instant,
        open: &mut impl FnMut(Neighbour) -> Result<T, PeerError>,
    ) -> Result<(Peer, T), PeerError> {
        let rank = card.rank;
        let failed = |reason: String| PeerError::not_opened(self.rank, rank, reason);
        let asked = ask(&card.socket, card.nonce, self.rank.0, card.files, deadline);
        let (line, mut files) = asked.map_err(|error| {
            // It may have gone because it failed itself.
            self.said(rank).unwrap_or_else(|| {
                failed(format!(
                    "its socket does not answer ({error}): it has ended, or these are containers of different networks"
                ))
            })
        })?;
        if files.is_empty() {
            return Err(failed("it gave no descriptor".into()));
        }
        let page = files.remove(0);
        let peer = Peer::open(rank, card.nonce, page, line).map_err(|error| failed(error.to_string()))?;
        Ok((peer, open(Neighbour { rank, layout, extent, memory: card.memory, files })?))
    }

    /// Checks that another rank can be reached and has the same tensors; its layout.
    pub(super) fn compare(&self, card: &Card, offer: &Offer<'_>) -> Result<Arc<ModelLayout>, PeerError> {
        let (rank, this) = (card.rank, self.rank);
        if card.host != self.host {
            let (theirs, ours) = (card.host.clone(), self.host.clone());
            return Err(PeerError::OtherHost { rank, theirs, this, ours });
        }
        if let Memory::None { reason } = &card.memory {
            return Err(PeerError::NotShareable { rank, reason: reason.clone() });
        }
        if let Memory::None { reason } = &offer.memory {
            return Err(PeerError::NotShareable { rank: this, reason: reason.clone() });
        }
        let kinds = [&card.memory, &offer.memory].map(Memory::kind);
        if kinds[0] != kinds[1] {
            let [theirs, ours] = kinds.map(str::to_owned);
            return Err(PeerError::Differs { rank, what: "its slots in", theirs, this, ours });
        }
        let ours = offer.layout.hash64();
        let layout = card.layout_of(offer.layout).filter(|_| card.layout == ours);
        layout.ok_or_else(|| {
            let [theirs, ours] = [card.layout, ours].map(|hash| format!("{hash:016x}"));
            PeerError::Differs { rank, what: "tensors of layout", theirs, this, ours }
        })
    }

    /// Why a rank gave the meeting up, if it has said so.
    fn said(&self, rank: RankId) -> Option<PeerError> {
        let deadline = self.deadline.max(Instant::now() + LAST_WORDS);
        let said = self.store.get(&format!("opened/{}", rank.0), deadline).ok()??;
        let reason = String::from_utf8_lossy(&said).into_owned();
        (!reason.is_empty()).then_some(PeerError::Elsewhere { rank, reason })
    }

    /// Waits until all have said something of a kind, at most so long.
    pub(super) fn linger(&self, kind: &str, patience: Duration) {
        let keys = self.keys(kind);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        // Whoever does not come by then has nothing open.
        drop(self.store.wait(&keys, Instant::now() + patience));
    }

    /// Tells the others whether this rank could open all; an error if another could not.
    fn agree(&self, failed: Option<&PeerError>, patience: Duration) -> Result<(), PeerError> {
        let mine = failed.map(ToString::to_string).unwrap_or_default();
        // Who knows already why there is nothing does not wait for more.
        if failed.is_some() {
            let key = format!("opened/{}", self.rank.0);
            let deadline = self.deadline.max(Instant::now() + LAST_WORDS);
            // If even that fails, the others find out at their deadline.
            drop(self.store.set(&key, mine.as_bytes(), deadline));
            if !patience.is_zero() {
                // Others may still be reading what is freed when this rank leaves.
                self.linger("opened", patience);
            }
            return Ok(());
        }
        let said = self.gather("opened", mine.as_bytes())?;
        match said.iter().position(|said| !said.is_empty()) {
            Some(rank) => {
                let reason = String::from_utf8_lossy(&said[rank]).into_owned();
                Err(PeerError::Elsewhere { rank: RankId::at(rank), reason })
            }
            None => Ok(()),
        }
    }
}

impl From<PeerError> for CommError {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Comm(error) => error,
            other => CommError::Foreign {
                rank: other.rank(),
                call: "opening the memory of peers".into(),
                code: -1,
                detail: other.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use eplb_comm::store::InProcessStore;
    use eplb_core::TensorLayout;

    use super::*;

    /// Names of abstract sockets stand in `/proc/net/unix` for every user of the host.
    #[test]
    fn the_name_of_a_socket_does_not_tell_what_opens_it() {
        let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 8)]]).unwrap());
        let extent = Extent { rank: RankId(0), slots: 0..1, staging_bytes: 0 };
        let (files, patience) = (Vec::new(), Duration::ZERO);
        let offer = Offer { layout: &layout, extent, memory: Memory::Elsewhere, files, patience };
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let alone =
            Meeting { rank: RankId(0), world_size: 2, store, host: "h".into(), deadline: Instant::now() };
        let stand = alone.stand().unwrap();
        let card = alone.card(&offer, Some(&stand));
        assert!(card.nonce != [0; 2] && !card.socket.is_empty());
        for word in card.nonce {
            let told = format!("{word:016x}");
            assert!(!card.socket.contains(&told), "{} tells {told}", card.socket);
        }
    }
}
