//! What must not be sent, landed or used again before the device has done its part, and faults planted in each of these.

use std::sync::Arc;

use eplb_comm::{Communicator, Progress};
use eplb_comm_gloo::{GlooCommunicator, Options, Planted};
use eplb_core::Transfer;

use crate::hold::{Hold, TO_DEVICE, TO_HOST};
use crate::ranks::{World, connect, outcome, outcomes, ring, soon, submit};

fn group(world: &World, planted: &[Planted], options: &Options) -> Vec<GlooCommunicator> {
    connect(&world.memories, |_| Options { planted: planted.to_vec(), ..options.clone() })
}

/// A weight of a few pieces, and a scale.
const TENSORS: [usize; 2] = [300_000, 40];

fn pieces() -> Options {
    Options { piece_bytes: 100_000, ..Options::default() }
}

pub(crate) fn a_message_is_sent_when_its_bytes_are_there() {
    let mut world = World::new(2, &TENSORS);
    let mut ranks = group(&world, &[], &pieces());
    let hold = Hold::on(TO_HOST);
    let tickets = submit(&mut ranks, &ring(2), soon());
    hold.wait(2);
    for (rank, &ticket) in ranks.iter_mut().zip(&tickets) {
        assert!(!hold.sees(|| rank.poll(ticket) == Ok(Progress::Done)), "{}", rank.rank());
        assert_eq!(rank.sent_messages(), 0);
    }
    drop(hold);
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())]);
    assert_eq!(world.wrong_after_ring(), [0, 0]);
    // Planted: it is sent before.
    [1, 3].iter().for_each(|&slot| world.refill(slot));
    let mut ranks = group(&world, &[Planted::SentEarly], &pieces());
    let hold = Hold::on(TO_HOST);
    let tickets = submit(&mut ranks, &ring(2), soon());
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())], "it must not wait for the device");
    drop(hold);
    assert!(world.wrong_after_ring().iter().all(|&wrong| wrong > 0), "the planted fault must show");
}

pub(crate) fn a_wave_is_done_when_its_bytes_are_in_their_place() {
    let mut world = World::new(2, &TENSORS);
    let mut ranks = group(&world, &[], &pieces());
    let hold = Hold::on(TO_DEVICE);
    let tickets = submit(&mut ranks, &ring(2), soon());
    hold.wait(2);
    for (rank, &ticket) in ranks.iter_mut().zip(&tickets) {
        assert!(!hold.sees(|| rank.poll(ticket) == Ok(Progress::Done)), "{}", rank.rank());
    }
    drop(hold);
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())]);
    assert_eq!(world.wrong_after_ring(), [0, 0]);
    // Planted: it is done before.
    [1, 3].iter().for_each(|&slot| world.refill(slot));
    let mut ranks = group(&world, &[Planted::LandedEarly], &pieces());
    let hold = Hold::on(TO_DEVICE);
    let tickets = submit(&mut ranks, &ring(2), soon());
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())], "it must not wait for the device");
    assert!(world.wrong_after_ring().iter().all(|&wrong| wrong > 0), "the planted fault must show");
    drop(hold);
}

pub(crate) fn a_cell_is_used_again_when_its_bytes_are_in_their_place() {
    let one: Arc<[Transfer]> = ring(2)[..1].into();
    let options = Options { piece_bytes: 50_000, packing_bytes: 0, ..Options::default() };
    let mut world = World::new(2, &[1_000_000, 40]);
    let mut ranks = group(&world, &[], &options);
    let hold = Hold::on(TO_DEVICE);
    let tickets = submit(&mut ranks, &one, soon());
    hold.wait(1);
    // Of the 21 messages the receiver has room for two.
    assert!(!hold.sees(|| ranks[0].poll(tickets[0]) == Ok(Progress::Done)));
    drop(hold);
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())]);
    assert_eq!(world.wrong(3, 0), 0);
    // Planted: the bytes of the next message come into it before.
    world.refill(3);
    let mut ranks = group(&world, &[Planted::CellReused], &options);
    let hold = Hold::on(TO_DEVICE);
    let tickets = submit(&mut ranks, &one, soon());
    assert_eq!(outcome(&mut ranks[0], tickets[0]), Ok(()), "it must go on while the device stands");
    drop(hold);
    assert_eq!(outcome(&mut ranks[1], tickets[1]), Ok(()));
    assert!(world.wrong(3, 0) > 0, "the planted fault must show");
}

pub(crate) fn a_piece_lands_where_it_was() {
    let mut world = World::new(2, &TENSORS);
    let planted = |rank: usize| if rank == 1 { vec![Planted::PieceElsewhere] } else { Vec::new() };
    let mut ranks = connect(&world.memories, |rank| Options { planted: planted(rank), ..pieces() });
    let tickets = submit(&mut ranks, &ring(2)[..1].into(), soon());
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())]);
    assert!(world.wrong(3, 0) > 100_000, "the planted fault must show");
    let mut ranks = group(&world, &[], &pieces());
    let tickets = submit(&mut ranks, &ring(2), soon());
    assert_eq!(outcomes(&mut ranks, &tickets), [Ok(()), Ok(())]);
    assert_eq!(world.wrong_after_ring(), [0, 0]);
}
