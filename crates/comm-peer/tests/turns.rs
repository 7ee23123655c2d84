//! Ranks that take turns at sources, in any order of their looks and of the ends of their runs.

use std::time::Duration;

use eplb_comm_peer::{Candidate, Run, Turns};
use proptest::prelude::*;

const MB: u64 = 1_000_000;
const NOW: Duration = Duration::from_secs(3);
/// As long as nobody waits.
const LONG: Duration = Duration::from_secs(1);

fn could(pulls: &[(u64, usize)], bytes: u64) -> Vec<Candidate> {
    let candidate = |(pull, &(wave, source))| Candidate { wave, pull, source, bytes };
    pulls.iter().enumerate().map(candidate).collect()
}

fn told(run: Option<Run>) -> Option<(Option<usize>, Vec<usize>)> {
    run.map(|run| (run.source, run.pulls.into_iter().map(|(_, pull)| pull).collect()))
}

#[test]
fn a_run_keeps_to_one_source_and_the_next_begins_near_its_end() {
    let mut turns = Turns::new(1, 4);
    let experts = could(&[(0, 2), (0, 3), (0, 2), (0, 2), (0, 3)], 20 * MB);
    let nobody = |_| None;
    assert_eq!(told(turns.choose(&experts, nobody, NOW)), Some((Some(2), vec![0, 2])), "most is left there");
    assert_eq!((turns.holds(), turns.choose(&experts, nobody, NOW)), (Some(2), None));
    turns.release();
    let last = told(turns.choose(&experts[1..2], nobody, NOW));
    assert_eq!(last, Some((Some(3), vec![1])), "all that there is");
    turns.release();
    assert_eq!(turns.choose(&[], nobody, NOW), None);
}

#[test]
fn what_is_small_takes_no_turn() {
    let mut turns = Turns::new(1, 4);
    let run = turns.choose(&could(&[(0, 2), (0, 3), (1, 2)], MB), |_| Some(2), NOW);
    assert_eq!((told(run), turns.holds()), (Some((None, vec![0, 1, 2])), None), "all at once");
}

#[test]
fn earlier_waves_go_first_then_the_nearest_source() {
    let mut turns = Turns::new(1, 4);
    let next = |turns: &mut Turns, pulls: &[(u64, usize)]| {
        let run = turns.choose(&could(pulls, 44 * MB), |_| None, NOW);
        turns.release();
        run.and_then(|run| run.source)
    };
    assert_eq!(next(&mut turns, &[(0, 3), (1, 2), (1, 2)]), Some(3));
    assert_eq!(next(&mut turns, &[(0, 2), (0, 3), (0, 0)]), Some(0));
    assert_eq!(next(&mut turns, &[(0, 2), (0, 3)]), Some(3), "going round backwards");
}

#[test]
fn a_source_that_is_read_is_left_alone_for_a_while() {
    let mut turns = Turns::new(1, 4);
    let pulls = could(&[(0, 2), (1, 3)], 44 * MB);
    let taken = |of: [Option<usize>; 4]| move |rank: usize| of[rank];
    let run = turns.choose(&pulls, taken([Some(2), None, None, None]), NOW).unwrap();
    assert_eq!((run.source, run.shares), (Some(3), false), "a later wave meanwhile");
    turns.release();
    let both = taken([Some(2), None, Some(3), Some(2)]);
    assert_eq!(turns.choose(&pulls, both, NOW), None);
    assert_eq!(turns.choose(&pulls, both, NOW + Duration::from_micros(50)), None);
    let run = turns.choose(&pulls, both, NOW + LONG).unwrap();
    assert_eq!((run.source, run.shares), (Some(3), true), "where one reads, not two");
    assert!(!turns.gives_way(&run, both), "it waited long enough");
    turns.release();
    assert_eq!(turns.choose(&pulls, both, NOW + LONG), None, "and waits anew");
}

#[test]
fn of_two_that_reach_for_a_source_at_once_the_nearer_has_it() {
    let gives_way = |me: usize| {
        let mut turns = Turns::new(me, 4);
        let run = turns.choose(&could(&[(0, 0)], 44 * MB), |_| None, NOW).unwrap();
        turns.gives_way(&run, |rank| [None, Some(0), None, Some(0)][rank])
    };
    assert_eq!([gives_way(1), gives_way(3)], [false, true]);
}

/// What happens to ranks that read from each other.
#[derive(Debug, Clone)]
enum Event {
    /// A rank looks whether it may begin a run.
    Look(usize),
    /// Little is left of its run.
    Tail(usize),
}

const RANKS: usize = 4;

/// Lets ranks take turns, as events say, until nothing is left; most readers of one source at a time. `deaf`: ranks do not heed words.
fn most_readers(needs: &[Vec<usize>], events: &[Event], deaf: bool) -> Result<usize, String> {
    let mut turns: Vec<Turns> = (0..RANKS).map(|me| Turns::new(me, RANKS)).collect();
    let others = |(me, sources): (usize, &Vec<usize>)| {
        let pulls: Vec<_> =
            sources.iter().filter(|&&source| source != me).map(|&source| (0, source)).collect();
        could(&pulls, 44 * MB)
    };
    let mut left: Vec<Vec<Candidate>> = needs.iter().enumerate().map(others).collect();
    let mut most = 0;
    // Each in turn, once the events are over: what is left then takes so many rounds at most.
    let rounds = 2 * needs.iter().map(Vec::len).sum::<usize>() + 2;
    let rest = (0..rounds).flat_map(|_| (0..RANKS).flat_map(|rank| [Event::Tail(rank), Event::Look(rank)]));
    for event in events.iter().cloned().chain(rest) {
        match event {
            Event::Tail(rank) => turns[rank].release(),
            Event::Look(rank) => {
                let words: Vec<_> = turns.iter().map(Turns::holds).collect();
                let reading = |rank: usize| if deaf { None } else { words[rank] };
                if let Some(run) = turns[rank].choose(&left[rank], reading, NOW) {
                    if turns[rank].gives_way(&run, reading) {
                        return Err("it was free".into());
                    }
                    left[rank].retain(|pull| !run.pulls.contains(&(pull.wave, pull.pull)));
                }
            }
        }
        for source in 0..RANKS {
            most = most.max(turns.iter().filter(|turn| turn.holds() == Some(source)).count());
        }
    }
    if left.iter().any(|left| !left.is_empty()) {
        return Err(format!("something is left: {left:?}"));
    }
    Ok(most)
}

fn needs() -> impl Strategy<Value = Vec<Vec<usize>>> {
    proptest::collection::vec(proptest::collection::vec(0..RANKS, 0..9), RANKS)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![(0..RANKS).prop_map(Event::Look), (0..RANKS).prop_map(Event::Tail)];
    proptest::collection::vec(event, 0..60)
}

proptest! {
    #[test]
    fn one_rank_reads_from_a_source_at_a_time_and_all_is_read(needs in needs(), events in events()) {
        prop_assert!(most_readers(&needs, &events, false).map_err(TestCaseError::fail)? <= 1);
    }
}

#[test]
fn ranks_that_heed_no_words_are_found_out() {
    let needs = vec![vec![1, 2, 3], vec![2, 3, 2], vec![3, 3, 1], vec![1, 2, 0]];
    assert_eq!(most_readers(&needs, &[], false), Ok(1));
    assert!(most_readers(&needs, &[], true).unwrap() > 1);
}
