//! The binding on the real library. Where the build made none these tests fail: `make test` installs what it takes.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use gloo_sys::{Context, Device, Gloo, Kind, Rendezvous, Secret, Wait};

const SOON: Duration = Duration::from_secs(20);

const SECRET: Secret = *b"sixteen of bytes";

/// A map between threads.
#[derive(Clone, Default)]
struct Shared(Arc<(Mutex<Map>, Condvar)>);

type Map = HashMap<String, Vec<u8>>;

impl Rendezvous for Shared {
    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.0.0.lock().unwrap().insert(key.into(), value.into());
        self.0.1.notify_all();
        Ok(())
    }

    fn get(&mut self, key: &str) -> Result<Vec<u8>, String> {
        let map = self.0.0.lock().unwrap();
        let (map, late) = self.0.1.wait_timeout_while(map, SOON, |map| !map.contains_key(key)).unwrap();
        if late.timed_out() { Err("nobody came".into()) } else { Ok(map[key].clone()) }
    }
}

/// Where ranks wait for each other, once. If one of them fails before, the others fail too.
struct Meeting {
    ranks: usize,
    come: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    fn of(ranks: usize) -> Self {
        Self { ranks, come: Mutex::new(0), changed: Condvar::new() }
    }

    fn wait(&self) {
        let mut come = self.come.lock().unwrap();
        *come += 1;
        self.changed.notify_all();
        let (come, late) =
            self.changed.wait_timeout_while(come, 3 * SOON, |come| *come < self.ranks).unwrap();
        let come = *come;
        assert!(!late.timed_out(), "of {} ranks {come} have come", self.ranks);
    }
}

fn loopback() -> Device {
    Device::Address(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Runs `work` on every rank of a mesh, each on a thread.
fn on_mesh<T: Send>(ranks: usize, work: impl Fn(Context) -> T + Sync) -> Vec<T> {
    let (store, connected) = (Shared::default(), Meeting::of(ranks));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let (mut store, work, connected) = (store.clone(), &work, &connected);
                scope.spawn(move || {
                    let gloo = Gloo::load().expect("libeplb_gloo.so");
                    let context = gloo.connect(rank, ranks, &loopback(), &mut store, SOON, Some(&SECRET));
                    // A rank that is done may leave only when no other still connects to it.
                    connected.wait();
                    work(context.unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Sends or receives all of `bytes` and waits.
fn pass(context: &Context, bytes: &mut [u8], to: Option<usize>, from: Option<usize>, slot: u64) {
    let base = NonNull::from(&mut *bytes).cast();
    // SAFETY: the buffer is dropped here, before the borrow of `bytes` ends.
    let buffer = unsafe { context.buffer(base, bytes.len()) }.unwrap();
    if let Some(to) = to {
        buffer.send(to, slot).unwrap();
        assert_eq!(buffer.wait_send(None).unwrap(), Wait::Complete);
    }
    if let Some(from) = from {
        buffer.recv(from, slot).unwrap();
        assert_eq!(buffer.wait_recv(None).unwrap(), Wait::Complete);
    }
}

#[test]
fn bytes_arrive_in_their_slots() {
    let received = on_mesh(2, |context| {
        let mut bytes = [[0u8; 1000], [0u8; 1000]];
        match context.rank() {
            0 => {
                // The other way round than they are received.
                for slot in [1, 0] {
                    bytes[slot].fill(7 + slot as u8);
                }
                std::thread::scope(|scope| {
                    for (slot, bytes) in bytes.iter_mut().enumerate().rev() {
                        let context = &context;
                        scope.spawn(move || pass(context, bytes, Some(1), None, slot as u64));
                    }
                });
            }
            _ => {
                for (slot, bytes) in bytes.iter_mut().enumerate() {
                    pass(&context, bytes, None, Some(0), slot as u64);
                }
            }
        }
        bytes
    });
    assert_eq!(received[1], [[7; 1000], [8; 1000]]);
}

#[test]
fn collectives_reach_all() {
    let results = on_mesh(3, |context| {
        let rank = context.rank();
        context.barrier(1, SOON).unwrap();
        let mut bytes = [rank as u8; 33];
        context.broadcast(&mut bytes, 2, 2, SOON).unwrap();
        let mut numbers = [1u64 << rank, u64::MAX, rank as u64];
        context.all_reduce_sum(&mut numbers, 3, SOON).unwrap();
        (bytes, numbers)
    });
    for result in results {
        assert_eq!(result, ([2; 33], [7, u64::MAX.wrapping_mul(3), 3]));
    }
}

#[test]
fn a_wait_is_cancelled_and_the_operation_goes_on() {
    on_mesh(2, |context| {
        let mut bytes = [5u8; 8];
        if context.rank() == 1 {
            context.barrier(1, SOON).unwrap();
            pass(&context, &mut bytes, Some(0), None, 9);
            return;
        }
        let mut target = [0u8; 8];
        // SAFETY: the buffer is dropped before `target`, which nobody touches before the last wait.
        let buffer = unsafe { context.buffer(NonNull::from(&mut target).cast(), 8) }.unwrap();
        buffer.recv(1, 9).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| buffer.wait_recv(None));
            std::thread::sleep(Duration::from_millis(20));
            buffer.cancel_recv();
            assert_eq!(waiting.join().unwrap().unwrap(), Wait::Cancelled);
        });
        // A cancellation before the wait counts too.
        buffer.cancel_recv();
        assert_eq!(buffer.wait_recv(None).unwrap(), Wait::Cancelled);
        context.barrier(1, SOON).unwrap();
        assert_eq!(buffer.wait_recv(None).unwrap(), Wait::Complete);
        drop(buffer);
        assert_eq!(target, [5; 8]);
    });
}

#[test]
fn a_wait_that_runs_out_breaks_every_connection() {
    // The fact that makes comm-gloo cancel instead of waiting for short times.
    on_mesh(3, |context| {
        let mut bytes = [1u8; 8];
        context.barrier(1, SOON).unwrap();
        if context.rank() == 0 {
            // SAFETY: the buffer is dropped before `bytes`.
            let buffer = unsafe { context.buffer(NonNull::from(&mut bytes).cast(), 8) }.unwrap();
            buffer.recv(1, 9).unwrap();
            let error = buffer.wait_recv(Some(Duration::from_millis(20))).unwrap_err();
            assert_eq!((error.call, error.kind), ("waitRecv", Kind::Io));
        }
        // Rank 2 had nothing to do with it.
        let error = context.barrier(2, SOON).unwrap_err();
        assert_eq!(error.kind, Kind::Io, "{error}");
    });
}

#[test]
fn a_freed_buffer_is_written_no_more() {
    const BYTES: usize = 64 << 20;
    let over = Meeting::of(2);
    on_mesh(2, |context| {
        let mut bytes = vec![1u8; BYTES];
        let base = NonNull::from(&mut bytes[..]).cast();
        // SAFETY: the buffer is dropped before `bytes` is looked at.
        let buffer = unsafe { context.buffer(base, BYTES) }.unwrap();
        context.barrier(1, SOON).unwrap();
        if context.rank() == 0 {
            buffer.send(1, 3).unwrap();
            over.wait();
            return;
        }
        bytes.fill(0);
        buffer.recv(0, 3).unwrap();
        let deadline = Instant::now() + SOON;
        // SAFETY: a look at one byte that Gloo's thread may be writing, as another process would see it.
        while unsafe { std::ptr::read_volatile(base.as_ptr()) } == 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        drop(buffer);
        let arrived = bytes.iter().filter(|&&byte| byte == 1).count();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(bytes.iter().filter(|&&byte| byte == 1).count(), arrived);
        assert!(arrived > 0);
        context.close();
        over.wait();
    });
}

#[test]
fn a_broken_connection_ends_a_receive_that_waits_for_nothing() {
    // What comm-gloo rests on to see a death: a send whose peer goes away half way may wait for ever.
    on_mesh(3, |context| {
        let mut bytes = [1u8; 8];
        // SAFETY: the buffer is dropped before `bytes`.
        let buffer = unsafe { context.buffer(NonNull::from(&mut bytes).cast(), 8) }.unwrap();
        let me = context.rank();
        // One buffer, as many receives as there are peers; nobody sends to that slot.
        (0..3).filter(|&peer| peer != me).for_each(|peer| buffer.recv(peer, 77).unwrap());
        context.barrier(1, SOON).unwrap();
        if me == 2 {
            return context.close();
        }
        let error = buffer.wait_recv(Some(SOON)).unwrap_err();
        assert_eq!(error.kind, Kind::Io);
        assert!(!error.detail.contains("Timed out"), "{error}");
    });
}

#[test]
fn failures_come_back_as_errors() {
    let gloo = Gloo::load().expect("libeplb_gloo.so");
    let connect = |rank, world, device: &Device, store: &mut dyn Rendezvous| {
        gloo.connect(rank, world, device, store, Duration::from_millis(500), Some(&SECRET)).unwrap_err()
    };
    let mut store = Shared::default();
    assert_eq!(connect(0, 1, &loopback(), &mut store).kind, Kind::Invalid);
    assert_eq!(connect(2, 2, &loopback(), &mut store).kind, Kind::Invalid);
    let error = connect(0, 2, &Device::Interface("no-such-if".into()), &mut store);
    assert!(error.detail.contains("no-such-if"), "{error}");
    connect(0, 2, &Device::Interface("nul\0".into()), &mut store);

    struct Broken(bool);
    impl Rendezvous for Broken {
        fn set(&mut self, _: &str, _: &[u8]) -> Result<(), String> {
            assert!(!self.0, "planted");
            Err("disk full".into())
        }
        fn get(&mut self, _: &str) -> Result<Vec<u8>, String> {
            Err("unused".into())
        }
    }
    let error = connect(0, 2, &loopback(), &mut Broken(false));
    assert_eq!((error.kind, error.detail.as_str()), (Kind::Store, "disk full"));
    // A panic does not cross the C++ frames.
    let error = connect(0, 2, &loopback(), &mut Broken(true));
    assert!(error.detail.contains("panicked") && error.detail.contains("planted"), "{error}");

    /// What no rank would write.
    struct Junk(Vec<u8>);
    impl Rendezvous for Junk {
        fn set(&mut self, _: &str, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
        fn get(&mut self, _: &str) -> Result<Vec<u8>, String> {
            Ok(self.0.clone())
        }
    }
    for junk in [Vec::new(), vec![7; 3]] {
        connect(0, 2, &loopback(), &mut Junk(junk));
    }

    on_mesh(2, |context| {
        let mut bytes = [0u8; 8];
        // SAFETY: the buffer is dropped before `bytes`.
        let none = unsafe { context.buffer(NonNull::from(&mut bytes).cast(), 0) };
        assert_eq!(none.unwrap_err().kind, Kind::Invalid);
        // SAFETY: as above.
        let buffer = unsafe { context.buffer(NonNull::from(&mut bytes).cast(), 8) }.unwrap();
        for peer in [context.rank(), 2, usize::MAX] {
            assert_eq!(buffer.send(peer, 0).unwrap_err().kind, Kind::Invalid);
            assert_eq!(buffer.recv(peer, 0).unwrap_err().kind, Kind::Invalid);
        }
        assert_eq!(context.broadcast(&mut bytes, 7, 0, SOON).unwrap_err().kind, Kind::Invalid);
    });
}

/// A peer that knows the secret and then says what no Gloo says ends its connection with an error, and not the process.
#[test]
fn a_peer_that_breaks_the_protocol_is_an_error() {
    let mut store = Shared::default();
    let mut theirs = store.clone();
    let peer = std::thread::spawn(move || {
        let mut blob = theirs.get("0").unwrap();
        let at = blob.windows(8).position(|w| w[..2] == [2, 0] && w[4..8] == [127, 0, 0, 1]).unwrap();
        let port = u16::from_be_bytes([blob[at + 2], blob[at + 3]]);
        // The larger address connects: this one, which nobody visits.
        blob[at + 2..at + 4].fill(0xff);
        theirs.set("1", &blob).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let ranks = [1u32, 0].map(u32::to_le_bytes).concat();
        // The greeting comes in two parts, as it may over a network.
        stream.write_all(&[b"eplbgrt1", &SECRET[..7]].concat()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&[&SECRET[7..], &ranks].concat()).unwrap();
        stream
    });
    let context = Gloo::load().unwrap().connect(0, 2, &loopback(), &mut store, SOON, Some(&SECRET)).unwrap();
    let mut stream = peer.join().unwrap();
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is dropped before `bytes` is.
    let buffer = unsafe { context.buffer(NonNull::from(&mut bytes).cast(), 8) }.unwrap();
    buffer.recv(1, 5).unwrap();
    // Bytes for another slot than the one that is waited for.
    let frame: Vec<u8> = [56u64, 1, 99, 0, 8, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    stream.write_all(&frame).unwrap();
    let error = buffer.wait_recv(Some(SOON)).unwrap_err();
    assert!(error.kind == Kind::Io && error.detail.contains("broke Gloo's protocol"), "{error}");
}
