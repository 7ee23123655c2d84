//! Ranks that are processes and take turns at sources: the same order as on devices, on memory that they share.
//!
//! Each test starts this program again for each rank, and talks with it over pipes. A rank is stopped, or killed, while it has its turn: its
//! copies are held until it is, so that it has it for sure.

use std::io::{BufRead, BufReader, Lines, Write, stdin};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use eplb_comm::store::{FileStore, Limits};
use eplb_comm::{Communicator, Progress, Ticket};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout};
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::words::Ready;

const RANKS: usize = 3;
/// Slots of a rank: experts of its own in the first, those of the others in the rest.
const SLOTS: usize = 12;
const OWN: usize = 4;
/// Bytes of an expert with which runs are worth turns, and of one with which they are not.
const LARGE: usize = 4 << 20;
const SMALL: usize = 1000;
const LAYER: LayerId = LayerId(0);
/// Longest wait of a rank for anything.
const LONG: Duration = Duration::from_secs(120);
/// What a process is to do: its rank, the bytes of an expert, its part, what is planted, and the folder of the store.
const CASE: &str = "EPLB_TEST_TURNS";
/// Before what a rank says.
const SAID: &str = "SAID ";

/// What is broken of a rank's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// It takes no turns.
    Plain,
    /// It does not heed what others say.
    Deaf,
    /// It never says that a source is free again.
    Holds,
}

impl Planted {
    const ALL: [(&str, Self); 4] =
        [("nothing", Self::Nothing), ("plain", Self::Plain), ("deaf", Self::Deaf), ("holds", Self::Holds)];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, planted)| *planted == self).unwrap().0
    }
}

/// What a test sees of a rank.
#[derive(Debug, Default)]
struct Seen {
    /// Turns that it took.
    turns: AtomicUsize,
    /// The source that it has its turn at, and one; 0 for none.
    holds: AtomicUsize,
    /// How often it kept a source, against the rules.
    kept: AtomicUsize,
    /// Turns that it took before it said that others may read here.
    early: AtomicUsize,
    /// Sources of its pulls, in their order.
    pulled: Mutex<Vec<usize>>,
}

#[derive(Debug)]
struct Watched {
    pulls: HostPulls,
    seen: Arc<Seen>,
}

impl Pulls for Watched {
    fn pull(&self, transfer: &Transfer, fenced: bool) -> Result<Pulled, CommError> {
        self.seen.pulled.lock().unwrap().push(transfer.source.index());
        self.pulls.pull(transfer, fenced)
    }

    fn bytes(&self, transfer: &Transfer) -> u64 {
        self.pulls.bytes(transfer)
    }

    fn fences(&self, queues: u64) -> Result<Vec<Fence>, CommError> {
        self.pulls.fences(queues)
    }
}

#[derive(Debug)]
struct Words {
    rank: usize,
    pages: Pages,
    seen: Arc<Seen>,
    planted: Planted,
}

impl Signals for Words {
    fn ready(&self, rank: usize) -> Option<Ready> {
        self.pages.ready(rank)
    }

    fn announce(&self, ready: Ready) {
        self.pages.announce(ready);
    }

    fn give_up(&self) {
        self.pages.give_up();
    }

    fn reading(&self, rank: usize) -> Option<usize> {
        self.pages.reading(rank).filter(|_| self.planted != Planted::Deaf)
    }

    fn read(&self, source: Option<usize>) {
        if source.is_none() && self.planted == Planted::Holds {
            self.seen.kept.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let is_early = source.is_some() && self.pages.ready(self.rank) == Some(Ready::default());
        self.seen.early.fetch_add(usize::from(is_early), Ordering::SeqCst);
        self.pages.read(source);
        self.seen.turns.fetch_add(usize::from(source.is_some()), Ordering::SeqCst);
        self.seen.holds.store(source.map_or(0, |source| source + 1), Ordering::SeqCst);
    }
}

/// One rank of a test, in its process.
struct Rank {
    rank: usize,
    memory: Arc<HostMemory>,
    communicator: PeerCommunicator,
    seen: Arc<Seen>,
}

impl Rank {
    /// Meets the others. Its copies begin once `gate` is passed.
    fn join(rank: usize, bytes: usize, planted: Planted, folder: &str, gate: Arc<HostFence>) -> Self {
        let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", bytes)]]).unwrap());
        let slots = SLOTS * rank..SLOTS * (rank + 1);
        let memory = HostMemory::shared(RankId::at(rank), layout, slots.clone(), 0).unwrap();
        for slot in slots.take(OWN) {
            memory.fill(LAYER, SlotId::at(slot), ExpertId::at(slot)).unwrap();
        }
        let deadline = Instant::now() + LONG;
        let store = Arc::new(FileStore::open(folder.as_ref(), Limits::default(), deadline).unwrap());
        let meeting =
            Meeting { rank: RankId::at(rank), world_size: RANKS, store, host: "here".into(), deadline };
        let options = Options { turns: planted != Planted::Plain, ..Options::default() };
        let seen = Arc::new(Seen::default());
        let parts = |pulls: HostPulls, pages| -> (Box<dyn Pulls>, Box<dyn Signals>) {
            pulls.queue.push(Op::Hold(gate));
            let words = Words { rank, pages, seen: seen.clone(), planted };
            (Box::new(Watched { pulls, seen: seen.clone() }), Box::new(words))
        };
        let communicator = join(&meeting, memory.clone(), &options, parts).unwrap();
        Self { rank, memory, communicator, seen }
    }

    fn submit(&mut self, wave: &Arc<[Transfer]>) -> Ticket {
        self.communicator.submit(wave, Fence::passed(), Instant::now() + LONG).unwrap()
    }

    /// Waits for what it receives in a wave; wrong bytes in it.
    fn end(&mut self, wave: &[Transfer], ticket: Ticket) -> u64 {
        while self.communicator.poll(ticket).unwrap() != Progress::Done {
            std::thread::sleep(Duration::from_micros(200));
        }
        let mine = wave.iter().filter(|transfer| transfer.dest.index() == self.rank);
        mine.map(|t| self.memory.count_wrong(LAYER, t.dest_slot, t.expert).unwrap()).sum()
    }

    /// Says how it went, and waits until the others need nothing of it any more.
    fn leave(self, wrong: u64) {
        let [turns, kept, early] =
            [&self.seen.turns, &self.seen.kept, &self.seen.early].map(|n| n.load(Ordering::SeqCst));
        let pulled: String = self.seen.pulled.lock().unwrap().iter().map(ToString::to_string).collect();
        say(&format!("{wrong} wrong, {turns} turns, {kept} kept, {early} early, pulled {pulled}"));
        heed("leave");
    }
}

/// Experts of `source` to `dest`: `count` of its own, the first of which is number `first`.
fn moves(source: usize, dest: usize, count: usize, first: usize) -> impl Iterator<Item = Transfer> {
    // The others, one after another.
    let place = (source + RANKS - dest) % RANKS;
    (0..count).map(move |number| {
        let slot = SLOTS * source + (first + number) % OWN;
        Transfer {
            layer: LAYER,
            expert: ExpertId::at(slot),
            source: RankId::at(source),
            source_slot: SlotId::at(slot),
            dest: RankId::at(dest),
            dest_slot: SlotId::at(SLOTS * dest + OWN * place + number),
            landing: Landing::InPlace,
        }
    })
}

/// Every rank's experts to all others, with another first one in every wave.
fn all_to_all(wave: usize) -> Arc<[Transfer]> {
    let pairs = (0..RANKS).flat_map(|source| (0..RANKS).map(move |dest| (source, dest)));
    let others = pairs.filter(|(source, dest)| source != dest);
    others.flat_map(|(source, dest)| moves(source, dest, OWN, wave)).collect()
}

/// Ranks 1 and 2 read from rank 0; rank 1 from rank 2, too, if that goes on.
fn from_one(goes_on: bool) -> Arc<[Transfer]> {
    let more = moves(2, 1, if goes_on { OWN - 1 } else { 0 }, 0);
    moves(0, 1, OWN, 0).chain(moves(0, 2, OWN, 0)).chain(more).collect()
}

fn say(what: &str) {
    println!("\n{SAID}{what}");
}

/// Waits until the test says a word.
fn heed(word: &str) {
    let mut line = String::new();
    stdin().read_line(&mut line).unwrap();
    assert_eq!(line.trim(), word, "the test has ended");
}

#[test]
#[ignore = "run by the others, as a process for each rank"]
fn a_rank() {
    let case = std::env::var(CASE).expect("this test is run by the others");
    let words: Vec<&str> = case.splitn(5, ' ').collect();
    let (rank, bytes) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let planted = Planted::ALL.iter().find(|(word, _)| *word == words[3]).unwrap().1;
    let gate = HostFence::new();
    // Of three ranks that read from one, the last has its turn and does not come to an end.
    let held = words[2] != "all" && rank == 2;
    if !held {
        gate.pass();
    }
    let mut rank = Rank::join(rank, bytes, planted, words[4], gate.clone());
    if words[2] == "all" {
        let wave = |rank: &mut Rank, number| {
            let wave = all_to_all(number);
            let ticket = rank.submit(&wave);
            rank.end(&wave, ticket)
        };
        let wrong = (0..3).map(|number| wave(&mut rank, number)).sum();
        return rank.leave(wrong);
    }
    let wave = from_one(words[2] == "goes-on");
    if rank.rank == 1 {
        heed("go");
    }
    let ticket = rank.submit(&wave);
    if held {
        let limit = Instant::now() + LONG;
        while rank.seen.holds.load(Ordering::SeqCst) != 1 {
            assert!(Instant::now() < limit, "its turn does not come");
            std::thread::yield_now();
        }
        say("it is my turn");
        heed("go on");
        gate.pass();
    }
    let wrong = rank.end(&wave, ticket);
    rank.leave(wrong);
}

/// A rank as the test has it.
struct Process {
    child: Child,
    tell: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn tell(&mut self, word: &str) {
        writeln!(self.tell, "{word}").unwrap();
    }

    /// What it says next.
    fn hear(&mut self) -> String {
        let line = self.said.find_map(|line| Some(line.unwrap().split_once(SAID)?.1.to_owned()));
        line.expect("it says something before it ends")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended cannot be killed any more.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How a rank ended.
#[derive(Debug)]
struct End {
    wrong: u64,
    turns: usize,
    kept: usize,
    early: usize,
    pulled: Vec<u8>,
}

impl End {
    fn of(said: &str) -> Self {
        let (numbers, pulled) = said.split_once("pulled ").unwrap();
        let numbers: Vec<usize> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let pulled = pulled.bytes().map(|source| source - b'0').collect();
        Self { wrong: numbers[0] as u64, turns: numbers[1], kept: numbers[2], early: numbers[3], pulled }
    }
}

/// Starts a process for each rank, with a folder that must outlive them.
fn start(bytes: usize, part: &str, planted: [Planted; RANKS]) -> (Vec<Process>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let process = |(rank, planted): (usize, Planted)| {
        let case = format!("{rank} {bytes} {part} {} {}", planted.word(), folder.path().display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "process::host::tests::a_rank", "--nocapture"])
            .env(CASE, case)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Process { child, tell, said: BufReader::new(said).lines() }
    };
    (planted.into_iter().enumerate().map(process).collect(), folder)
}

/// Lets all ranks exchange all; how each ended.
fn exchange(bytes: usize, planted: [Planted; RANKS]) -> Vec<End> {
    let (mut ranks, _folder) = start(bytes, "all", planted);
    let ends: Vec<End> = ranks.iter_mut().map(|rank| End::of(&rank.hear())).collect();
    ranks.iter_mut().for_each(|rank| rank.tell("leave"));
    assert!(ranks.iter_mut().all(|rank| rank.child.wait().unwrap().success()));
    ends
}

#[test]
fn processes_take_turns_and_every_byte_arrives() {
    let ends = exchange(LARGE, [Planted::Nothing; RANKS]);
    // Three waves from two sources each.
    assert!(ends.iter().all(|end| end.wrong == 0 && end.turns >= 6 && end.pulled.len() == 24), "{ends:?}");
    assert!(
        ends.iter().all(|end| end.early == 0),
        "a rank that is held up in its turn keeps none from reading there: {ends:?}"
    );
    // What is small takes none, and neither does a rank that is told so.
    let ends = exchange(SMALL, [Planted::Nothing; RANKS]);
    assert!(ends.iter().all(|end| end.wrong == 0 && end.turns == 0 && end.pulled.len() == 24), "{ends:?}");
    let ends = exchange(LARGE, [Planted::Nothing, Planted::Plain, Planted::Nothing]);
    assert!(ends.iter().all(|end| end.wrong == 0), "{ends:?}");
    assert_eq!(ends.iter().map(|end| end.turns > 0).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn one_that_never_lets_go_and_one_that_heeds_nobody_hold_nobody_up() {
    let ends = exchange(LARGE, [Planted::Holds, Planted::Deaf, Planted::Nothing]);
    assert!(ends.iter().all(|end| end.wrong == 0 && end.pulled.len() == 24), "{ends:?}");
    assert!(ends[0].kept > 0, "{ends:?}");
}

/// Stops rank 2 while it has its turn at rank 0, and lets rank 1 read from both; how ranks 1 and 2 ended.
fn stopped(planted: Planted) -> [End; 2] {
    let (mut ranks, _folder) = start(LARGE, "goes-on", [Planted::Nothing, planted, Planted::Nothing]);
    assert_eq!(ranks[2].hear(), "it is my turn");
    ranks[2].signal(Signal::STOP);
    ranks[1].tell("go");
    let first = End::of(&ranks[1].hear());
    ranks[2].signal(Signal::CONT);
    ranks[2].tell("go on");
    let second = End::of(&ranks[2].hear());
    ranks.iter_mut().for_each(|rank| rank.tell("leave"));
    [first, second]
}

#[test]
fn what_a_stopped_rank_holds_is_read_later_but_read() {
    // Where it reads, others read last; the word of one that is stopped holds nobody up.
    let heeds = |end: &End| end.pulled == [2, 2, 2, 0, 0, 0, 0];
    let ends = stopped(Planted::Nothing);
    assert!(ends.iter().all(|end| end.wrong == 0) && heeds(&ends[0]), "{ends:?}");
    assert_eq!(ends[1].pulled, [0; OWN], "it goes on where it was");
    let ends = stopped(Planted::Deaf);
    assert!(ends.iter().all(|end| end.wrong == 0) && !heeds(&ends[0]), "{ends:?}");
}

#[test]
fn what_a_dead_rank_holds_is_read() {
    let (mut ranks, _folder) = start(LARGE, "dies", [Planted::Nothing; RANKS]);
    assert_eq!(ranks[2].hear(), "it is my turn");
    ranks[2].signal(Signal::KILL);
    ranks[1].tell("go");
    let end = End::of(&ranks[1].hear());
    assert!(end.wrong == 0 && end.pulled == [0; OWN], "{end:?}");
}
