//! Finding out who can open whose memory: every rank tries all others of its host, and tells all what came of it.
//!
//! Other than in a [meeting](Meeting::meet) nothing that is refused ends it: what is refused between two ranks, all ranks know, and those that reach
//! each other keep what they have opened. What a rank that died or stopped would have said, nobody can know: that is an error of all others when the
//! time is over.

use std::time::Instant;

use eplb_comm::Extent;
use eplb_core::RankId;

use super::card::Card;
use super::error::PeerError;
use super::meet::{Meeting, Met, Neighbour, Offer};
use super::page::{Pages, Peer};
use super::reach::Reach;

/// What a rank has after a survey.
pub(super) struct Surveyed<T> {
    pub(super) reach: Reach,
    /// What is open of ranks of its own group; `None` where every rank is a group by itself.
    pub(super) met: Option<Met<T>>,
}

/// What a rank has opened of another.
type Found<T> = Option<(Peer, T)>;

impl Meeting {
    /// Tries out what this rank can open of all others of its host, with `open`, and learns what all others can. All ranks call it together.
    pub(super) fn survey<T>(
        &self,
        offer: Offer<'_>,
        mut open: impl FnMut(Neighbour) -> Result<T, PeerError>,
    ) -> Result<Surveyed<T>, PeerError> {
        // A rank without a page or a socket has none to offer, and says so by its card.
        let stand = self.stand();
        let begun = self.attend(&offer, stand.as_ref().ok(), |cards| {
            let tried = self.try_all(cards, &offer, stand.as_ref().err(), &mut open);
            let outcome = match &tried {
                Ok((_, _, refused)) => Reach::outcome(refused),
                Err(error) => Reach::gives_up(error),
            };
            let said = self.gather("reached", &outcome);
            if said.is_err() && !offer.patience.is_zero() {
                self.linger("reached", offer.patience);
            }
            let (cards, found, _) = tried?;
            Ok((Reach::read(&cards, &said?)?, cards, found))
        });
        let ((reach, cards, found), watched) = begun?;
        let groups = reach.groups();
        let mine = groups[self.rank.index()];
        let alone =
            self.world_size > 1 && groups.iter().enumerate().all(|(rank, group)| group.index() == rank);
        let together = groups.iter().all(|group| *group == mine);
        let kept = found.into_iter().zip(&groups).map(|(found, group)| found.filter(|_| *group == mine));
        let (peers, opened): (Vec<_>, Vec<_>) = kept.map(Option::unzip).unzip();
        if !together {
            // What was opened outside a group is closed now; nobody frees before all have.
            self.gather("closed", b"")?;
        }
        let extent =
            |card: Card| Extent { rank: card.rank, slots: card.slots, staging_bytes: card.staging_bytes };
        let met = match stand {
            Ok(stand) if !alone => {
                let pages = Pages::new(stand.page, self.rank, peers, watched, offer.patience);
                Some(Met { pages, extents: cards.into_iter().map(extent).collect(), opened })
            }
            _ => None,
        };
        Ok(Surveyed { reach, met })
    }

    /// Opens what can be opened of every other rank of this host: by rank what was found, and what was refused and why. An error is what no backend could
    /// mend: ranks that do not fit together.
    #[expect(clippy::type_complexity, reason = "used once, taken apart at once")]
    fn try_all<T>(
        &self,
        cards: &[Vec<u8>],
        offer: &Offer<'_>,
        no_stand: Option<&PeerError>,
        open: &mut impl FnMut(Neighbour) -> Result<T, PeerError>,
    ) -> Result<(Vec<Card>, Vec<Found<T>>, Vec<(RankId, String)>), PeerError> {
        let mut known = Vec::new();
        for (rank, bytes) in cards.iter().enumerate() {
            let rank = RankId::at(rank);
            let unreadable = PeerError::Unreadable { rank, what: "its card" };
            known.push(Card::decode(bytes).filter(|card| card.rank == rank).ok_or(unreadable)?);
        }
        // One that does not answer leaves time to say so.
        let now = Instant::now();
        let answer = now + self.deadline.saturating_duration_since(now) / 2;
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for card in &known {
            let rank = card.rank;
            if rank == self.rank {
                found.push(None);
                continue;
            }
            let opened = match (self.compare(card, offer), no_stand) {
                (Ok(_), Some(error)) => Err(error.clone()),
                (Ok(_), None) if card.socket.is_empty() => {
                    let reason = "it got no socket, or no page for its word".to_owned();
                    Err(PeerError::NotShareable { rank, reason })
                }
                (Ok(layout), None) => {
                    let extent =
                        Extent { rank, slots: card.slots.clone(), staging_bytes: card.staging_bytes };
                    self.open_one(card.clone(), layout, extent, answer, open)
                }
                (Err(error), _) => Err(error),
            };
            match opened {
                Ok(opened) => found.push(Some(opened)),
                // All ranks know the hosts from the cards.
                Err(PeerError::OtherHost { .. }) => found.push(None),
                Err(error @ PeerError::Differs { .. }) => return Err(error),
                Err(error) => {
                    refused.push((rank, error.to_string()));
                    found.push(None);
                }
            }
        }
        Ok((known, found, refused))
    }
}
