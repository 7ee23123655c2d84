//! Bytes per second of the `gloo` backend against plain Gloo sends and receives of the same tensors, in one run.
//!
//! `cargo run --release -p eplb-comm-gloo --example gloo_throughput [MiB [rounds]]`: two ranks, each of which receives MiB (default 128) of experts
//! from the other, at the same time, over the loopback interface. Beside it two plain loops over the same sizes on connections of
//! their own: `loop` sends and receives one expert after another, all its tensors posted together; `posted` posts everything first
//! and then waits, which needs memory for all of it registered at once and no order. Best of the rounds (default 9), taken in turn: other work on the
//! machine only ever adds time. GB/s are per rank, of what it receives; processor time is that of the whole process, both ranks, in
//! seconds per GB received by one.

use std::ptr::NonNull;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::host::{HostFence, HostMemory};
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{Communicator, Fence};
use eplb_comm_gloo::{Device, Gloo, GlooCommunicator, Options};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};
use gloo_sys::{Buffer, Context, Rendezvous};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Best time of a way, and the processor time of that round.
#[derive(Clone, Copy)]
struct Best {
    wall: f64,
    cpu: f64,
}

impl Best {
    const NONE: Self = Self { wall: f64::INFINITY, cpu: 0.0 };

    /// Runs one round on both ranks at once.
    fn take(&mut self, round: impl Fn(usize) -> Result<(), Failure> + Sync) -> Result<(), Failure> {
        let (start, failed) = (Barrier::new(2), Mutex::new(None));
        let mut begin = (Instant::now(), cpu());
        std::thread::scope(|scope| {
            let run = |rank| {
                start.wait();
                if let Err(error) = round(rank) {
                    *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
                }
            };
            let other = scope.spawn(move || run(1));
            begin = (Instant::now(), cpu());
            run(0);
            other.join()
        })
        .map_err(|_| "a round panicked")?;
        let (wall, used) = (begin.0.elapsed().as_secs_f64(), cpu() - begin.1);
        if wall < self.wall {
            *self = Self { wall, cpu: used };
        }
        failed.into_inner().unwrap_or_default().map_or(Ok(()), Err)
    }
}

/// Processor time of this process, seconds.
fn cpu() -> f64 {
    // SAFETY: all zero bytes is a valid value of this struct of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid for writes.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The store as the binding wants it.
struct Keys(InProcessStore);

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

impl Rendezvous for Keys {
    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.0.set(key, value, later()).map_err(|error| error.to_string())
    }

    fn get(&mut self, key: &str) -> Result<Vec<u8>, String> {
        let found = self.0.wait(&[key], later()).and_then(|()| self.0.get(key, later()));
        found.map_err(|error| error.to_string()).map(Option::unwrap_or_default)
    }
}

/// Runs something that needs both ranks on two threads.
fn both<T: Send>(make: impl Fn(usize) -> Result<T, Failure> + Sync) -> Result<Vec<T>, Failure> {
    std::thread::scope(|scope| {
        let make = &make;
        let ranks: Vec<_> = (0..2).map(|rank| scope.spawn(move || make(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().map_err(|_| "a rank panicked")?).collect()
    })
}

/// Buffers of plain memory, as many as there are tensors to send and to receive.
struct Plain {
    sends: Vec<Buffer>,
    receives: Vec<Buffer>,
    /// Dropped after the buffers: fields drop in their order.
    _memory: Vec<Vec<u8>>,
}

impl Plain {
    fn new(context: &Context, sizes: &[usize], experts: usize) -> Result<Self, Failure> {
        let mut memory: Vec<Vec<u8>> =
            (0..2 * experts).flat_map(|_| sizes.iter().map(|&bytes| vec![1u8; bytes])).collect();
        let mut buffers = Vec::new();
        for bytes in &mut memory {
            // SAFETY: the bytes live in `_memory`, which is dropped after the buffers, and nobody else touches them.
            buffers.push(unsafe { context.buffer(NonNull::from(&mut bytes[..]).cast(), bytes.len()) }?);
        }
        let receives = buffers.split_off(experts * sizes.len());
        Ok(Self { sends: buffers, receives, _memory: memory })
    }

    /// Carries everything, `at_once` messages at a time.
    fn carry(&self, peer: usize, at_once: usize, slot: u64) -> Result<(), Failure> {
        let chunks = self.receives.chunks(at_once).zip(self.sends.chunks(at_once));
        for (number, (receives, sends)) in chunks.enumerate() {
            let slot = |message: usize| slot << 40 | (number * at_once + message) as u64;
            for (message, buffer) in receives.iter().enumerate() {
                buffer.recv(peer, slot(message))?;
            }
            for (message, buffer) in sends.iter().enumerate() {
                buffer.send(peer, slot(message))?;
            }
            for (receive, send) in receives.iter().zip(sends) {
                let _ = (receive.wait_recv(None)?, send.wait_send(None)?);
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1).map_while(|arg| arg.parse::<usize>().ok());
    let (total, rounds) = (args.next().unwrap_or(128) << 20, args.next().unwrap_or(9));
    println!("2 ranks, {} MiB to each per round, best of {rounds}", total >> 20);
    println!(
        "GB/s{:>10} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7} | {:>7} {:>7} | {:>8}",
        "expert", "experts", "gloo", "loop", "posted", "/loop", "/posted", "cpu", "loop", "MiB used"
    );
    for bytes in [64 << 10, 1 << 20, 8 << 20, 44 << 20] {
        measure(bytes, (total / bytes).max(1), rounds)?;
    }
    Ok(())
}

fn measure(bytes: usize, experts: usize, rounds: usize) -> Result<(), Failure> {
    // An expert as servers have them: a large, a half as large, and a small tensor.
    let (w13, w2) = (bytes / 8 * 5, bytes / 8 * 3 - 64);
    let sizes = [w13, w2, 64];
    let tensors = ["w13", "w2", "scale"].into_iter().zip(sizes);
    let tensors = tensors.map(|(name, bytes)| TensorLayout::contiguous(name, bytes)).collect();
    let layout = Arc::new(ModelLayout::new(vec![tensors])?);
    let memories = (0..2)
        .map(|rank| {
            let slots = rank * 2 * experts..(rank + 1) * 2 * experts;
            let memory = HostMemory::new(RankId::at(rank), layout.clone(), slots.clone(), 0)?;
            for slot in slots.take(experts) {
                memory.fill(LayerId(0), SlotId::at(slot), ExpertId::at(slot))?;
            }
            Ok(memory)
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut wave: Vec<Transfer> = (0..2 * experts)
        .map(|n| {
            let (source, nth) = (n % 2, n / 2);
            let slot = source * 2 * experts + nth;
            Transfer {
                layer: LayerId(0),
                expert: ExpertId::at(slot),
                source: RankId::at(source),
                source_slot: SlotId::at(slot),
                dest: RankId::at(1 - source),
                dest_slot: SlotId::at((1 - source) * 2 * experts + experts + nth),
                landing: Landing::InPlace,
            }
        })
        .collect();
    wave.sort_unstable_by_key(|t| (t.layer, t.expert, t.dest, t.dest_slot));
    let wave: Arc<[Transfer]> = wave.into();

    let store = InProcessStore::new();
    let group = both(|rank| {
        let (memory, store): (_, Arc<dyn Store>) = (memories[rank].clone(), Arc::new(store.clone()));
        Ok(Mutex::new(GlooCommunicator::connect(memory, 2, store, Options::default(), later())?))
    })?;
    let Device::Address(loopback) = Options::default().device else { return Err("no address".into()) };
    let contexts = both(|rank| {
        let mut keys = Keys(store.clone());
        let device = Device::Address(loopback);
        Ok(Gloo::load()?.connect(rank, 2, &device, &mut keys, Duration::from_secs(20), None)?)
    })?;
    let plain = contexts.iter().map(|c| Plain::new(c, &sizes, experts)).collect::<Result<Vec<_>, _>>()?;

    let [mut gloo, mut looped, mut posted] = [Best::NONE; 3];
    for round in 0..rounds as u64 {
        gloo.take(|rank| {
            let mut rank = group[rank].lock().map_err(|_| "a round panicked")?;
            let ticket = rank.submit(&wave, Fence::passed(), later())?;
            let done = rank.done(ticket)?;
            let (send, receive) = std::sync::mpsc::channel();
            match done.state().as_any().downcast_ref::<HostFence>() {
                // The receiver waits for it just below.
                Some(fence) => fence.on_settled(move |_| send.send(()).unwrap_or_default()),
                None => return Err("a fence that wakes nobody".into()),
            }
            receive.recv()?;
            rank.poll(ticket)?;
            Ok(())
        })?;
        looped.take(|rank| plain[rank].carry(1 - rank, sizes.len(), 2 * round))?;
        posted.take(|rank| plain[rank].carry(1 - rank, usize::MAX >> 1, 2 * round + 1))?;
    }
    let packing = group[0].lock().map_err(|_| "a round panicked")?.packing_bytes();
    // The bytes are right, whatever the speed.
    for transfer in wave.iter() {
        let memory = &memories[transfer.dest.index()];
        if memory.sample_wrong(transfer.layer, transfer.dest_slot, transfer.expert, 8, 1)? > 0 {
            return Err(format!("wrong bytes in {}", transfer.dest_slot).into());
        }
    }
    let giga = (bytes * experts) as f64 / 1e9;
    println!(
        "{:>14} {experts:>8} {:>7.3} {:>7.3} {:>7.3} {:>7.2} {:>7.2} | {:>7.2} {:>7.2} | {:>8.2}",
        bytes,
        giga / gloo.wall,
        giga / looped.wall,
        giga / posted.wall,
        looped.wall / gloo.wall,
        posted.wall / gloo.wall,
        gloo.cpu / giga,
        looped.cpu / giga,
        packing as f64 / f64::from(1 << 20),
    );
    Ok(())
}
