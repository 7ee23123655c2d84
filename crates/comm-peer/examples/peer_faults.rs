//! What happens to a reader when the process that owns the memory is killed, stopped, ends or frees it in the middle of pulls, and to an
//! owner when its reader is killed; what a small pull costs. Wants two devices that reach each other.
//!
//! `peer_faults [legacy|descriptor|fabric]` prints a line per fault; it starts itself again for the other processes.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use eplb_comm::conformance::RankMemory;
use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Deadlines, PrefixStore, ServerOptions, Store, StoreAddress, StoreServer};
use eplb_comm::{FenceState, Memory, Place};
use eplb_comm_peer::Options;
use eplb_comm_peer::process::{Joined, Meeting, join_device};
use eplb_core::{ExpertId, LayerId, ModelLayout, RankId, SlotId, TensorLayout};
use eplb_cuda::ipc::{HandleKind, VmmBlock};
use eplb_cuda::{Context, CudaStream, DeviceBlock, DeviceMemory, Events, Inspector, Puller, Rows};

type Outcome<T> = Result<T, Box<dyn Error>>;

const LAYER: LayerId = LayerId(0);
/// Slots of a rank; the reader lands in its own.
const SLOTS: usize = 8;
/// Bytes of an expert: `BYTES` of the environment, for machines that only pretend to have devices.
static BYTES: LazyLock<usize> =
    LazyLock::new(|| std::env::var("BYTES").ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(44 << 20));
/// Times that all slots are pulled while the fault strikes: about 15 ms on NVLink.
const TIMES: usize = 16;

fn kind(name: &str) -> HandleKind {
    match name {
        "descriptor" => HandleKind::Descriptor,
        "fabric" => HandleKind::Fabric,
        _ => HandleKind::Legacy,
    }
}

fn open(address: &str, corner: &str) -> Outcome<Arc<dyn Store>> {
    let address: StoreAddress = address.parse()?;
    let store = address.open(None, &Deadlines::default(), after(Duration::from_secs(10)))?;
    Ok(Arc::new(PrefixStore::new(store, corner)?))
}

/// A rank on its device.
struct Rank {
    rank: RankId,
    memory: Arc<DeviceMemory>,
    inspector: Inspector,
    /// What the slots lie in.
    block: Option<Block>,
}

#[expect(dead_code, reason = "held, and freed")]
enum Block {
    Plain(DeviceBlock),
    Virtual(VmmBlock),
}

impl Rank {
    fn new(rank: usize, handles: HandleKind) -> Outcome<Self> {
        let context = Context::primary(rank)?;
        let tensor = TensorLayout::contiguous("w", *BYTES);
        let layout = Arc::new(ModelLayout::new(vec![vec![tensor]])?);
        let rank = RankId::at(rank);
        let slots = rank.index() * SLOTS..(rank.index() + 1) * SLOTS;
        let (base, block) = match handles {
            HandleKind::Legacy => {
                let block = DeviceBlock::new(&context, SLOTS * *BYTES)?;
                (block.base(), Block::Plain(block))
            }
            handles => {
                let block = VmmBlock::new(&context, SLOTS * *BYTES, handles)?;
                (block.base(), Block::Virtual(block))
            }
        };
        // SAFETY: the block is as large as all slots, and freed after the memory, but for the fault that frees it too early.
        let memory = unsafe { DeviceMemory::from_raw(&context, rank, layout, slots, vec![vec![base]], 0) }?;
        let mut inspector = Inspector::new(memory.clone())?;
        for slot in memory.slots() {
            inspector.fill(LAYER, SlotId::at(slot), expert(slot))?;
        }
        Ok(Self { rank, memory, inspector, block: Some(block) })
    }

    fn join(&self, store: Arc<dyn Store>) -> Outcome<Joined> {
        let meeting = Meeting {
            rank: self.rank,
            world_size: 2,
            store,
            host: "this".into(),
            deadline: after(Duration::from_secs(10)),
        };
        Ok(join_device(&meeting, self.memory.clone(), &Options::default())?)
    }

    /// Bytes of all slots that are not those of the experts that `expert` names.
    fn wrong(&mut self, expert: impl Fn(usize) -> ExpertId) -> Outcome<u64> {
        let mut wrong = 0;
        for slot in self.memory.slots() {
            wrong += self.inspector.count_wrong(LAYER, SlotId::at(slot), expert(slot))?;
        }
        Ok(wrong)
    }
}

fn expert(slot: usize) -> ExpertId {
    ExpertId(100 + slot as u32)
}

/// A process that does what it is told by lines, and answers by lines.
struct Other {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(arguments: &[&str]) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, answers })
    }

    fn tell(&mut self, line: &str) -> Outcome<()> {
        Ok(writeln!(self.child.stdin.as_mut().ok_or("no pipe")?, "{line}")?)
    }

    fn hear(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn signal(&self, name: &str) -> Outcome<()> {
        Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status()?;
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // One that has ended cannot be killed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The owner of memory, rank 0: `join CORNER`, `check`, `free`, `leave`, `exit`.
fn owner(address: &str, handles: HandleKind) -> Outcome<()> {
    let mut rank = Rank::new(0, handles)?;
    let mut joined: Option<Joined> = None;
    println!("filled");
    for line in std::io::stdin().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("join", corner) => {
                let store = open(address, corner)?;
                drop(joined.replace(rank.join(store)?));
                println!("joined");
            }
            ("check", _) => println!("{}", rank.wrong(expert)?),
            // Against the rules: others have it open.
            ("free", _) => {
                rank.block = None;
                println!("freed");
            }
            ("leave", _) => {
                let left = Instant::now();
                joined = None;
                println!("left after {:.1?}", left.elapsed());
            }
            _ => std::process::exit(0),
        }
    }
    Ok(())
}

/// A reader, rank 1, that pulls until it is killed.
fn reader(address: &str, corner: &str, handles: HandleKind) -> Outcome<()> {
    let rank = Rank::new(1, handles)?;
    let joined = rank.join(open(address, corner)?)?;
    let mut puller = Puller::new(rank.memory.clone(), joined.memories.clone(), 1)?;
    println!("pulling");
    loop {
        pull_all(&mut puller, 1)?;
        puller.finish(after(Duration::from_secs(10)))?;
    }
}

fn pull_all(puller: &mut Puller, times: usize) -> Outcome<()> {
    for _ in 0..times {
        for slot in 0..SLOTS {
            let place = |slot| Place::slot(LAYER, SlotId::at(slot));
            puller.pull(0, place(slot), place(SLOTS + slot))?;
        }
    }
    Ok(())
}

/// Strikes in the middle of pulls; what the reader saw.
fn strike(address: &str, handles: &str, fault: &str) -> Outcome<String> {
    let mut other = Other::start(&["owner", address, handles])?;
    other.hear()?;
    let mut rank = Rank::new(1, kind(handles))?;
    other.tell(&format!("join {fault}"))?;
    let begin = Instant::now();
    let joined = rank.join(open(address, fault)?)?;
    let (joining, said) = (begin.elapsed(), other.hear()?);
    let mut puller = Puller::new(rank.memory.clone(), joined.memories.clone(), 1)?;
    let landed = |slot: usize| expert(slot - SLOTS);
    pull_all(&mut puller, 1)?;
    puller.finish(after(Duration::from_secs(10)))?;
    let before = rank.wrong(landed)?;
    let begin = Instant::now();
    pull_all(&mut puller, TIMES)?;
    let enqueued = begin.elapsed();
    match fault {
        "kill" => other.signal("KILL")?,
        "stop" => other.signal("STOP")?,
        "none" => {}
        told => other.tell(told)?,
    }
    let struck = begin.elapsed();
    let ended = puller.finish(after(Duration::from_secs(10)));
    let all = begin.elapsed();
    let during = rank.wrong(landed);
    std::thread::sleep(Duration::from_millis(100));
    let mut later = Ok(());
    for _ in 0..20 {
        if let (Ok(()), Err(error)) = (
            &later,
            pull_all(&mut puller, 1).and_then(|()| Ok(puller.finish(after(Duration::from_secs(10)))?)),
        ) {
            later = Err(error.to_string());
        }
    }
    let afterwards = rank.wrong(landed);
    let (free, _) = rank.memory.context().memory_info()?;
    drop(puller);
    let closing = Instant::now();
    drop(joined);
    let closing = closing.elapsed();
    let heard = if ["free", "leave"].contains(&fault) { other.hear()? } else { String::new() };
    if fault == "stop" {
        other.signal("CONT")?;
    }
    let gbps = (TIMES * SLOTS * *BYTES) as f64 / all.as_secs_f64() / 1e9;
    Ok(format!(
        "{handles:<10} {fault:<5} {said}: join {joining:.1?}, enqueued in {enqueued:.1?}, struck at {struck:.1?}, pulls {ended:?} after {all:.1?} ({gbps:.0} GB/s); \
         wrong bytes before {before}, during {}, after {}; later pulls {later:?}; closed in {closing:.1?}, {} MiB free {heard}",
        during.map_or_else(|error| error.to_string(), |wrong| wrong.to_string()),
        afterwards.map_or_else(|error| error.to_string(), |wrong| wrong.to_string()),
        free >> 20,
    ))
}

/// Kills a reader in the middle of pulls; what the owner has then, and whether a new reader gets it.
fn reader_dies(address: &str, handles: &str) -> Outcome<String> {
    let mut other = Other::start(&["owner", address, handles])?;
    other.hear()?;
    other.tell("join reader-1")?;
    let mut first = Other::start(&["reader", address, handles, "reader-1"])?;
    let said = [first.hear()?, other.hear()?].join(", ");
    std::thread::sleep(Duration::from_millis(50));
    first.signal("KILL")?;
    first.child.wait()?;
    other.tell("check")?;
    let wrong = other.hear()?;
    other.tell("join reader-2")?;
    let mut rank = Rank::new(1, kind(handles))?;
    let joined = rank.join(open(address, "reader-2")?)?;
    let mut puller = Puller::new(rank.memory.clone(), joined.memories.clone(), 1)?;
    pull_all(&mut puller, 1)?;
    puller.finish(after(Duration::from_secs(10)))?;
    let again = rank.wrong(|slot| expert(slot - SLOTS))?;
    let heard = other.hear()?;
    drop(puller);
    Ok(format!(
        "{handles:<10} reader killed ({said}): owner's wrong bytes {wrong}; a new reader ({heard}): {again} wrong"
    ))
}

/// From enqueuing a pull to seeing its event, by size.
fn small(address: &str, handles: &str) -> Outcome<String> {
    let mut other = Other::start(&["owner", address, handles])?;
    other.hear()?;
    other.tell("join small")?;
    let rank = Rank::new(1, kind(handles))?;
    let joined = rank.join(open(address, "small")?)?;
    let stream = CudaStream::new(rank.memory.context(), 0)?;
    let events = Events::new(rank.memory.context(), 4)?;
    let from = joined.memories[0].rows(Place::slot(LAYER, SlotId(0)), 0)?;
    let to = rank.memory.rows(Place::slot(LAYER, SlotId::at(SLOTS)), 0)?;
    let mut line =
        format!("{handles:<10} from enqueuing to the event, microseconds (median, least, largest of 200):");
    for bytes in [256, 4 << 10, 64 << 10, 1 << 20, 8 << 20, *BYTES] {
        let mut times = Vec::new();
        for _ in 0..220 {
            let begin = Instant::now();
            // SAFETY: both places have at least `bytes` bytes and live until the event is seen; nobody writes the source.
            unsafe { stream.copy(Rows::contiguous(from.base, bytes), Rows::contiguous(to.base, bytes)) }?;
            let enqueued = begin.elapsed();
            let fence = events.record(&stream, rank.rank)?;
            while !fence.poll()? {
                std::hint::spin_loop();
            }
            times.push((begin.elapsed(), enqueued));
        }
        let mut seen: Vec<_> = times[20..].iter().map(|(time, _)| time.as_secs_f64() * 1e6).collect();
        seen.sort_by(f64::total_cmp);
        let mut enqueued: Vec<_> = times[20..].iter().map(|(_, time)| time.as_secs_f64() * 1e6).collect();
        enqueued.sort_by(f64::total_cmp);
        line += &format!(
            "\n    {bytes:>9} bytes: {:.1} ({:.1}..{:.1}), of which the call {:.1}",
            seen[100], seen[0], seen[199], enqueued[100]
        );
    }
    Ok(line)
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["owner", address, handles] => return owner(address, kind(handles)),
        ["reader", address, handles, corner] => return reader(address, corner, kind(handles)),
        _ => {}
    }
    let handles = words.first().copied().unwrap_or("legacy");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    for fault in ["none", "kill", "stop", "exit", "leave", "free"] {
        // Each fault its own store: what one left behind must not help another.
        let server = StoreServer::bind(any, ServerOptions::default())?;
        let address = format!("tcp://{}", server.local_address());
        match strike(&address, handles, fault) {
            Ok(line) => println!("{line}"),
            Err(error) => println!("{handles:<10} {fault:<5} FAILED: {error}"),
        }
    }
    let server = StoreServer::bind(any, ServerOptions::default())?;
    let address = format!("tcp://{}", server.local_address());
    for result in [reader_dies(&address, handles), small(&address, handles)] {
        match result {
            Ok(line) => println!("{line}"),
            Err(error) => println!("{handles:<10} FAILED: {error}"),
        }
    }
    Ok(())
}
