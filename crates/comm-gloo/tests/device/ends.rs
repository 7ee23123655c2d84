//! Ends amid copies of the device: an abort, a deadline, a device that fails, a drop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::RankMemory as _;
use eplb_comm::{CommError, Communicator, Fence, Place};
use eplb_comm_gloo::{GlooCommunicator, Options, Planted};
use eplb_core::{RankId, SlotId, Transfer};

use crate::hold::{Hold, TO_DEVICE, TO_HOST};
use crate::ranks::{L, World, connect, outcome, ring, soon, submit};

/// The expert of slot 0 goes to slot 3, of rank 1.
fn one() -> Arc<[Transfer]> {
    ring(2)[..1].into()
}

fn group(world: &World, planted: &[Planted]) -> Vec<GlooCommunicator> {
    connect(&world.memories, |_| Options {
        planted: planted.to_vec(),
        piece_bytes: 100_000,
        packing_bytes: 0,
        ..Options::default()
    })
}

fn is_passed(fence: &Fence) -> bool {
    fence.poll().unwrap()
}

pub(crate) fn an_abort_is_quiet_when_the_device_is() {
    for way in [TO_DEVICE, TO_HOST] {
        let mut world = World::new(2, &[1_000_000, 40]);
        let mut ranks = group(&world, &[]);
        let rank = usize::from(way == TO_DEVICE);
        let hold = Hold::on(way);
        let tickets = submit(&mut ranks, &one(), soon());
        hold.wait(1);
        let quiet = ranks[rank].abort("enough");
        assert!(!hold.sees(|| is_passed(&quiet)), "way {way}: a copy was under way");
        drop(hold);
        quiet.wait(RankId::at(rank), "rest", soon()).unwrap();
        let place = Place::slot(L, SlotId(3));
        let bytes = world.looks[1].read(place).unwrap();
        let error = outcome(&mut ranks[rank], tickets[rank]).unwrap_err();
        assert!(matches!(&error, CommError::Aborted { cause, .. } if cause == "enough"), "{error:?}");
        let told = outcome(&mut ranks[1 - rank], tickets[1 - rank]).unwrap_err().to_string();
        assert!(told.contains(&format!("rank {rank}")) && told.contains("enough"), "{told}");
        if way == TO_DEVICE {
            assert!(world.looks[1].read(place).unwrap() == bytes, "bytes came after it was quiet");
        }
        assert!(world.wrong(3, 0) > 0, "the wave was stopped amid its bytes");
        // And once more from here, with the group made anew.
        let mut ranks = group(&world, &[]);
        let tickets = submit(&mut ranks, &one(), soon());
        assert_eq!([0, 1].map(|rank| outcome(&mut ranks[rank], tickets[rank])), [Ok(()), Ok(())]);
        assert_eq!(world.wrong(3, 0), 0);
    }
    // Planted: it does not wait for its copies.
    let world = World::new(2, &[1_000_000, 40]);
    let mut ranks = group(&world, &[Planted::QuietEarly]);
    let hold = Hold::on(TO_DEVICE);
    submit(&mut ranks, &one(), soon());
    hold.wait(1);
    let quiet = ranks[1].abort("enough");
    quiet.wait(RankId(1), "the planted fault", soon()).unwrap();
    // Packing memory, and that of the device, must outlive the copy all the same.
    hold.end();
}

pub(crate) fn a_device_that_is_late_costs_a_deadline() {
    let world = World::new(2, &[1_000_000, 40]);
    let mut ranks = group(&world, &[]);
    let hold = Hold::on(TO_HOST);
    let tickets = submit(&mut ranks, &one(), Instant::now() + Duration::from_secs(3));
    hold.wait(1);
    for (rank, &ticket) in ranks.iter_mut().zip(&tickets) {
        let said = outcome(rank, ticket).unwrap_err().to_string();
        assert!(said.contains("wave of ticket 0 (1 of 1 transfers left)"), "{said}");
    }
    let quiet = ranks[0].abort("late");
    assert!(!hold.sees(|| is_passed(&quiet)), "a copy was under way");
    drop(hold);
    quiet.wait(RankId(0), "rest", soon()).unwrap();
}

pub(crate) fn a_device_that_fails_is_named_by_all() {
    let world = World::new(3, &[1_000_000, 40]);
    let mut ranks = group(&world, &[]);
    let tickets = submit(&mut ranks, &ring(3), soon());
    let said: Vec<String> = ranks
        .iter_mut()
        .zip(&tickets)
        .filter_map(|(rank, &ticket)| outcome(rank, ticket).err().map(|error| error.to_string()))
        .collect();
    assert!(!said.is_empty());
    for said in &said {
        assert!(said.contains("cuEventQuery") && said.contains("719"), "{said}");
    }
    for (rank, number) in ranks.iter_mut().zip(0..) {
        rank.abort("it failed").wait(RankId(number), "rest", soon()).unwrap();
    }
}

/// Dropped amid a copy, it waits for it; and not for ever.
pub(crate) fn a_drop_waits_for_copies_and_not_for_ever() {
    for lost in [false, true] {
        let world = World::new(2, &[1_000_000, 40]);
        let mut ranks = group(&world, &[]);
        let hold = Hold::on(TO_DEVICE);
        submit(&mut ranks, &one(), soon());
        hold.wait(1);
        let receiver = ranks.pop().unwrap();
        let dropping = std::thread::spawn(move || drop(receiver));
        if lost {
            // What the device still uses is kept.
            dropping.join().unwrap();
            hold.end();
        } else {
            assert!(!hold.sees(|| dropping.is_finished()));
            hold.end();
            dropping.join().unwrap();
        }
    }
}
