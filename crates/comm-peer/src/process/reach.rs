//! Who can open whose memory, as every rank knows it alike, and who belongs together by that.

use eplb_core::{NodeId, RankId};

use super::card::Card;
use super::error::PeerError;

/// First byte of what a rank says that has to give up altogether.
const GIVES_UP: char = '!';

/// What all ranks found out about each other's memory. It is made of what every rank has said to all, so it is the same on all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// By rank.
    hosts: Vec<String>,
    /// `[rank][owner]`: why a rank cannot open the memory of another; `None`: it can, and tried it out, or it is its own or on another host.
    refused: Vec<Vec<Option<String>>>,
}

impl Reach {
    /// Of ranks with these cards that said `outcomes`, both in the order of ranks.
    pub(super) fn read(cards: &[Card], outcomes: &[Vec<u8>]) -> Result<Self, PeerError> {
        let hosts: Vec<String> = cards.iter().map(|card| card.host.clone()).collect();
        let mut refused = Vec::new();
        for (rank, said) in outcomes.iter().enumerate() {
            let rank = RankId::at(rank);
            let unreadable = || PeerError::Unreadable { rank, what: "what it says of the memory of others" };
            let said = str::from_utf8(said).map_err(|_| unreadable())?;
            if let Some(reason) = said.strip_prefix(GIVES_UP) {
                return Err(PeerError::Elsewhere { rank, reason: reason.to_owned() });
            }
            let mut row = vec![None; hosts.len()];
            for line in said.lines() {
                let found = line.split_once('\t').and_then(|(owner, why)| Some((owner.parse().ok()?, why)));
                let (owner, why): (usize, _) = found.ok_or_else(unreadable)?;
                *row.get_mut(owner).ok_or_else(unreadable)? = Some(why.to_owned());
            }
            refused.push(row);
        }
        Ok(Self { hosts, refused })
    }

    /// What a rank says to all: why it cannot open the memory of others, by their ranks.
    pub(super) fn outcome(refused: &[(RankId, String)]) -> Vec<u8> {
        let line = |(owner, why): &(RankId, String)| format!("{}\t{}\n", owner.0, why.replace('\n', " "));
        refused.iter().map(line).collect::<String>().into_bytes()
    }

    /// What a rank says that has to give up altogether.
    pub(super) fn gives_up(error: &PeerError) -> Vec<u8> {
        format!("{GIVES_UP}{error}").into_bytes()
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.hosts.len()
    }

    /// Why two ranks cannot both open the memory of the other; `None` if they can.
    pub fn why_not(&self, a: RankId, b: RankId) -> Option<String> {
        let [host_a, host_b] = [a, b].map(|rank| &self.hosts[rank.index()]);
        if host_a != host_b {
            return Some(format!("{a} is on host {host_a}, {b} on {host_b}"));
        }
        let of = |rank: RankId, owner: RankId| self.refused[rank.index()][owner.index()].clone();
        of(a, b).or_else(|| of(b, a))
    }

    /// The group of each rank: every two ranks of a group can open each other's memory. A rank belongs to the first group, in the order of their
    /// lowest ranks, of which that is true for all who are in it already.
    pub fn groups(&self) -> Vec<NodeId> {
        let mut groups: Vec<Vec<RankId>> = Vec::new();
        let mut of = Vec::new();
        for rank in (0..self.ranks()).map(RankId::at) {
            let fits = |group: &Vec<RankId>| group.iter().all(|&other| self.why_not(rank, other).is_none());
            let group = groups.iter().position(fits).unwrap_or_else(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[group].push(rank);
            of.push(NodeId::at(group));
        }
        of
    }

    /// Why not every two ranks are of one group, in words: of each kind of cause the first pair, and how many more there are.
    pub fn causes(&self) -> Vec<String> {
        let (mut apart, mut refused): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for a in 0..self.ranks() {
            for b in a + 1..self.ranks() {
                let Some(why) = self.why_not(RankId::at(a), RankId::at(b)) else { continue };
                let list = if self.hosts[a] == self.hosts[b] { &mut refused } else { &mut apart };
                list.push(why);
            }
        }
        let told = |list: Vec<String>| {
            let more = match list.len() {
                0 | 1 => String::new(),
                pairs => format!(" (and so for {} more pairs of ranks)", pairs - 1),
            };
            list.into_iter().next().map(|first| first + &more)
        };
        [refused, apart].into_iter().filter_map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(hosts: &[&str], refused: &[(usize, usize)]) -> Reach {
        let ranks = hosts.len();
        let why = |rank, owner| refused.contains(&(rank, owner)).then(|| format!("{rank} refused {owner}"));
        Reach {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            refused: (0..ranks).map(|rank| (0..ranks).map(|owner| why(rank, owner)).collect()).collect(),
        }
    }

    fn groups(hosts: &[&str], refused: &[(usize, usize)]) -> Vec<u32> {
        reach(hosts, refused).groups().into_iter().map(|group| group.0).collect()
    }

    #[test]
    fn ranks_are_grouped_where_every_two_reach_each_other() {
        assert_eq!(groups(&["a"; 4], &[]), [0; 4]);
        assert_eq!(groups(&["a", "b", "a", "b"], &[]), [0, 1, 0, 1]);
        // One direction is enough to part two ranks.
        assert_eq!(groups(&["a"; 3], &[(2, 0)]), [0, 0, 1]);
        assert_eq!(groups(&["a"; 3], &[(0, 2)]), [0, 0, 1]);
        // 1 reaches 0 and 2, which do not reach each other: it can be with one of them only.
        assert_eq!(groups(&["a"; 4], &[(0, 2), (0, 3)]), [0, 0, 1, 1]);
        let all: Vec<_> = (0..3).flat_map(|a| (0..3).map(move |b| (a, b))).collect();
        assert_eq!(groups(&["a"; 3], &all), [0, 1, 2]);
    }

    #[test]
    fn causes_are_told_once_with_the_ranks_they_are_about() {
        assert_eq!(reach(&["a"; 2], &[]).causes(), Vec::<String>::new());
        assert_eq!(
            reach(&["a", "a", "b"], &[(1, 0)]).causes(),
            ["1 refused 0", "rank 0 is on host a, rank 2 on b (and so for 1 more pairs of ranks)"]
        );
    }

    #[test]
    fn what_ranks_say_is_read_as_it_was_said() {
        let card = |rank| Card {
            rank: RankId(rank),
            nonce: [0; 2],
            host: "a".into(),
            socket: String::new(),
            layout: 0,
            slots: 0..1,
            staging_bytes: 0,
            pitches: Vec::new(),
            files: 1,
            memory: super::super::card::Memory::Elsewhere,
        };
        let cards = [card(0), card(1)];
        let said = Reach::outcome(&[(RankId(0), "no\nway".into())]);
        let read = Reach::read(&cards, &[Vec::new(), said]).unwrap();
        assert_eq!(read.why_not(RankId(0), RankId(1)), Some("no way".into()));
        let given_up = Reach::gives_up(&PeerError::Unreadable { rank: RankId(1), what: "its card" });
        let error = Reach::read(&cards, &[Vec::new(), given_up]).unwrap_err();
        assert!(error.to_string().contains("rank 1: its card"), "{error}");
        for nonsense in [&b"7\tx\n"[..], b"x\n", b"0 x\n", &[0xff]] {
            let error = Reach::read(&cards, &[nonsense.to_vec(), Vec::new()]).unwrap_err();
            assert!(matches!(error, PeerError::Unreadable { rank: RankId(0), .. }), "{error}");
        }
    }
}
