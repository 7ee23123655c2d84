//! A rank's slots and staging, as lanes carry experts out of them and into them.
//!
//! Order, headers, deadlines and failures are the same for every kind of memory ([`run`](crate::run)). What differs is where the bytes of a message are when
//! the network gets them: [`host`] lets it read and write places themselves where rows have no gaps, [`device`] takes everything through pinned packing
//! memory, by copies of the device. Either has come to an end when its call returns: so a message is sent when its bytes are all there, and is done when they are
//! all in their place.

pub(crate) mod alone;
pub(crate) mod device;
pub(crate) mod host;

use std::fmt;
use std::ptr::NonNull;

use eplb_comm::{CommError, Communicator, Memory, Place};
use eplb_core::{ExpertId, RankId, Transfer};

use crate::cells::Cells;
use crate::cut::{Cut, LayerCut, Piece};
use crate::options::Options;
use crate::run::Trouble;

/// What of an expert a message carries, its header apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load<'a> {
    /// The small tensors, one after another.
    Small(&'a LayerCut),
    /// A part of a large one.
    Piece(Piece),
}

/// Memory of one rank.
pub(crate) trait Ground: fmt::Debug + Send + Sync {
    fn rank(&self) -> RankId;

    /// What it consists of.
    fn memory(&self) -> &dyn Memory;

    /// The communicator of a group of one rank: no bytes leave it, and Gloo is not needed.
    fn alone(&self) -> Result<Box<dyn Communicator>, CommError>;

    /// Bytes of the largest message that goes through packing memory.
    fn largest_packed(&self, cut: &Cut) -> usize;

    /// Whether packing memory is pinned.
    fn packs_pinned(&self) -> bool;

    /// What one lane needs: `count` cells of `bytes` bytes, and access to places.
    fn lane(
        &self,
        count: usize,
        bytes: usize,
        options: &Options,
    ) -> Result<(Cells, Box<dyn Porter>), CommError>;
}

/// Whether what is under way must be given up. Asked between looks at what a device does.
pub(crate) type Over<'a> = &'a dyn Fn() -> bool;

/// One lane's access to the memory of its rank.
pub(crate) trait Porter: Send {
    /// To be called once on the lane's thread, before anything else.
    fn begin(&self) {}

    /// Takes hold of a place: to read `expert` in it, or to write it.
    fn open(&mut self, place: Place, read: Option<ExpertId>) -> Result<Box<dyn Hold>, CommError>;

    /// Copies an expert inside the rank.
    fn copy(&mut self, transfer: &Transfer, over: Over<'_>) -> Result<(), Trouble>;

    /// Waits until nothing that was begun here touches memory any more. False: `give_up` said so first, and it still may; then packing memory must stay.
    fn settle(&mut self, give_up: Over<'_>) -> bool {
        let _ = give_up;
        true
    }
}

/// The hold on the place of an expert that is under way.
pub(crate) trait Hold {
    /// Where a tensor lies, if the network may read or write it there: without gaps, until the hold is dropped.
    fn straight(&mut self, tensor: usize) -> Option<NonNull<[u8]>>;

    /// Brings bytes of the place into packing memory; all of them are there when it returns. An end with an error may leave copies to it under way
    /// ([`Porter::settle`]).
    fn pack(&mut self, load: Load<'_>, to: &mut [u8], over: Over<'_>) -> Result<(), Trouble>;

    /// Brings bytes from packing memory to the place, as [`Hold::pack`].
    fn unpack(&mut self, load: Load<'_>, from: &[u8], over: Over<'_>) -> Result<(), Trouble>;

    /// All bytes of an expert are in the place.
    fn name(&mut self, expert: ExpertId) -> Result<(), Trouble>;
}
