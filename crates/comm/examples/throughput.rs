//! Bytes per second of the `local` backend against plain memcpy on as many threads, in one run.
//!
//! `cargo run --release -p eplb-comm --example throughput [threads [MiB]]`: rank 1 pulls MiB (default 256) of experts of
//! several sizes from rank 0. Beside it plain copies of as many bytes, cut evenly over the threads: `memcpy` with one call
//! per thread, `pieces` with calls of the size of the largest tensor, as whoever moves experts must. (The C library
//! stores past the caches only above a size of its own, so that pieces can be slower than the whole.) Each by the best of
//! 25 rounds, alternating: other work on the machine only ever adds time. The ratios are `local` to each.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_comm::{CommError, Communicator, Fence, Progress};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

const ROUNDS: usize = 25;

fn best(times: &[Duration]) -> f64 {
    times.iter().min().map_or(f64::NAN, Duration::as_secs_f64)
}

fn pull(rank: &mut LocalCommunicator, wave: &Arc<[Transfer]>) -> Result<Duration, CommError> {
    let begin = Instant::now();
    let ticket = rank.submit(wave, Fence::passed(), begin + Duration::from_secs(60))?;
    let done = rank.done(ticket)?;
    while !done.poll()? {
        std::thread::sleep(Duration::from_micros(20));
    }
    let time = begin.elapsed();
    assert_eq!(rank.poll(ticket)?, Progress::Done);
    Ok(time)
}

fn plain(from: &[u8], to: &mut [u8], threads: usize, piece: usize) -> Duration {
    let share = from.len().div_ceil(threads);
    let ready = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let parts = from.chunks(share).zip(to.chunks_mut(share));
        let copies: Vec<_> = parts
            .map(|(from, to)| {
                let ready = &ready;
                scope.spawn(move || {
                    ready.wait();
                    from.chunks(piece)
                        .zip(to.chunks_mut(piece))
                        .for_each(|(from, to)| to.copy_from_slice(from));
                })
            })
            .collect();
        let begin = Instant::now();
        ready.wait();
        copies.into_iter().for_each(|copy| copy.join().unwrap_or_default());
        begin.elapsed()
    })
}

fn main() -> Result<(), CommError> {
    let mut args = std::env::args().skip(1).map_while(|arg| arg.parse::<usize>().ok());
    let threads = args.next().unwrap_or(2);
    let total = args.next().unwrap_or(256) << 20;
    println!("{threads} threads, {} MiB per round, best of {ROUNDS}", total >> 20);
    println!(
        "GB/s{:>10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "expert", "experts", "local", "memcpy", "pieces", "ratio", "ratio"
    );
    let from = vec![1u8; total];
    let mut to = vec![2u8; total];
    for bytes in [4 << 10, 64 << 10, 1 << 20, 8 << 20, 44 << 20] {
        let experts = (total / bytes).max(1);
        // An expert as servers have them: a large, a half as large, and a small tensor.
        let (w13, w2) = (bytes / 8 * 5, bytes / 8 * 3 - 64);
        let sizes = [("w13", w13), ("w2", w2), ("scale", 64)];
        let tensors = sizes.map(|(name, bytes)| TensorLayout::contiguous(name, bytes)).to_vec();
        let layout = Arc::new(ModelLayout::new(vec![tensors])?);
        let memories = (0..2)
            .map(|rank| {
                HostMemory::new(
                    RankId(rank),
                    layout.clone(),
                    rank as usize * experts..(rank as usize + 1) * experts,
                    0,
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let layer = LayerId(0);
        for memory in &memories {
            for slot in 0..experts {
                memory.fill(layer, SlotId::at(memory.rank().index() * experts + slot), ExpertId::at(slot))?;
            }
        }
        let wave: Arc<[Transfer]> = (0..experts)
            .map(|expert| Transfer {
                layer,
                expert: ExpertId::at(expert),
                source: RankId(0),
                source_slot: SlotId::at(expert),
                dest: RankId(1),
                dest_slot: SlotId::at(experts + expert),
                landing: Landing::InPlace,
            })
            .collect();
        let mut group = LocalGroup::new(memories, threads)?;
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        let moved = (experts * bytes).min(total);
        for _ in 0..ROUNDS {
            times[0].push(pull(&mut group[1], &wave)?);
            times[1].push(plain(&from[..moved], &mut to[..moved], threads, total));
            times[2].push(plain(&from[..moved], &mut to[..moved], threads, w13));
        }
        let [local, whole, pieces] = times.map(|times| moved as f64 / best(&times) / 1e9);
        let ratios = (local / whole, local / pieces);
        println!(
            "{bytes:>14} {experts:>8} {local:>8.2} {whole:>8.2} {pieces:>8.2} {:>8.2} {:>8.2}",
            ratios.0, ratios.1
        );
    }
    Ok(())
}
